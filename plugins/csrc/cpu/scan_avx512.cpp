/* The kernels for AVX-512 F, BW, DQ and VL, or none when this file is compiled without. */
#include "cpu/scan_isa.h"

#if defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512DQ__) && defined(__AVX512VL__)

#define MAMBAPOSE_ISA avx512
#include "cpu/vec_avx512.h"
#include "cpu/scan_kernels.h"

namespace mambapose
{

ScanKernels const* avx512Kernels()
{
    static constexpr ScanKernels kKERNELS{
        "avx512", avx512::kW, avx512::forwardScratch, avx512::forward, avx512::backwardScratch, avx512::backward};
    return &kKERNELS;
}

} // namespace mambapose

#else

mambapose::ScanKernels const* mambapose::avx512Kernels()
{
    return nullptr;
}

#endif
