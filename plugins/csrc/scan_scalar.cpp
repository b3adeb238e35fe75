/* The kernels for any processor. */
#include "scan_isa.h"

#define MAMBAPOSE_ISA scalar
#include "vec_scalar.h"
#include "scan_kernels.h"

namespace mambapose
{

ScanKernels const* scalarKernels()
{
    static constexpr ScanKernels kKERNELS{
        "scalar", scalar::kW, scalar::forwardScratch, scalar::forward, scalar::backwardScratch, scalar::backward};
    return &kKERNELS;
}

} // namespace mambapose
