/* The C interface on the CPU: forward.
 *
 * Sources of the CPU core and their flags (all with -std=c++17 -O3 -fPIC, never -ffast-math; link
 * with the threads library):
 *   scan_cpu.cpp scan_cpu_backward.cpp scan_check.cpp scan_driver.cpp scan_scalar.cpp   base processor
 *   scan_avx2.cpp     x86-64: -mavx2 -mfma -mf16c
 *   scan_avx512.cpp   x86-64: -mavx2 -mfma -mf16c -mavx512f -mavx512bw -mavx512dq -mavx512vl
 *   scan_neon.cpp     aarch64: base flags
 * A file compiled without its flags, or for another processor, offers no kernels: all link everywhere. */
#include "core/scan_check.h"
#include "cpu/scan_driver.h"

#include <stdexcept>

namespace mambapose
{
namespace
{

//! Work split into equal tasks: (batch element [, direction]) x parts of the channel blocks.
struct Split
{
    int64_t outer, parts, blocks;
};

//! The fewest parts with the shortest time for the slowest thread.
Split splitWork(MambaposeScanParams const& p, int64_t width, int64_t threads)
{
    Split best{p.batch * (p.mergeSum ? 1 : p.directions), 1, (p.channels + width - 1) / width};
    int64_t shortest = INT64_MAX;
    for (int64_t parts = 1; parts <= threads && parts <= best.blocks; ++parts)
    {
        int64_t const rounds = (best.outer * parts + threads - 1) / threads;
        int64_t const longest = rounds * ((best.blocks + parts - 1) / parts);
        if (longest < shortest)
        {
            shortest = longest;
            best.parts = parts;
        }
    }
    return best;
}

ScanTask taskOf(MambaposeScanParams const& p, Split const& split, int64_t width, int64_t index)
{
    int64_t const part = index % split.parts;
    int64_t const outer = index / split.parts;
    int64_t const perBatch = p.mergeSum ? 1 : p.directions;
    ScanTask task{&p, outer / perBatch, 0, p.directions, 0, 0, nullptr};
    if (!p.mergeSum)
    {
        task.directionBegin = outer % perBatch;
        task.directionEnd = task.directionBegin + 1;
    }
    int64_t const end = split.blocks * (part + 1) / split.parts * width;
    task.channelBegin = split.blocks * part / split.parts * width;
    task.channelEnd = end < p.channels ? end : p.channels;
    return task;
}

void scanForward(MambaposeScanParams const* params)
{
    if (params == nullptr)
    {
        throw std::invalid_argument("params: a structure was wanted, found none");
    }
    checkParams(*params, true);
    ScanKernels const& kernels = *activeKernels();
    int64_t const threads = usefulThreads(*params);
    Split const split = splitWork(*params, kernels.width, threads);
    runTasks(*params, threads, split.outer * split.parts,
        [&](int64_t index)
        {
            ScanTask task = taskOf(*params, split, kernels.width, index);
            withScratch(kernels.forwardScratch(task),
                [&](float* scratch)
                {
                    task.scratch = scratch;
                    kernels.forward(task);
                });
        });
}

} // namespace
} // namespace mambapose

int mambapose_scan_cpu(MambaposeScanParams const* params, char* error, size_t errorSize)
{
    return mambapose::guarded(error, errorSize, [&] { mambapose::scanForward(params); });
}

int mambapose_scan_spec(void)
{
    return MAMBAPOSE_SCAN_SPEC;
}

int mambapose_scan_abi(void)
{
    return MAMBAPOSE_SCAN_ABI;
}

char const* mambapose_scan_isa(void)
{
    return mambapose::activeKernels()->name;
}

int mambapose_scan_force_isa(char const* name)
{
    return mambapose::forceKernels(name) ? 0 : -1;
}
