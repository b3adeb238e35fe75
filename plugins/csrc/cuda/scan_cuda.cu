/* The C interface on CUDA: forward. */
#include "cuda/scan_cuda.h"

#include "core/scan_check.h"
#include "core/scan_guard.h"
#include "cuda/scan_cuda_forward.h"

#include <stdexcept>
#include <string>
#include <utility>

namespace mambapose
{
namespace
{

constexpr unsigned kMERGE_THREADS = 256;

void want(cudaError_t status, char const* what)
{
    if (status != cudaSuccess)
    {
        throw std::runtime_error(std::string(what) + ": success was wanted, found " + cudaGetErrorString(status));
    }
}

template <int FORM, bool CONSTANTS>
void launchForm(ForwardLaunch const& call, cudaStream_t stream)
{
    size_t const shared = static_cast<size_t>(call.task.at.bytes);
    if (call.carryBlocks > 0)
    {
        want(launch(cuda::scanForward<cuda::Kind<FORM, CONSTANTS, true>>, call.carryBlocks, call.threads, shared,
                 stream, call.task),
            "launch of the carry kernel");
    }
    want(launch(cuda::scanForward<cuda::Kind<FORM, CONSTANTS, false>>, call.blocks, call.threads, shared, stream,
             call.task),
        "launch of the scan kernel");
}

template <int FORM>
void launchIf(ForwardLaunch const& call, cudaStream_t stream)
{
    if (call.form != FORM)
    {
        return;
    }
    if (!call.constants)
    {
        launchForm<FORM, false>(call, stream);
    }
    else if constexpr (takesConstants(kFORMS[FORM]))
    {
        launchForm<FORM, true>(call, stream);
    }
}

template <int... FORMS>
void launchScan(ForwardLaunch const& call, cudaStream_t stream, std::integer_sequence<int, FORMS...>)
{
    (launchIf<FORMS>(call, stream), ...);
}

void launchMerge(ForwardTask const& task, cudaStream_t stream)
{
    int32_t threadShift = 5;
    while (1 << threadShift < task.p.channels && 1U << threadShift < kMERGE_THREADS)
    {
        ++threadShift;
    }
    int64_t const rowsPerBlock = kMERGE_THREADS >> threadShift;
    int64_t const blocks = (task.p.batch * task.p.length + rowsPerBlock - 1) / rowsPerBlock;
    if (blocks > INT32_MAX)
    {
        throw std::invalid_argument("batch: fewer than 2^31 rows to merge were wanted, found more; "
                                    "call with parts of the batch");
    }
    if (blocks > 0)
    {
        want(launch(cuda::mergeDirections, static_cast<unsigned>(blocks), kMERGE_THREADS, size_t{0}, stream, task,
                 threadShift),
            "launch of the merging kernel");
    }
}

void scanForward(MambaposeScanParams const* params, MambaposeCudaPlan const* plan, void* workspace,
    size_t workspaceBytes, void* stream)
{
    if (params == nullptr || plan == nullptr)
    {
        throw std::invalid_argument("params and plan: two structures were wanted, found none");
    }
    ForwardLaunch const call = launchOf(*params, *plan, workspace);
    auto const wanted = static_cast<size_t>(plan->workspaceBytes);
    if (wanted > 0 && (workspace == nullptr || workspaceBytes < wanted))
    {
        throw std::invalid_argument("workspace: " + std::to_string(wanted) + " bytes were wanted, found "
            + std::to_string(workspace == nullptr ? 0 : workspaceBytes));
    }
    if (wanted > 0 && reinterpret_cast<uintptr_t>(workspace) % 256 != 0)
    {
        throw std::invalid_argument("workspace: an address that is a multiple of 256 was wanted, found another one");
    }
    if (call.blocks == 0)
    {
        return; // An empty batch.
    }
    auto const queue = static_cast<cudaStream_t>(stream);
    launchScan(call, queue, std::make_integer_sequence<int, kFORMS_COUNT>());
    if (call.task.partials != nullptr)
    {
        launchMerge(call.task, queue);
    }
}

int32_t attributeOf(cudaDeviceAttr attribute)
{
    int device = 0, value = 0;
    want(cudaGetDevice(&device), "current device");
    want(cudaDeviceGetAttribute(&value, attribute, device), "attribute of the device");
    return value;
}

} // namespace
} // namespace mambapose

int mambapose_scan_cuda(MambaposeScanParams const* params, MambaposeCudaPlan const* plan, void* workspace,
    size_t workspaceBytes, void* stream, char* error, size_t errorSize)
{
    return mambapose::guarded(error, errorSize,
        [&] { mambapose::scanForward(params, plan, workspace, workspaceBytes, stream); });
}

int mambapose_scan_cuda_device(int32_t* multiprocessors, int32_t* computeCapability, char* error, size_t errorSize)
{
    return mambapose::guarded(error, errorSize,
        [&]
        {
            if (multiprocessors == nullptr || computeCapability == nullptr)
            {
                throw std::invalid_argument(
                    "multiprocessors and computeCapability: two numbers were wanted, found none");
            }
            *multiprocessors = mambapose::attributeOf(cudaDevAttrMultiProcessorCount);
            *computeCapability = 10 * mambapose::attributeOf(cudaDevAttrComputeCapabilityMajor)
                + mambapose::attributeOf(cudaDevAttrComputeCapabilityMinor);
        });
}

char const* mambapose_scan_cuda_version(void)
{
    return "1";
}
