/* Exponentials of the scan on vectors. Needs Vec of one vec_*.h. */
#ifndef MAMBAPOSE_SCAN_MATH_H
#define MAMBAPOSE_SCAN_MATH_H

#ifndef MAMBAPOSE_INLINE
#define MAMBAPOSE_INLINE inline //!< vec_cuda.h compiles the same functions for the GPU.
#endif

namespace mambapose
{
namespace MAMBAPOSE_ISA
{

constexpr float kLOG2_E = 1.44269504F;
constexpr float kLOG2_E_REST = 1.92596303e-8F; //!< log2(e) - kLOG2_E.

//! 2^x; results below 2^-125 may be 2^-125 or 0.
MAMBAPOSE_INLINE Vec exp2Of(Vec x)
{
    x = boundExponent(x);
    Vec const k = roundExponent(x);
    return exp2OfParts(k, x - k);
}

//! e^x with the product by log2(e) carried in two parts: relative error 2e-7; x is kept within [-86, 87].
MAMBAPOSE_INLINE Vec expOf(Vec x)
{
    x = minOf(Vec::set(87.0F), maxOf(Vec::set(-86.0F), x));
    Vec const k = roundExponent(x * Vec::set(kLOG2_E));
    Vec f = fma(x, Vec::set(kLOG2_E), Vec::set(0.0F) - k);
    f = fma(x, Vec::set(kLOG2_E_REST), f);
    return exp2OfParts(k, f);
}

/* log(1 + e^x) = max(x, 0) + log1p(e^-|x|). log1p(e) = e * P(e) on [0, 1], degree 8, relative error
 * 3.3e-8: small results keep full precision, which log(1 + e) in fp32 would lose. Above 20 the
 * second term is below half a unit in the last place of x, so the threshold needs no branch. */
MAMBAPOSE_INLINE Vec softplusOf(Vec x)
{
    Vec const e = expOf(Vec::set(0.0F) - absOf(x));
    Vec p = Vec::set(0.0053648208267986774F);
    p = fma(p, e, Vec::set(-0.030065778642892838F));
    p = fma(p, e, Vec::set(0.0792045146226883F));
    p = fma(p, e, Vec::set(-0.13753800094127655F));
    p = fma(p, e, Vec::set(0.191536545753479F));
    p = fma(p, e, Vec::set(-0.24857163429260254F));
    p = fma(p, e, Vec::set(0.3332132399082184F));
    p = fma(p, e, Vec::set(-0.49999648332595825F));
    p = fma(p, e, Vec::set(1.0F));
    return fma(e, p, maxOf(Vec::set(0.0F), x));
}

MAMBAPOSE_INLINE Vec sigmoidOf(Vec x)
{
    return reciprocalOf(Vec::set(1.0F) + expOf(Vec::set(0.0F) - x));
}

//! x * sigmoid(x). One part of the exponent is enough: where its error grows, the result is near 0 or x.
MAMBAPOSE_INLINE Vec siluOf(Vec x)
{
    Vec const exponent = minOf(Vec::set(125.0F), x * Vec::set(-kLOG2_E));
    return x * reciprocalOf(Vec::set(1.0F) + exp2Of(exponent));
}

} // namespace MAMBAPOSE_ISA
} // namespace mambapose
#endif
