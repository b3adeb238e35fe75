/* What the driver asks of an instruction set: plain data and function pointers only, because an
 * inline function here could be compiled with AVX-512 and then be picked for every caller. */
#ifndef MAMBAPOSE_SCAN_ISA_H
#define MAMBAPOSE_SCAN_ISA_H

#include "core/mambapose_scan.h"

namespace mambapose
{

//! Directions and channels of one batch element, run by one thread without help.
struct ScanTask
{
    MambaposeScanParams const* params;
    int64_t batch;
    int64_t directionBegin, directionEnd;
    int64_t channelBegin, channelEnd; //!< channelBegin is a multiple of ScanKernels::width.
    float* scratch;                   //!< As many floats as the scratch function asked for.
};

//! Where a backward task leaves what other tasks add to as well. Null: not wanted.
struct BackwardTask
{
    ScanTask scan;
    MambaposeScanGrads const* grads;
    float *gA, *gD, *gDtBias;     //!< Of this batch element: (K*D, N), (K*D), (K*D).
    float *gB, *gC;               //!< Of this batch element and channel range; (L, columns) or (K*D, N).
    int64_t bRowStride, cRowStride;
};

struct ScanKernels
{
    char const* name;
    int64_t width;
    int64_t (*forwardScratch)(ScanTask const& task);
    void (*forward)(ScanTask const& task);
    int64_t (*backwardScratch)(ScanTask const& task);
    void (*backward)(BackwardTask const& task);
};

//! Null when the file was compiled without the flags of its instruction set.
ScanKernels const* scalarKernels();
ScanKernels const* avx2Kernels();
ScanKernels const* avx512Kernels();
ScanKernels const* neonKernels();

} // namespace mambapose
#endif
