/* Four lanes of aarch64 NEON. Included by scan_neon.cpp only. */
#ifndef MAMBAPOSE_VEC_NEON_H
#define MAMBAPOSE_VEC_NEON_H

#include <arm_neon.h>
#include <stdint.h>

namespace mambapose
{
namespace MAMBAPOSE_ISA
{

struct Vec
{
    static constexpr int kWIDTH = 4;
    static constexpr int kUNROLL = 8; //!< States held in registers by the inner loop.
    float32x4_t v;

    static Vec set(float x)
    {
        return {vdupq_n_f32(x)};
    }
    static Vec load(float const* p)
    {
        return {vld1q_f32(p)};
    }
    static Vec loadHalf(uint16_t const* p)
    {
        return {vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(p)))};
    }
    void store(float* p) const
    {
        vst1q_f32(p, v);
    }
    void storeHalf(uint16_t* p) const
    {
        vst1_u16(p, vreinterpret_u16_f16(vcvt_f16_f32(v)));
    }
};

inline Vec operator+(Vec a, Vec b)
{
    return {vaddq_f32(a.v, b.v)};
}
inline Vec operator-(Vec a, Vec b)
{
    return {vsubq_f32(a.v, b.v)};
}
inline Vec operator*(Vec a, Vec b)
{
    return {vmulq_f32(a.v, b.v)};
}
inline Vec operator/(Vec a, Vec b)
{
    return {vdivq_f32(a.v, b.v)};
}
//! a * b + c.
inline Vec fma(Vec a, Vec b, Vec c)
{
    return {vfmaq_f32(c.v, a.v, b.v)};
}
//! The larger; not a number when either is.
inline Vec maxOf(Vec bound, Vec x)
{
    return {vmaxq_f32(bound.v, x.v)};
}
//! The smaller, likewise.
inline Vec minOf(Vec bound, Vec x)
{
    return {vminq_f32(bound.v, x.v)};
}
inline Vec absOf(Vec x)
{
    return {vabsq_f32(x.v)};
}
inline Vec roundOf(Vec x)
{
    return {vrndnq_f32(x.v)};
}
//! Keeps x in the range where scaleOf is exact; not a number stays.
inline Vec boundExponent(Vec x)
{
    return minOf(Vec::set(127.0F), maxOf(Vec::set(-125.0F), x));
}
//! p * 2^k for whole k within boundExponent and p within a factor of two of 1.
inline Vec scaleOf(Vec p, Vec k)
{
    int32x4_t const exponent = vshlq_n_s32(vcvtq_s32_f32(k.v), 23);
    return {vreinterpretq_f32_s32(vaddq_s32(vreinterpretq_s32_f32(p.v), exponent))};
}
inline float sumOf(Vec x)
{
    return vaddvq_f32(x.v);
}

//! Results below the normal range become zero while alive: decayed states cost nothing extra.
class FlushDenormals
{
public:
    FlushDenormals()
    {
        __asm__ volatile("mrs %0, fpcr" : "=r"(mSaved));
        write(mSaved | (uint64_t{1} << 24));
    }
    ~FlushDenormals()
    {
        write(mSaved);
    }
    FlushDenormals(FlushDenormals const&) = delete;
    FlushDenormals& operator=(FlushDenormals const&) = delete;

private:
    static void write(uint64_t value)
    {
        __asm__ volatile("msr fpcr, %0" : : "r"(value) : "memory");
    }
    uint64_t mSaved = 0;
};

} // namespace MAMBAPOSE_ISA
} // namespace mambapose

#include "cpu/exp2_polynomial.h"
#endif
