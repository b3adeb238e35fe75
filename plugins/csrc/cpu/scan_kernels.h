/* The kernels of one instruction set behind function pointers. A scan_<isa>.cpp defines
 * MAMBAPOSE_ISA, includes its vec_*.h and then this. */
#ifndef MAMBAPOSE_SCAN_KERNELS_H
#define MAMBAPOSE_SCAN_KERNELS_H

#include "cpu/scan_backward.h"
#include "cpu/scan_forward.h"

namespace mambapose
{
namespace MAMBAPOSE_ISA
{

inline int64_t forwardScratch(ScanTask const& task)
{
    return task.params->dtype == MAMBAPOSE_FP16 ? Forward<Half>::scratchSize(task) : Forward<float>::scratchSize(task);
}

inline void forward(ScanTask const& task)
{
    [[maybe_unused]] FlushDenormals const flush;
    if (task.params->dtype == MAMBAPOSE_FP16)
    {
        Forward<Half>(task).run();
        return;
    }
    Forward<float>(task).run();
}

inline int64_t backwardScratch(ScanTask const& task)
{
    return Backward::scratchSize(task);
}

inline void backward(BackwardTask const& task)
{
    [[maybe_unused]] FlushDenormals const flush;
    Backward(task).run();
}

} // namespace MAMBAPOSE_ISA
} // namespace mambapose
#endif
