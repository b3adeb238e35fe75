// The workspace the plugin asks for suffices: the bound grows with batch and length, no plan goes beyond it, and the
// form expected to be fastest never gives way to it. Prints what was looked at; fails with the first shape that breaks.
#include "trt/trt_plan.h"
#include "trt/trt_shapes.h"

#include <cstdio>
#include <cstdlib>

using namespace mambapose;

namespace
{

struct Network
{
    char const* name;
    int32_t directions;
    int64_t channels, states;
    char const* merge;
    int32_t segment;
};

constexpr Network kNETWORKS[] = {{"vim", 2, 384, 16, "sum", 0}, {"vmamba", 4, 96, 1, "sum", 0},
    {"posemamba", 2, 128, 16, "sum", 0}, {"windows", 2, 128, 16, "sum", 240}, {"global", 6, 128, 16, "sum", 0},
    {"mambapose", 1, 256, 256, "none", 0}, {"causal", 1, 64, 16, "none", 0}, {"narrow", 2, 3, 64, "none", 0}};
constexpr int64_t kBATCHES[] = {0, 1, 2, 3, 5, 8, 16, 64};
constexpr int64_t kLENGTHS[] = {0, 1, 2, 17, 49, 196, 197, 240, 784, 1024, 4131, 15360};
constexpr int32_t kMULTIPROCESSORS[] = {4, 8, 16, 20, 132};

MambaposeScanParams paramsOf(Network const& network, int64_t batch, int64_t length)
{
    ScanAttributes attributes;
    attributes.directions = network.directions;
    attributes.reverse.assign(static_cast<size_t>(network.directions), 0);
    attributes.merge = network.merge;
    attributes.segment = network.segment;
    ScanSizes sizes;
    sizes.batch = batch;
    sizes.length = length;
    sizes.channels = network.channels;
    sizes.states = network.states;
    return paramsFromSizes(attributes, sizes, nvinfer1::DataType::kHALF);
}

struct Count
{
    int64_t shapes{0}, plans{0}, withWorkspace{0};
};

struct Place
{
    Network network;
    int32_t units;
    int64_t batch, length;
};

void want(bool condition, char const* otherwise, Place const& at)
{
    if (!condition)
    {
        std::printf("%s: %s, batch %lld, length %lld, %d multiprocessors\n", otherwise, at.network.name,
            static_cast<long long>(at.batch), static_cast<long long>(at.length), at.units);
        std::exit(EXIT_FAILURE);
    }
}

//! Bytes that the fastest plan needs, as the library makes it.
int64_t plainNeed(MambaposeScanParams const& params, Place const& at)
{
    MambaposeCudaPlan plan{};
    plan.structSize = sizeof(plan);
    char error[512] = "";
    int const status
        = mambapose_scan_cuda_plan(&params, MAMBAPOSE_CUDA_AUTO, at.units, &plan, error, sizeof(error));
    want(status == 0, error, at);
    return plan.workspaceBytes;
}

void check(Place const& at, Count& count)
{
    MambaposeScanParams const params = paramsOf(at.network, at.batch, at.length);
    int64_t const bound = workspaceBound(params, at.units);
    auto const boundAt = [&](int64_t batch, int64_t length)
    { return batch < 0 || length < 0 ? 0 : workspaceBound(paramsOf(at.network, batch, length), at.units); };
    want(bound >= boundAt(at.batch - 1, at.length), "the bound shrinks with the batch", at);
    want(bound >= boundAt(at.batch, at.length - 1), "the bound shrinks with the length", at);
    want(plainNeed(params, at) <= bound, "the fastest form does not fit", at);
    for (int32_t tactic = MAMBAPOSE_CUDA_AUTO; tactic <= MAMBAPOSE_CUDA_CHUNKED; ++tactic)
    {
        MambaposeCudaPlan const plan = planFrom(params, tactic, at.units);
        want(plan.workspaceBytes <= bound, "a plan goes beyond the bound", at);
        count.plans += 1;
        count.withWorkspace += plan.workspaceBytes > 0;
    }
    count.shapes += 1;
}

} // namespace

int main()
{
    Count count;
    for (Network const& network : kNETWORKS)
    {
        for (int32_t const units : kMULTIPROCESSORS)
        {
            for (int64_t const batch : kBATCHES)
            {
                for (int64_t const length : kLENGTHS)
                {
                    check({network, units, batch, length}, count);
                }
            }
        }
    }
    std::printf("%lld shapes, %lld plans, %lld of them with a workspace\n", static_cast<long long>(count.shapes),
        static_cast<long long>(count.plans), static_cast<long long>(count.withWorkspace));
    return count.withWorkspace > 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
