/* The selective scan and its gradients in double, one obvious loop each: what the kernels are
 * compared with where Python is not at hand. Shares no code with them. */
#ifndef MAMBAPOSE_NAIVE_SCAN_H
#define MAMBAPOSE_NAIVE_SCAN_H

#include <cmath>
#include <cstdint>
#include <vector>

namespace mambapose
{
namespace naive
{

using Values = std::vector<double>;

struct Shape
{
    int64_t batch = 1, length = 1, channels = 1, states = 1, directions = 1, groups = 1, segment = 0;
    uint64_t reverseMask = 0;
    bool softplus = true, mergeSum = false, uShared = true, bConstant = false, cConstant = false;
    int64_t orderRows = 0;

    int64_t wide() const
    {
        return directions * channels;
    }
};

//! Inputs or their gradients; empty means absent.
struct Tensors
{
    Values u, dt, A, B, C, D, z, bias, initial;
};

struct Problem
{
    Shape shape;
    Tensors in;
    std::vector<int32_t> order;

    int64_t token(int64_t k, int64_t t) const
    {
        int64_t const step = (shape.reverseMask >> k) & 1U ? shape.length - 1 - t : t;
        int64_t const row = shape.orderRows > 1 ? k : 0;
        return order.empty() ? step : order[static_cast<size_t>(row * shape.length + step)];
    }
    size_t uAt(int64_t b, int64_t token, int64_t k, int64_t d) const
    {
        int64_t const row = b * shape.length + token;
        return static_cast<size_t>(shape.uShared ? row * shape.channels + d : wideAt(b, token, k, d));
    }
    size_t wideAt(int64_t b, int64_t token, int64_t k, int64_t d) const
    {
        return static_cast<size_t>((b * shape.length + token) * shape.wide() + k * shape.channels + d);
    }
    size_t yAt(int64_t b, int64_t token, int64_t k, int64_t d) const
    {
        return shape.mergeSum ? zAt(b, token, d) : wideAt(b, token, k, d);
    }
    size_t zAt(int64_t b, int64_t token, int64_t d) const
    {
        return static_cast<size_t>((b * shape.length + token) * shape.channels + d);
    }
    //! First of the states' values in B or C.
    size_t matrixAt(bool constant, int64_t b, int64_t token, int64_t k, int64_t d) const
    {
        int64_t const group = d / (shape.channels / shape.groups);
        int64_t const column = (k * shape.groups + group) * shape.states;
        int64_t const row = (b * shape.length + token) * shape.directions * shape.groups * shape.states;
        return static_cast<size_t>(constant ? (k * shape.channels + d) * shape.states : row + column);
    }
    double step(double x) const
    {
        return shape.softplus && x <= 20.0 ? std::log1p(std::exp(x)) : x;
    }
};

inline double sigmoid(double x)
{
    return 1.0 / (1.0 + std::exp(-x));
}

//! One channel of one direction: step sizes, inputs and the state after every step.
struct Track
{
    Values s, u, states, y;
};

inline Track walk(Problem const& p, int64_t b, int64_t k, int64_t d)
{
    Shape const& shape = p.shape;
    size_t const own = static_cast<size_t>(k * shape.channels + d);
    size_t const N = static_cast<size_t>(shape.states);
    Track track;
    Values h(N, 0.0);
    for (size_t n = 0; n < N && !p.in.initial.empty(); ++n)
    {
        h[n] = p.in.initial[(static_cast<size_t>(b * shape.wide()) + own) * N + n];
    }
    track.states = h;
    for (int64_t t = 0; t < shape.length; ++t)
    {
        int64_t const token = p.token(k, t);
        double const u = p.in.u[p.uAt(b, token, k, d)];
        double const s = p.step(p.in.dt[p.wideAt(b, token, k, d)] + (p.in.bias.empty() ? 0.0 : p.in.bias[own]));
        double y = p.in.D.empty() ? 0.0 : p.in.D[own] * u;
        for (size_t n = 0; n < N; ++n)
        {
            double const before = shape.segment > 0 && t % shape.segment == 0 ? 0.0 : h[n];
            double const input = s * u * p.in.B[p.matrixAt(shape.bConstant, b, token, k, d) + n];
            h[n] = std::exp(s * p.in.A[own * N + n]) * before + input;
            y += h[n] * p.in.C[p.matrixAt(shape.cConstant, b, token, k, d) + n];
        }
        track.s.push_back(s);
        track.u.push_back(u);
        track.y.push_back(y);
        track.states.insert(track.states.end(), h.begin(), h.end());
    }
    return track;
}

struct Result
{
    Values y, finalState;
};

inline Result forward(Problem const& p)
{
    Shape const& shape = p.shape;
    Result out;
    int64_t const columns = shape.mergeSum ? shape.channels : shape.wide();
    out.y.assign(static_cast<size_t>(shape.batch * shape.length * columns), 0.0);
    for (int64_t b = 0; b < shape.batch; ++b)
    {
        for (int64_t c = 0; c < shape.wide(); ++c)
        {
            int64_t const k = c / shape.channels, d = c % shape.channels;
            Track const track = walk(p, b, k, d);
            for (int64_t t = 0; t < shape.length; ++t)
            {
                int64_t const token = p.token(k, t);
                double const z = p.in.z.empty() ? 0.0 : p.in.z[p.zAt(b, token, d)];
                double const gate = p.in.z.empty() ? 1.0 : z * sigmoid(z);
                out.y[p.yAt(b, token, k, d)] += track.y[static_cast<size_t>(t)] * gate;
            }
            out.finalState.insert(out.finalState.end(), track.states.end() - shape.states, track.states.end());
        }
    }
    return out;
}

//! Gradients of one channel of one direction, added to `out`.
inline void retrace(
    Problem const& p, Values const& dY, Values const& dFinal, int64_t b, int64_t k, int64_t d, Tensors& out)
{
    Shape const& shape = p.shape;
    size_t const own = static_cast<size_t>(k * shape.channels + d);
    size_t const N = static_cast<size_t>(shape.states);
    size_t const stateRow = (static_cast<size_t>(b * shape.wide()) + own) * N;
    Track const track = walk(p, b, k, d);
    Values dh(dFinal.begin() + static_cast<int64_t>(stateRow), dFinal.begin() + static_cast<int64_t>(stateRow + N));
    for (int64_t t = shape.length - 1; t >= 0; --t)
    {
        int64_t const token = p.token(k, t);
        size_t const at = static_cast<size_t>(t);
        double const z = p.in.z.empty() ? 0.0 : p.in.z[p.zAt(b, token, d)];
        double dy = dY[p.yAt(b, token, k, d)];
        if (!p.in.z.empty())
        {
            out.z[p.zAt(b, token, d)] += dy * track.y[at] * sigmoid(z) * (1.0 + z * (1.0 - sigmoid(z)));
            dy *= z * sigmoid(z);
        }
        double const s = track.s[at], u = track.u[at];
        double ds = 0.0, du = p.in.D.empty() ? 0.0 : p.in.D[own] * dy;
        bool const reset = shape.segment > 0 && t % shape.segment == 0;
        for (size_t n = 0; n < N; ++n)
        {
            size_t const bAt = p.matrixAt(shape.bConstant, b, token, k, d) + n;
            size_t const cAt = p.matrixAt(shape.cConstant, b, token, k, d) + n;
            double const before = reset ? 0.0 : track.states[at * N + n];
            double const A = p.in.A[own * N + n], factor = std::exp(s * A);
            out.C[cAt] += dy * track.states[(at + 1) * N + n];
            dh[n] += dy * p.in.C[cAt];
            out.B[bAt] += dh[n] * s * u;
            du += dh[n] * s * p.in.B[bAt];
            ds += dh[n] * (u * p.in.B[bAt] + before * factor * A);
            out.A[own * N + n] += dh[n] * before * factor * s;
            dh[n] = reset ? 0.0 : dh[n] * factor;
        }
        double const x = p.in.dt[p.wideAt(b, token, k, d)] + (p.in.bias.empty() ? 0.0 : p.in.bias[own]);
        double const dx = shape.softplus && x <= 20.0 ? ds * sigmoid(x) : ds;
        out.dt[p.wideAt(b, token, k, d)] += dx;
        out.bias[own] += dx;
        out.u[p.uAt(b, token, k, d)] += du;
        out.D[own] += dy * u;
    }
    for (size_t n = 0; n < N; ++n)
    {
        out.initial[stateRow + n] = dh[n];
    }
}

inline Tensors backward(Problem const& p, Values const& dY, Values const& dFinal)
{
    size_t const wide = static_cast<size_t>(p.shape.wide());
    Tensors out = p.in;
    out.D.resize(wide);
    out.bias.resize(wide);
    out.initial.resize(dFinal.size());
    for (Values* each : {&out.u, &out.dt, &out.A, &out.B, &out.C, &out.D, &out.z, &out.bias, &out.initial})
    {
        each->assign(each->size(), 0.0);
    }
    for (int64_t b = 0; b < p.shape.batch; ++b)
    {
        for (int64_t c = 0; c < p.shape.wide(); ++c)
        {
            retrace(p, dY, dFinal, b, c / p.shape.channels, c % p.shape.channels, out);
        }
    }
    return out;
}

} // namespace naive
} // namespace mambapose
#endif
