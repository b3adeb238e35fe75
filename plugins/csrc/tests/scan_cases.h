/* Calls of the scan for tests without Python: shapes and flags, seeded values that every type of rows
 * holds exactly, the C structure with memory exactly as large as the tensors, and comparing. */
#ifndef MAMBAPOSE_SCAN_CASES_H
#define MAMBAPOSE_SCAN_CASES_H

#include "core/mambapose_scan.h"
#include "core/naive_scan.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <numeric>
#include <random>
#include <vector>

namespace mambapose
{
namespace cases
{

using namespace naive;
using Floats = std::vector<float>;

struct Case
{
    char const* name;
    Shape shape;
    bool D, z, bias, initial;
};

inline std::vector<Case> allCases()
{
    //   batch length channels states directions groups segment reverse softplus merge shared B const C const orders
    return {
        {"one step", {1, 1, 1, 1, 1, 1, 0, 0, true, false, true, false, false, 0}, false, false, false, false},
        {"empty", {1, 0, 5, 4, 1, 1, 0, 0, true, false, true, false, false, 0}, true, true, true, true},
        {"all", {2, 67, 16, 16, 1, 1, 0, 0, true, false, true, false, false, 0}, true, true, true, true},
        {"odd", {1, 131, 19, 7, 1, 1, 0, 1, true, false, true, false, false, 1}, true, true, true, true},
        {"merge", {2, 65, 33, 16, 2, 1, 0, 2, true, true, true, false, false, 0}, true, true, true, true},
        {"orders", {1, 70, 48, 5, 4, 1, 0, 12, true, true, false, false, false, 4}, true, false, true, false},
        {"groups", {1, 40, 24, 8, 2, 3, 0, 2, true, false, true, false, false, 2}, true, true, false, true},
        {"wide groups", {1, 35, 64, 4, 1, 2, 0, 0, true, false, true, false, false, 0}, true, false, true, false},
        {"own group", {1, 20, 6, 2, 1, 6, 0, 1, true, false, true, false, false, 0}, false, true, true, false},
        {"constant B", {2, 33, 18, 3, 1, 1, 0, 0, true, false, true, true, false, 0}, true, false, true, true},
        {"constant C", {2, 33, 18, 3, 2, 1, 0, 1, true, true, true, false, true, 0}, true, true, true, true},
        {"constant both", {1, 33, 38, 16, 1, 1, 0, 0, true, false, true, true, true, 0}, true, false, false, true},
        {"segments", {1, 100, 20, 4, 2, 1, 7, 2, true, true, true, false, false, 1}, true, true, true, false},
        {"long segments", {1, 150, 9, 16, 1, 1, 70, 1, true, false, true, false, false, 0}, true, true, true, false},
        {"many states", {1, 17, 8, 256, 1, 1, 0, 0, true, false, true, false, false, 0}, true, true, true, true},
        {"no softplus", {1, 30, 12, 2, 1, 1, 0, 0, false, false, true, false, false, 0}, true, true, false, true},
    };
}

class Generator
{
public:
    //! Values are multiples of 1 / parts: 256 for fp16, 32 for bfloat16, so that every type sees the same numbers.
    explicit Generator(double parts = 256.0)
        : mParts(parts)
    {
    }

    Values draw(int64_t count, double low, double high)
    {
        std::uniform_real_distribution<double> uniform(low, high);
        Values values;
        for (int64_t i = 0; i < count; ++i)
        {
            values.push_back(std::round(uniform(mEngine) * mParts) / mParts);
        }
        return values;
    }

    std::vector<int32_t> permutations(int64_t rows, int64_t length)
    {
        std::vector<int32_t> order(static_cast<size_t>(rows * length));
        for (int64_t row = 0; row < rows; ++row)
        {
            auto const begin = order.begin() + row * length;
            std::iota(begin, begin + length, 0);
            std::shuffle(begin, begin + length, mEngine);
        }
        return order;
    }

    Problem problem(Case const& c)
    {
        Shape const& s = c.shape;
        int64_t const tokens = s.batch * s.length, wide = s.wide();
        int64_t const columns = s.directions * s.groups * s.states;
        Problem p{s, {}, permutations(s.orderRows, s.length)};
        p.in.u = draw(tokens * (s.uShared ? s.channels : wide), -2.0, 2.0);
        p.in.dt = s.softplus ? draw(tokens * wide, -5.0, 3.0) : draw(tokens * wide, 0.0, 1.0);
        p.in.A = draw(wide * s.states, -4.0, -0.1);
        p.in.B = draw(s.bConstant ? wide * s.states : tokens * columns, -1.0, 1.0);
        p.in.C = draw(s.cConstant ? wide * s.states : tokens * columns, -1.0, 1.0);
        p.in.D = draw(c.D ? wide : 0, -1.0, 1.0);
        p.in.z = draw(c.z ? tokens * s.channels : 0, -4.0, 4.0);
        p.in.bias = draw(c.bias ? wide : 0, -2.0, 0.0);
        p.in.initial = draw(c.initial ? s.batch * wide * s.states : 0, -1.0, 1.0);
        return p;
    }

private:
    std::mt19937 mEngine{7};
    double mParts;
};

inline Floats floatsOf(Values const& values)
{
    return Floats(values.begin(), values.end());
}

//! Half precision bits of values that half precision holds exactly.
inline uint16_t halfBits(double value)
{
    if (value == 0.0)
    {
        return 0;
    }
    int exponent = 0;
    double const fraction = std::frexp(std::fabs(value), &exponent); // [0.5, 1)
    auto const mantissa = static_cast<unsigned>(fraction * 2048.0) & 0x3FFU;
    return static_cast<uint16_t>((value < 0 ? 0x8000U : 0U) | static_cast<unsigned>(exponent + 14) << 10 | mantissa);
}

inline double halfValue(uint16_t bits)
{
    int const exponent = (bits >> 10) & 31;
    double const mantissa = bits & 0x3FF;
    double const size = exponent == 0 ? std::ldexp(mantissa, -24) : std::ldexp(1024.0 + mantissa, exponent - 25);
    return (bits & 0x8000U) != 0 ? -size : size;
}

inline uint16_t bfloatBits(double value)
{
    auto const x = static_cast<float>(value);
    uint32_t bits = 0;
    std::memcpy(&bits, &x, sizeof bits);
    return static_cast<uint16_t>(bits >> 16);
}

inline double bfloatValue(uint16_t bits)
{
    uint32_t const wide = static_cast<uint32_t>(bits) << 16;
    float x = 0.0F;
    std::memcpy(&x, &wide, sizeof x);
    return x;
}

//! A tensor of rows in the type of the call. The heap block ends with the last element; rows may lie `gap` apart.
class Typed
{
public:
    Typed(Values const& values, int32_t dtype, int64_t columns, int64_t gap)
        : mDtype(dtype)
        , mColumns(static_cast<size_t>(columns))
        , mPitch(static_cast<size_t>(columns + gap))
        , mCount(values.size())
    {
        size_t const last = mCount == 0 ? 0 : mCount / mColumns - 1;
        mBytes.assign(mCount == 0 ? 0 : (last * mPitch + mColumns) * size(), 0xFF);
        for (size_t i = 0; i < mCount; ++i)
        {
            auto const x = static_cast<float>(values[i]);
            uint16_t const bits = dtype == MAMBAPOSE_BF16 ? bfloatBits(values[i]) : halfBits(values[i]);
            std::memcpy(&mBytes[placeOf(i)], size() == 4 ? static_cast<void const*>(&x) : &bits, size());
        }
    }

    MambaposeRows rows(int64_t length)
    {
        auto const pitch = static_cast<int64_t>(mPitch);
        return {mBytes.empty() ? nullptr : mBytes.data(), length * pitch, pitch};
    }

    //! No element is a number: what is not written then shows.
    void poison()
    {
        std::fill(mBytes.begin(), mBytes.end(), 0xFF);
    }

    Values values() const
    {
        Values result;
        for (size_t i = 0; i < mCount; ++i)
        {
            float x = 0.0F;
            uint16_t bits = 0;
            std::memcpy(size() == 4 ? static_cast<void*>(&x) : &bits, &mBytes[placeOf(i)], size());
            result.push_back(size() == 4 ? x : mDtype == MAMBAPOSE_BF16 ? bfloatValue(bits) : halfValue(bits));
        }
        return result;
    }

    bool operator==(Typed const& other) const
    {
        return mBytes == other.mBytes;
    }

private:
    size_t size() const
    {
        return mDtype == MAMBAPOSE_FP32 ? 4 : 2;
    }
    size_t placeOf(size_t i) const
    {
        return (i / mColumns * mPitch + i % mColumns) * size();
    }

    int32_t mDtype;
    size_t mColumns, mPitch, mCount;
    std::vector<unsigned char> mBytes;
};

inline float const* orNull(Floats const& values)
{
    return values.empty() ? nullptr : values.data();
}

//! The C structure of a problem and the memory it points to.
struct Call
{
    Typed u, dt, B, C, z, y;
    Floats A, D, bias, initial, finalState;
    MambaposeScanParams params{};

    Call(Problem const& p, int32_t dtype, int64_t gap = 0)
        : u(p.in.u, dtype, p.shape.uShared ? p.shape.channels : p.shape.wide(), gap)
        , dt(p.in.dt, dtype, p.shape.wide(), gap)
        , B(matrix(p.in.B, p.shape, p.shape.bConstant, dtype, gap))
        , C(matrix(p.in.C, p.shape, p.shape.cConstant, dtype, gap))
        , z(p.in.z, dtype, p.shape.channels, gap)
        , y(Values(p.in.dt.size() / static_cast<size_t>(p.shape.mergeSum ? p.shape.directions : 1), 1.0), dtype,
              p.shape.mergeSum ? p.shape.channels : p.shape.wide(), gap)
        , A(floatsOf(p.in.A))
        , D(floatsOf(p.in.D))
        , bias(floatsOf(p.in.bias))
        , initial(floatsOf(p.in.initial))
        , finalState(static_cast<size_t>(p.shape.batch * p.shape.wide() * p.shape.states))
    {
        Shape const& s = p.shape;
        y.poison();
        std::fill(finalState.begin(), finalState.end(), NAN);
        params.structSize = sizeof params;
        params.dtype = dtype;
        params.batch = s.batch;
        params.length = s.length;
        params.channels = s.channels;
        params.states = s.states;
        params.directions = s.directions;
        params.groups = s.groups;
        params.segment = s.segment;
        params.reverseMask = s.reverseMask;
        params.deltaSoftplus = s.softplus;
        params.mergeSum = s.mergeSum;
        params.uShared = s.uShared;
        params.bConstant = s.bConstant;
        params.cConstant = s.cConstant;
        params.orderRows = static_cast<int32_t>(std::max<int64_t>(s.orderRows, 1));
        params.u = u.rows(s.length);
        params.dt = dt.rows(s.length);
        params.B = B.rows(s.length);
        params.C = C.rows(s.length);
        params.z = z.rows(s.length);
        params.y = y.rows(s.length);
        params.A = A.data();
        params.D = orNull(D);
        params.dtBias = orNull(bias);
        params.order = p.order.empty() ? nullptr : p.order.data();
        params.initialState = orNull(initial);
        params.finalState = finalState.data();
        params.numThreads = 1;
    }

    static Typed matrix(Values const& values, Shape const& s, bool constant, int32_t dtype, int64_t gap)
    {
        int64_t const columns = constant ? s.states : s.directions * s.groups * s.states;
        return Typed(values, constant ? MAMBAPOSE_FP32 : dtype, columns, constant ? 0 : gap);
    }
};

//! Largest difference relative to the largest wanted value.
inline double difference(Values const& wanted, Values const& found)
{
    double worst = 0.0, largest = 1e-30;
    for (size_t i = 0; i < wanted.size(); ++i)
    {
        double const error = std::fabs(wanted[i] - found[i]);
        if (std::isnan(error))
        {
            return 1e30;
        }
        worst = std::max(worst, error);
        largest = std::max(largest, std::fabs(wanted[i]));
    }
    return wanted.size() == found.size() ? worst / largest : 1e30;
}

struct Report
{
    bool good = true;
    double worst = 0.0;

    void add(Case const& c, char const* what, double error, double limit)
    {
        worst = std::max(worst, error / limit);
        if (!(error <= limit))
        {
            good = false;
            std::printf("%s, %s: error %.3g, limit %.3g\n", c.name, what, error, limit);
        }
    }
};

} // namespace cases
} // namespace mambapose
#endif
