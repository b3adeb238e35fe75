/* fp16 and fp32 into each other in plain C++, for processors without instructions for it. */
#ifndef MAMBAPOSE_HALF_BITS_H
#define MAMBAPOSE_HALF_BITS_H

#include <stdint.h>
#include <string.h>

namespace mambapose
{
namespace MAMBAPOSE_ISA
{

inline float floatFromBits(uint32_t bits)
{
    float x;
    memcpy(&x, &bits, sizeof x);
    return x;
}

inline uint32_t bitsFromFloat(float x)
{
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    return bits;
}

inline float floatFromHalf(uint16_t half)
{
    uint32_t const sign = (half & 0x8000U) << 16;
    uint32_t const magnitude = half & 0x7FFFU;
    if (magnitude >= 0x7C00U) // Infinity, or not a number made quiet.
    {
        return floatFromBits(sign | 0x7F800000U | (magnitude << 13) | (magnitude > 0x7C00U ? 0x400000U : 0U));
    }
    // The exponent bias differs by 112; scaling by 2^112 also normalises the small values.
    return floatFromBits(sign | bitsFromFloat(floatFromBits(magnitude << 13) * 0x1p112F));
}

inline uint16_t halfFromFloat(float x)
{
    uint32_t const bits = bitsFromFloat(x);
    uint32_t const sign = (bits >> 16) & 0x8000U;
    uint32_t const magnitude = bits & 0x7FFFFFFFU;
    if (magnitude > 0x7F800000U)
    {
        return static_cast<uint16_t>(sign | 0x7E00U);
    }
    if (magnitude >= 0x477FF000U) // 65520 and more round to infinity.
    {
        return static_cast<uint16_t>(sign | 0x7C00U);
    }
    if (magnitude < 0x38800000U) // Below the normal range: one addition rounds to multiples of 2^-24.
    {
        return static_cast<uint16_t>(sign | (bitsFromFloat(floatFromBits(magnitude) + 0.5F) - 0x3F000000U));
    }
    uint32_t const rounded = magnitude + 0xFFFU + ((magnitude >> 13) & 1U);
    return static_cast<uint16_t>(sign | ((rounded - 0x38000000U) >> 13));
}

} // namespace MAMBAPOSE_ISA
} // namespace mambapose
#endif
