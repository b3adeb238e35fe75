/* One lane of a GPU thread. Included by the CUDA files only. */
#ifndef MAMBAPOSE_VEC_CUDA_H
#define MAMBAPOSE_VEC_CUDA_H

#include "cuda/scan_cuda_port.h"

#define MAMBAPOSE_ISA cuda
#define MAMBAPOSE_INLINE __device__ __forceinline__

#ifndef __CUDACC__
#include "core/half_bits.h"
#endif

namespace mambapose
{
namespace cuda
{

#ifdef __CUDACC__

MAMBAPOSE_INLINE float floatFromHalf(uint16_t half)
{
    float x;
    asm("cvt.f32.f16 %0, %1;" : "=f"(x) : "h"(half));
    return x;
}

MAMBAPOSE_INLINE uint16_t halfFromFloat(float x)
{
    uint16_t half;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(half) : "f"(x));
    return half;
}

MAMBAPOSE_INLINE float floatFromBf16(uint16_t bits)
{
    return __uint_as_float(static_cast<uint32_t>(bits) << 16);
}

MAMBAPOSE_INLINE uint16_t bf16FromFloat(float x)
{
    uint16_t bits;
    asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(bits) : "f"(x));
    return bits;
}

//! 1 / x within one unit in the last place; 0 where the result is below the normal range.
MAMBAPOSE_INLINE float reciprocalApprox(float x)
{
    float y;
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

#else

inline float floatFromBf16(uint16_t bits)
{
    return floatFromBits(static_cast<uint32_t>(bits) << 16);
}

inline uint16_t bf16FromFloat(float x)
{
    uint32_t const bits = bitsFromFloat(x);
    return static_cast<uint16_t>(x != x ? 0x7FFFU : (bits + 0x7FFFU + ((bits >> 16) & 1U)) >> 16);
}

inline float reciprocalApprox(float x)
{
    return 1.0F / x;
}

#endif

//! Elements of tensors.
struct Fp16
{
    uint16_t bits;
};

struct Bf16
{
    uint16_t bits;
};

MAMBAPOSE_INLINE float valueOf(float x)
{
    return x;
}
MAMBAPOSE_INLINE float valueOf(Fp16 x)
{
    return floatFromHalf(x.bits);
}
MAMBAPOSE_INLINE float valueOf(Bf16 x)
{
    return floatFromBf16(x.bits);
}
MAMBAPOSE_INLINE void setValue(float& target, float x)
{
    target = x;
}
MAMBAPOSE_INLINE void setValue(Fp16& target, float x)
{
    target.bits = halfFromFloat(x);
}
MAMBAPOSE_INLINE void setValue(Bf16& target, float x)
{
    target.bits = bf16FromFloat(x);
}

struct Vec
{
    float v;

    MAMBAPOSE_INLINE static Vec set(float x)
    {
        return {x};
    }
};

MAMBAPOSE_INLINE Vec operator+(Vec a, Vec b)
{
    return {a.v + b.v};
}
MAMBAPOSE_INLINE Vec operator-(Vec a, Vec b)
{
    return {a.v - b.v};
}
MAMBAPOSE_INLINE Vec operator*(Vec a, Vec b)
{
    return {a.v * b.v};
}
//! a * b + c.
MAMBAPOSE_INLINE Vec fma(Vec a, Vec b, Vec c)
{
    return {fmaf(a.v, b.v, c.v)};
}
//! The larger; x when x is not a number.
MAMBAPOSE_INLINE Vec maxOf(Vec bound, Vec x)
{
    return {bound.v > x.v ? bound.v : x.v};
}
//! The smaller, likewise.
MAMBAPOSE_INLINE Vec minOf(Vec bound, Vec x)
{
    return {bound.v < x.v ? bound.v : x.v};
}
MAMBAPOSE_INLINE Vec absOf(Vec x)
{
    return {fabsf(x.v)};
}
//! Keeps x finite, for exp2Of subtracts it from itself; not a number stays.
MAMBAPOSE_INLINE Vec boundExponent(Vec x)
{
    return minOf(Vec::set(127.0F), maxOf(Vec::set(-126.0F), x));
}

/* The hardware takes any exponent, so the "whole" part is all of it, and what the caller finds left over
 * is the rounding error of the exponent, too small for a second exponential. */
MAMBAPOSE_INLINE Vec roundExponent(Vec x)
{
    return x;
}

//! 2^(k + f) for |f| below 2^-16.
MAMBAPOSE_INLINE Vec exp2OfParts(Vec k, Vec f)
{
    constexpr float kLN_2 = 0.693147182F;
    float const p = exp2Approx(k.v);
    return {fmaf(p, f.v * kLN_2, p)};
}

MAMBAPOSE_INLINE Vec reciprocalOf(Vec x)
{
    return {reciprocalApprox(x.v)};
}

} // namespace cuda
} // namespace mambapose

#include "core/scan_math.h"
#endif
