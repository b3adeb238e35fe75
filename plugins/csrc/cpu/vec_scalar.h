/* Eight lanes in plain C++, for processors without the vector units below. Included by
 * scan_scalar.cpp only. */
#ifndef MAMBAPOSE_VEC_SCALAR_H
#define MAMBAPOSE_VEC_SCALAR_H

#include "core/half_bits.h"

#include <math.h>
#include <stdint.h>
#include <string.h>

namespace mambapose
{
namespace MAMBAPOSE_ISA
{

struct Vec
{
    static constexpr int kWIDTH = 8;
    static constexpr int kUNROLL = 1; //!< States held in registers by the inner loop.
    float v[kWIDTH];

    template <typename F>
    static Vec make(F const& lane)
    {
        Vec result;
        for (int i = 0; i < kWIDTH; ++i)
        {
            result.v[i] = lane(i);
        }
        return result;
    }
    static Vec set(float x)
    {
        return make([=](int) { return x; });
    }
    static Vec load(float const* p)
    {
        Vec result;
        memcpy(result.v, p, sizeof result.v);
        return result;
    }
    static Vec loadHalf(uint16_t const* p)
    {
        uint16_t halves[kWIDTH];
        memcpy(halves, p, sizeof halves);
        return make([&](int i) { return floatFromHalf(halves[i]); });
    }
    void store(float* p) const
    {
        memcpy(p, v, sizeof v);
    }
    void storeHalf(uint16_t* p) const
    {
        uint16_t halves[kWIDTH];
        for (int i = 0; i < kWIDTH; ++i)
        {
            halves[i] = halfFromFloat(v[i]);
        }
        memcpy(p, halves, sizeof halves);
    }
};

inline Vec operator+(Vec const& a, Vec const& b)
{
    return Vec::make([&](int i) { return a.v[i] + b.v[i]; });
}
inline Vec operator-(Vec const& a, Vec const& b)
{
    return Vec::make([&](int i) { return a.v[i] - b.v[i]; });
}
inline Vec operator*(Vec const& a, Vec const& b)
{
    return Vec::make([&](int i) { return a.v[i] * b.v[i]; });
}
inline Vec operator/(Vec const& a, Vec const& b)
{
    return Vec::make([&](int i) { return a.v[i] / b.v[i]; });
}
//! a * b + c, rounded twice: fmaf is a slow library call on such a processor.
inline Vec fma(Vec const& a, Vec const& b, Vec const& c)
{
    return Vec::make([&](int i) { return a.v[i] * b.v[i] + c.v[i]; });
}
//! The larger; x when x is not a number.
inline Vec maxOf(Vec const& bound, Vec const& x)
{
    return Vec::make([&](int i) { return bound.v[i] > x.v[i] ? bound.v[i] : x.v[i]; });
}
//! The smaller, likewise.
inline Vec minOf(Vec const& bound, Vec const& x)
{
    return Vec::make([&](int i) { return bound.v[i] < x.v[i] ? bound.v[i] : x.v[i]; });
}
inline Vec absOf(Vec const& x)
{
    return Vec::make([&](int i) { return fabsf(x.v[i]); });
}
//! Nearest whole number for |x| below 2^22: adding 1.5 * 2^23 leaves no room for a fraction.
inline Vec roundOf(Vec const& x)
{
    return Vec::make([&](int i) { return (x.v[i] + 12582912.0F) - 12582912.0F; });
}
//! Keeps x in the range where scaleOf is exact; not a number stays.
inline Vec boundExponent(Vec const& x)
{
    return minOf(Vec::set(127.0F), maxOf(Vec::set(-125.0F), x));
}
//! p * 2^k for whole k within boundExponent; the integer comes from the bits, so not a number is safe.
inline Vec scaleOf(Vec const& p, Vec const& k)
{
    return Vec::make([&](int i)
        { return floatFromBits(bitsFromFloat(p.v[i]) + (bitsFromFloat(k.v[i] + 12582912.0F) << 23)); });
}
inline float sumOf(Vec const& x)
{
    float sum = 0.0F;
    for (float lane : x.v)
    {
        sum += lane;
    }
    return sum;
}

//! Nothing to set portably: values below the normal range keep their value here.
class FlushDenormals
{
};

} // namespace MAMBAPOSE_ISA
} // namespace mambapose

#include "cpu/exp2_polynomial.h"
#endif
