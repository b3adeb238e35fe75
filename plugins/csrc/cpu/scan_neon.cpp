/* The kernels for aarch64 NEON, or none when this file is compiled without. */
#include "cpu/scan_isa.h"

#if defined(__aarch64__)

#define MAMBAPOSE_ISA neon
#include "cpu/vec_neon.h"
#include "cpu/scan_kernels.h"

namespace mambapose
{

ScanKernels const* neonKernels()
{
    static constexpr ScanKernels kKERNELS{
        "neon", neon::kW, neon::forwardScratch, neon::forward, neon::backwardScratch, neon::backward};
    return &kKERNELS;
}

} // namespace mambapose

#else

mambapose::ScanKernels const* mambapose::neonKernels()
{
    return nullptr;
}

#endif
