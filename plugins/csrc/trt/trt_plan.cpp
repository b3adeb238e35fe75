#include "trt/trt_plan.h"

#include <algorithm>
#include <array>
#include <stdexcept>
#include <string>

namespace mambapose
{
namespace
{

constexpr size_t kERROR_SIZE = 512;

// Pieces of the length beyond these are never fast: they are too short, or there are more than fill the GPU.
constexpr int64_t kSHORTEST_PIECE = 3;
constexpr int64_t kMOST_PIECES = 64;
constexpr int64_t kTHREADS_PER_MULTIPROCESSOR = 2048;

constexpr int64_t kALIGNMENT_SLACK = 1024;

//! A plan, or the sentence that says why there is none.
struct Attempt
{
    MambaposeCudaPlan plan{};
    std::array<char, kERROR_SIZE> error{};
    bool isGood{false};
};

Attempt attempt(MambaposeScanParams const& params, int32_t tactic, int32_t multiprocessors)
{
    Attempt made;
    made.plan.structSize = sizeof(made.plan);
    int const status = mambapose_scan_cuda_plan(
        &params, tactic, multiprocessors, &made.plan, made.error.data(), made.error.size());
    made.isGood = status == 0 && made.plan.workspaceBytes <= workspaceBound(params, multiprocessors);
    return made;
}

bool launchesAlike(MambaposeCudaPlan const& a, MambaposeCudaPlan const& b)
{
    return a.lanes == b.lanes && a.statesPerLane == b.statesPerLane && a.threads == b.threads
        && a.tileSteps == b.tileSteps && a.fused == b.fused && a.chunks == b.chunks && a.chunkSteps == b.chunkSteps;
}

} // namespace

MambaposeCudaPlan planFrom(MambaposeScanParams const& params, int32_t tactic, int32_t multiprocessors)
{
    std::string reason;
    // The last two need no room for pieces of the length, so they fit.
    for (int32_t const candidate :
        {tactic, int32_t{MAMBAPOSE_CUDA_AUTO}, int32_t{MAMBAPOSE_CUDA_LANE_SPLIT}, int32_t{MAMBAPOSE_CUDA_SEQUENTIAL}})
    {
        Attempt const made = attempt(params, candidate, multiprocessors);
        if (made.isGood)
        {
            return made.plan;
        }
        reason = made.error.data();
    }
    throw std::invalid_argument(reason.empty() ? "workspace: a plan within its bound was wanted, found none" : reason);
}

std::vector<int32_t> distinctTactics(MambaposeScanParams const& params, int32_t multiprocessors)
{
    std::vector<int32_t> tactics;
    std::vector<MambaposeCudaPlan> plans;
    for (int32_t const tactic : {MAMBAPOSE_CUDA_SEQUENTIAL, MAMBAPOSE_CUDA_LANE_SPLIT, MAMBAPOSE_CUDA_CHUNKED})
    {
        Attempt const made = attempt(params, tactic, multiprocessors);
        auto const isSame = [&](MambaposeCudaPlan const& plan) { return launchesAlike(plan, made.plan); };
        if (made.isGood && std::none_of(plans.begin(), plans.end(), isSame))
        {
            tactics.push_back(tactic);
            plans.push_back(made.plan);
        }
    }
    if (tactics.empty())
    {
        planFrom(params, MAMBAPOSE_CUDA_AUTO, multiprocessors); // says why
    }
    return tactics;
}

int64_t workspaceBound(MambaposeScanParams const& params, int32_t multiprocessors)
{
    // A plan's own need is no bound: a smaller batch is cut into more pieces. This grows with batch and length.
    int64_t const columns = params.batch * params.directions * params.channels;
    int64_t const pieces = std::min((params.length + kSHORTEST_PIECE - 1) / kSHORTEST_PIECE, kMOST_PIECES);
    int64_t const filled = 2 * columns + multiprocessors * kTHREADS_PER_MULTIPROCESSOR;
    int64_t const carries = std::min(columns * pieces, filled) * (params.states + 1); // a state and a sum each
    bool const keepsSums = params.mergeSum != 0 && params.directions > 1;
    int64_t const sums = keepsSums ? columns * params.length : 0;
    return (carries + sums) * static_cast<int64_t>(sizeof(float)) + kALIGNMENT_SLACK;
}

} // namespace mambapose
