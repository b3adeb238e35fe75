/* Eight lanes of AVX2 with FMA and F16C. Included by scan_avx2.cpp only. */
#ifndef MAMBAPOSE_VEC_AVX2_H
#define MAMBAPOSE_VEC_AVX2_H

#include <immintrin.h>
#include <stdint.h>

namespace mambapose
{
namespace MAMBAPOSE_ISA
{

struct Vec
{
    static constexpr int kWIDTH = 8;
    static constexpr int kUNROLL = 4; //!< States held in registers by the inner loop.
    __m256 v;

    static Vec set(float x)
    {
        return {_mm256_set1_ps(x)};
    }
    static Vec load(float const* p)
    {
        return {_mm256_loadu_ps(p)};
    }
    static Vec loadHalf(uint16_t const* p)
    {
        return {_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<__m128i const*>(p)))};
    }
    void store(float* p) const
    {
        _mm256_storeu_ps(p, v);
    }
    void storeHalf(uint16_t* p) const
    {
        _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT));
    }
};

inline Vec operator+(Vec a, Vec b)
{
    return {_mm256_add_ps(a.v, b.v)};
}
inline Vec operator-(Vec a, Vec b)
{
    return {_mm256_sub_ps(a.v, b.v)};
}
inline Vec operator*(Vec a, Vec b)
{
    return {_mm256_mul_ps(a.v, b.v)};
}
inline Vec operator/(Vec a, Vec b)
{
    return {_mm256_div_ps(a.v, b.v)};
}
//! a * b + c.
inline Vec fma(Vec a, Vec b, Vec c)
{
    return {_mm256_fmadd_ps(a.v, b.v, c.v)};
}
//! The larger; x when x is not a number.
inline Vec maxOf(Vec bound, Vec x)
{
    return {_mm256_max_ps(bound.v, x.v)};
}
//! The smaller, likewise.
inline Vec minOf(Vec bound, Vec x)
{
    return {_mm256_min_ps(bound.v, x.v)};
}
inline Vec absOf(Vec x)
{
    return {_mm256_andnot_ps(_mm256_set1_ps(-0.0F), x.v)};
}
inline Vec roundOf(Vec x)
{
    return {_mm256_round_ps(x.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)};
}
//! Keeps x in the range where scaleOf is exact; not a number stays.
inline Vec boundExponent(Vec x)
{
    return minOf(Vec::set(127.0F), maxOf(Vec::set(-125.0F), x));
}
//! p * 2^k for whole k within boundExponent and p within a factor of two of 1.
inline Vec scaleOf(Vec p, Vec k)
{
    __m256i const exponent = _mm256_slli_epi32(_mm256_cvtps_epi32(k.v), 23);
    return {_mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(p.v), exponent))};
}
inline float sumOf(Vec x)
{
    __m128 const four = _mm_add_ps(_mm256_castps256_ps128(x.v), _mm256_extractf128_ps(x.v, 1));
    __m128 const two = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
}

//! Results below the normal range become zero while alive: decayed states cost nothing extra.
class FlushDenormals
{
public:
    FlushDenormals()
        : mSaved(_mm_getcsr())
    {
        _mm_setcsr(mSaved | 0x8000U);
    }
    ~FlushDenormals()
    {
        _mm_setcsr(mSaved);
    }
    FlushDenormals(FlushDenormals const&) = delete;
    FlushDenormals& operator=(FlushDenormals const&) = delete;

private:
    unsigned mSaved;
};

} // namespace MAMBAPOSE_ISA
} // namespace mambapose

#include "cpu/exp2_polynomial.h"
#endif
