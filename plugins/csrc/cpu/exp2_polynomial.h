/* 2^x in whole steps and a polynomial, for instruction sets without a table in a register. Needs Vec. */
#ifndef MAMBAPOSE_EXP2_POLYNOMIAL_H
#define MAMBAPOSE_EXP2_POLYNOMIAL_H

namespace mambapose
{
namespace MAMBAPOSE_ISA
{

inline Vec roundExponent(Vec x)
{
    return roundOf(x);
}

//! 2^(k + f) for f in [-0.5, 0.5]: degree 5, relative error 9.1e-8, exactly 1 at 0 so that slow decays keep their rate.
inline Vec exp2OfParts(Vec k, Vec f)
{
    Vec p = Vec::set(0.001326472731307149F);
    p = fma(p, f, Vec::set(0.009671512991189957F));
    p = fma(p, f, Vec::set(0.05550733581185341F));
    p = fma(p, f, Vec::set(0.24022242426872253F));
    p = fma(p, f, Vec::set(0.6931470036506653F));
    p = fma(p, f, Vec::set(1.0F));
    return scaleOf(p, k);
}

inline Vec reciprocalOf(Vec x)
{
    return Vec::set(1.0F) / x;
}

} // namespace MAMBAPOSE_ISA
} // namespace mambapose
#endif
