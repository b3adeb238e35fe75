/* The kernels for AVX2, FMA and F16C, or none when this file is compiled without. */
#include "cpu/scan_isa.h"

#if defined(__AVX2__) && defined(__FMA__) && defined(__F16C__)

#define MAMBAPOSE_ISA avx2
#include "cpu/vec_avx2.h"
#include "cpu/scan_kernels.h"

namespace mambapose
{

ScanKernels const* avx2Kernels()
{
    static constexpr ScanKernels kKERNELS{
        "avx2", avx2::kW, avx2::forwardScratch, avx2::forward, avx2::backwardScratch, avx2::backward};
    return &kKERNELS;
}

} // namespace mambapose

#else

mambapose::ScanKernels const* mambapose::avx2Kernels()
{
    return nullptr;
}

#endif
