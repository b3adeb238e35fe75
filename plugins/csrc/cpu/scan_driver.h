/* Dispatch and work splitting around the kernels; compiled for the base processor. */
#ifndef MAMBAPOSE_SCAN_DRIVER_H
#define MAMBAPOSE_SCAN_DRIVER_H

#include "core/scan_guard.h"
#include "cpu/scan_isa.h"

#include <functional>

namespace mambapose
{

//! The kernels in use: the best of this processor, or the forced ones.
ScanKernels const* activeKernels();

//! False when the named kernels cannot run here; null chooses the best again.
bool forceKernels(char const* name);

//! Threads worth using for this call.
int64_t usefulThreads(MambaposeScanParams const& params);

//! Runs body(0) to body(count - 1) on the caller's pool, or on as many own threads. Rethrows a failure.
void runTasks(
    MambaposeScanParams const& params, int64_t threads, int64_t count, std::function<void(int64_t)> const& body);

//! Calls body with 64-byte aligned scratch. Throws std::runtime_error when there is no memory.
void withScratch(int64_t floats, std::function<void(float*)> const& body);

} // namespace mambapose
#endif
