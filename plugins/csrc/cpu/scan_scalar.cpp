/* The kernels for any processor. */
#include "cpu/scan_isa.h"

#define MAMBAPOSE_ISA scalar
#include "cpu/vec_scalar.h"
#include "cpu/scan_kernels.h"

namespace mambapose
{

ScanKernels const* scalarKernels()
{
    static constexpr ScanKernels kKERNELS{
        "scalar", scalar::kW, scalar::forwardScratch, scalar::forward, scalar::backwardScratch, scalar::backward};
    return &kKERNELS;
}

} // namespace mambapose
