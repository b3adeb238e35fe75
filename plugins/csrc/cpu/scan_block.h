/* One block of channels in one tile of steps: step sizes and inputs, then the recurrence, both in
 * first-level cache. Needs Vec of one vec_*.h. */
#ifndef MAMBAPOSE_SCAN_BLOCK_H
#define MAMBAPOSE_SCAN_BLOCK_H

#include "core/scan_math.h"
#include "cpu/scan_tile.h"

namespace mambapose
{
namespace MAMBAPOSE_ISA
{

//! One block of channels of direction k in one tile.
struct Block
{
    int64_t batch, k, channel;
    int lanes;
    int32_t const* tokens; //!< Of the tile's steps.
    int64_t count;
};

/* What the next block will read, asked for while this one computes: with the requests in the two memory
 * passes instead, long scans wait for the third-level cache. */
struct NextRows
{
    int32_t const* tokens;
    int64_t count;
    int rows;
    char const* base[4];
    int64_t rowBytes[4];

    template <typename T>
    void add(MambaposeRows const& tensor, int64_t batch, int64_t column)
    {
        if (tensor.data != nullptr)
        {
            base[rows] = reinterpret_cast<char const*>(rowOf<T>(tensor, batch, 0) + column);
            rowBytes[rows] = tensor.rowStride * static_cast<int64_t>(sizeof(T));
            ++rows;
        }
    }
    void fetch(int64_t t) const
    {
        for (int i = 0; i < rows && t < count; ++i)
        {
            __builtin_prefetch(base[i] + tokens[t] * rowBytes[i]);
        }
    }
};

//! Steps [begin, end) of a block: sizes s, inputs s*u, outputs y, each (steps, W). next may be null.
struct BlockSteps
{
    float *s, *su, *y;
    int64_t begin, end;
    NextRows const* next;
};

//! Fills s, s*u and, in y, D*u of every step of the tile.
template <typename T>
inline void prepareSteps(MambaposeScanParams const& p, Block const& block, BlockSteps const& x)
{
    int const lanes = block.lanes;
    int64_t const own = block.k * p.channels + block.channel;
    int64_t const uColumn = p.uShared ? block.channel : own;
    Vec const zero = Vec::set(0.0F);
    Vec const bias = p.dtBias == nullptr ? zero : loadLanes(p.dtBias + own, lanes);
    Vec const skip = p.D == nullptr ? zero : loadLanes(p.D + own, lanes);
    for (int64_t t = 0; t < block.count; ++t)
    {
        Vec s = loadLanes(rowOf<T>(p.dt, block.batch, block.tokens[t]) + own, lanes) + bias;
        Vec const u = loadLanes(rowOf<T>(p.u, block.batch, block.tokens[t]) + uColumn, lanes);
        s = p.deltaSoftplus ? softplusOf(s) : s;
        s.store(x.s + t * kW);
        (s * u).store(x.su + t * kW);
        (p.D == nullptr ? zero : skip * u).store(x.y + t * kW);
    }
}

//! The end of the piece of a tile that starts at x.begin and holds no reset but at its start.
inline int64_t pieceEnd(MambaposeScanParams const& p, int64_t tileBegin, int64_t count, int64_t begin)
{
    return p.segment == 0 ? count : smaller(count, begin + p.segment - (tileBegin + begin) % p.segment);
}

inline bool isReset(MambaposeScanParams const& p, int64_t step)
{
    return p.segment > 0 && step % p.segment == 0;
}

//! Advances COUNT states of one block; y gains their share. SPREAD: floats from one state of B, C to the next.
template <int COUNT, int SPREAD>
inline void advance(BlockSteps const& x, float const* decay, float* state, MatrixTile const& B, MatrixTile const& C)
{
    Vec h[COUNT], a[COUNT];
    for (int n = 0; n < COUNT; ++n)
    {
        h[n] = Vec::load(state + n * kW);
        a[n] = Vec::load(decay + n * kW);
    }
    for (int64_t t = x.begin; t < x.end; ++t)
    {
        if (x.next != nullptr)
        {
            x.next->fetch(t);
        }
        Vec const s = Vec::load(x.s + t * kW);
        Vec const su = Vec::load(x.su + t * kW);
        Vec y = Vec::load(x.y + t * kW);
        float const* const b = B.data + t * B.step;
        float const* const c = C.data + t * C.step;
        for (int n = 0; n < COUNT; ++n)
        {
            Vec const bn = SPREAD == 1 ? Vec::set(b[n]) : Vec::load(b + n * SPREAD);
            Vec const cn = SPREAD == 1 ? Vec::set(c[n]) : Vec::load(c + n * SPREAD);
            h[n] = fma(exp2Of(s * a[n]), h[n], su * bn);
            y = fma(h[n], cn, y);
        }
        y.store(x.y + t * kW);
    }
    for (int n = 0; n < COUNT; ++n)
    {
        h[n].store(state + n * kW);
    }
}

//! Calls advance for all states, as many at a time as registers hold.
template <int COUNT, int SPREAD>
inline int64_t advanceWhile(int64_t n, int64_t states, BlockSteps x, float const* decay, float* state,
    MatrixTile const& B, MatrixTile const& C)
{
    for (; states - n >= COUNT; n += COUNT)
    {
        MatrixTile const bn{B.data + n * SPREAD, B.step};
        MatrixTile const cn{C.data + n * SPREAD, C.step};
        advance<COUNT, SPREAD>(x, decay + n * kW, state + n * kW, bn, cn);
        x.next = nullptr; // Once is enough.
    }
    if constexpr (COUNT > 1)
    {
        return advanceWhile<COUNT / 2, SPREAD>(n, states, x, decay, state, B, C);
    }
    return n;
}

//! The recurrence over a tile, from zero again at each segment.
template <typename T>
inline void recur(MambaposeScanParams const& p, int64_t tileBegin, int64_t count, BlockSteps x, float const* decay,
    float* state, MatrixTiles<T> const& tiles)
{
    for (x.begin = 0; x.begin < count; x.begin = x.end)
    {
        x.end = pieceEnd(p, tileBegin, count, x.begin);
        if (isReset(p, tileBegin + x.begin))
        {
            clear(state, p.states * kW);
        }
        if (tiles.perLane)
        {
            advanceWhile<Vec::kUNROLL, kW>(0, p.states, x, decay, state, tiles.B, tiles.C);
        }
        else
        {
            advanceWhile<Vec::kUNROLL, 1>(0, p.states, x, decay, state, tiles.B, tiles.C);
        }
    }
}

} // namespace MAMBAPOSE_ISA
} // namespace mambapose
#endif
