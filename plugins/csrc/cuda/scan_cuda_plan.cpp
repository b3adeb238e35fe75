#include "cuda/scan_cuda_plan.h"

#include "core/scan_check.h"
#include "core/scan_guard.h"
#include "cuda/scan_cuda_cost.h"

#include <algorithm>
#include <limits>
#include <stdexcept>
#include <string>

namespace mambapose
{
namespace
{

constexpr int64_t kMAX_SHARED = 48 << 10; //!< What every GPU grants without being asked.
constexpr int64_t kMAX_BLOCKS = INT32_MAX;
constexpr int64_t kALIGNMENT = 256;
constexpr int kTILE_STEPS = 64; //!< Enough to hide the loads of the next tile behind a tile's work.
constexpr int64_t kPIECES[] = {1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64};
constexpr int64_t kSHORTEST_PIECE = 4;      //!< Steps, unless pieces were asked for.
constexpr int64_t kTHREADS_PER_UNIT = 2048; //!< That a multiprocessor holds at most.

template <class T>
T ceilDivide(T a, T b)
{
    return (a + b - 1) / b;
}

template <class T>
T roundUp(T a, T b)
{
    return ceilDivide(a, b) * b;
}

//! What a plan decides; everything else follows from it and the parameters.
struct Choice
{
    int form = 0;
    int64_t chunkSteps = 1;
    bool fused = false;

    WarpForm const& warp() const
    {
        return kFORMS[form];
    }
    int advance() const
    {
        return warp().timeLanes * warp().stepsPerThread;
    }
};

bool mergesDirections(MambaposeScanParams const& p)
{
    return p.mergeSum && p.directions > 1;
}

//! Pieces that begin with a reset are independent; others need the state of those before.
bool needsCarry(MambaposeScanParams const& p, int64_t chunks)
{
    return chunks > 1 && p.segment == 0;
}

int64_t chunksOf(MambaposeScanParams const& p, int64_t chunkSteps)
{
    return std::max<int64_t>(ceilDivide(p.length, chunkSteps), 1);
}

int stateWarpsOf(MambaposeScanParams const& p, WarpForm const& form)
{
    return static_cast<int>(ceilDivide<int64_t>(p.states, form.statesPerThread));
}

int channelWarpsOf(int stateWarps)
{
    return stateWarps == 1 ? 4 : stateWarps == 2 ? 2 : 1;
}

//! Fills the layout for tiles of task.tileSteps; returns the bytes it takes.
int64_t layOut(ForwardTask& task, Choice const& choice)
{
    MambaposeScanParams const& p = task.p;
    int64_t const size = p.dtype == MAMBAPOSE_FP32 ? 4 : 2;
    int64_t const steps = task.tileSteps, channels = task.blockChannels, pitch = task.pitch;
    int64_t const states = task.stateWarps * choice.warp().statesPerThread;
    SharedLayout& at = task.at;
    int64_t taken = 0;
    auto const take = [&](int64_t bytes)
    {
        int64_t const place = taken;
        taken += roundUp<int64_t>(bytes, 16);
        return static_cast<int32_t>(std::min<int64_t>(place, INT32_MAX));
    };
    at.channelPitch = static_cast<int32_t>(channels * size);
    at.matrixPitch = static_cast<int32_t>(roundUp<int64_t>(p.states * size, 16));
    at.walk = take(kWALK_BYTES);
    at.tiles = take(kTILES * kTILE_BYTES);
    at.rows = take(kROW_COPIES_BYTES);
    at.bias = take(channels * 4);
    at.skip = take(channels * 4);
    at.tokens = take(kTOKEN_TILES * steps * 4);
    at.dt = take(2 * steps * at.channelPitch);
    at.u = take(3 * steps * at.channelPitch);
    at.z = take(3 * steps * at.channelPitch);
    at.B = take(p.bConstant ? 0 : 2 * steps * at.matrixPitch);
    at.C = take(p.cConstant ? 0 : 2 * steps * at.matrixPitch);
    at.s = take(channels * pitch * 4);
    at.su = take(channels * pitch * 4);
    at.inputs = take(states * (p.bConstant ? channels : pitch) * 4);
    at.outputs = take(states * (p.cConstant ? channels : pitch) * 4);
    at.y = take(task.stateWarps * channels * pitch * 4);
    at.sums = take(choice.fused ? choice.chunkSteps * channels * 4 : 0);
    at.bytes = static_cast<int32_t>(std::min<int64_t>(taken, INT32_MAX));
    return taken;
}

//! Chooses the longest tile that fits and has use. False when none fits.
bool setTile(ForwardTask& task, Choice const& choice)
{
    int64_t const longest = task.segment > 0 ? std::min(task.segment, task.chunkSteps) : task.chunkSteps;
    int64_t const useful = roundUp<int64_t>(std::max<int64_t>(longest, 1), choice.advance());
    int64_t steps = std::min<int64_t>(useful, roundUp(kTILE_STEPS, choice.advance()));
    for (; steps > 0; steps -= choice.advance())
    {
        task.tileSteps = static_cast<int32_t>(steps);
        // Rows an odd number of 16 bytes apart fall into different banks.
        task.pitch = task.tileSteps % 8 == 0 ? task.tileSteps + 4 : task.tileSteps;
        if (layOut(task, choice) <= kMAX_SHARED)
        {
            return true;
        }
    }
    return false;
}

//! False when the kernels cannot compute this call in this way.
bool isPossible(MambaposeScanParams const& p, Choice const& choice)
{
    bool const constants = p.bConstant || p.cConstant, oneOrder = p.order == nullptr || p.orderRows == 1;
    bool const cut = choice.chunkSteps < p.length;
    // Walked backwards from the last step, resets meet the ends of pieces only if the segments fill the length.
    bool const resetsMeet = choice.chunkSteps % std::max<int64_t>(p.segment, 1) == 0
        && (p.reverseMask == 0 || p.segment == 0 || p.length % p.segment == 0);
    return stateWarpsOf(p, choice.warp()) <= choice.warp().maxWarps && (!constants || takesConstants(choice.warp()))
        && (!choice.fused || (mergesDirections(p) && oneOrder)) && (!cut || resetsMeet);
}

//! Sets the channels of a block and the tile they leave room for. False when none fits.
bool setChannels(ForwardTask& task, Choice const& choice)
{
    MambaposeScanParams const& p = task.p;
    int const all = channelWarpsOf(task.stateWarps) * kWARP / choice.warp().timeLanes;
    // Constant B and C of many states fill the shared memory with few channels, so some threads do without one.
    int const fewest = p.bConstant || p.cConstant ? std::min(all, 8) : all;
    for (int channels = all; channels >= fewest; channels /= 2)
    {
        task.blockChannels = channels;
        task.channelShift = 0;
        while (1 << task.channelShift < channels)
        {
            ++task.channelShift;
        }
        task.groupBlocks = static_cast<int32_t>(ceilDivide<int64_t>(p.channels / p.groups, channels));
        if (setTile(task, choice))
        {
            return true;
        }
    }
    return false;
}

//! Everything of a launch but its memory. False when this choice cannot run.
bool setLaunch(MambaposeScanParams const& p, Choice const& choice, ForwardLaunch& launch)
{
    if (!isPossible(p, choice))
    {
        return false;
    }
    ForwardTask& task = launch.task;
    task.p = p;
    task.stateWarps = stateWarpsOf(p, choice.warp());
    task.chunks = static_cast<int32_t>(chunksOf(p, choice.chunkSteps));
    task.chunkSteps = static_cast<int32_t>(choice.chunkSteps);
    task.segment = p.segment > 0 && p.segment < choice.chunkSteps ? static_cast<int32_t>(p.segment) : 0;
    task.fused = choice.fused;
    if (!setChannels(task, choice))
    {
        return false;
    }
    double blocks = static_cast<double>(p.batch) * static_cast<double>(p.groups * p.directions);
    blocks *= static_cast<double>(task.groupBlocks) * static_cast<double>(task.chunks);
    if (blocks > static_cast<double>(kMAX_BLOCKS))
    {
        return false;
    }
    int const threads = task.stateWarps * channelWarpsOf(task.stateWarps) * kWARP;
    int const storing = roundUp(task.tileSteps / 4 * task.blockChannels, kWARP);
    task.stepsThread = storing % threads;
    task.matricesThread = 2 * storing % threads;
    int64_t const walks = choice.fused ? 1 : p.directions, lines = p.batch * p.groups * task.groupBlocks;
    launch.form = choice.form;
    launch.constants = p.bConstant || p.cConstant;
    launch.threads = static_cast<unsigned>(threads);
    launch.blocks = static_cast<unsigned>(lines * walks * task.chunks);
    bool const carry = needsCarry(p, task.chunks);
    launch.carryBlocks = carry ? static_cast<unsigned>(lines * p.directions * (task.chunks - 1)) : 0;
    return true;
}

//! Divides the workspace, or counts without one.
int64_t setMemory(ForwardTask& task, unsigned char* memory)
{
    MambaposeScanParams const& p = task.p;
    int64_t taken = 0;
    auto const take = [&](bool wanted, int64_t floats) -> float*
    {
        unsigned char* const piece = memory == nullptr || !wanted ? nullptr : memory + taken;
        taken += wanted ? roundUp<int64_t>(floats * 4, kALIGNMENT) : 0;
        return reinterpret_cast<float*>(piece);
    };
    int64_t const wide = p.directions * p.channels;
    bool const carry = needsCarry(p, task.chunks);
    task.ends = take(carry, p.batch * task.chunks * p.states * wide);
    task.stepSums = take(carry, p.batch * task.chunks * wide);
    task.partials = take(mergesDirections(p) && !task.fused, p.batch * p.length * wide);
    return taken;
}

//! The plan of a launch, as far as it does not depend on who asked.
MambaposeCudaPlan planOf(ForwardLaunch& launch)
{
    ForwardTask& task = launch.task;
    WarpForm const& form = kFORMS[launch.form];
    MambaposeCudaPlan plan{};
    plan.structSize = sizeof plan;
    plan.lanes = task.stateWarps * form.timeLanes;
    plan.statesPerLane = form.statesPerThread;
    plan.threads = static_cast<int32_t>(launch.threads);
    plan.tileSteps = task.tileSteps;
    plan.fused = task.fused;
    plan.chunks = task.chunks;
    plan.chunkSteps = task.chunkSteps;
    plan.sharedBytes = task.at.bytes;
    plan.workspaceBytes = setMemory(task, nullptr);
    return plan;
}

/* Whether pieces may pay: more of them than fill the device with one thread each only need memory for their ends.
 * The bound that the TensorRT plugin gives for its workspace rests on this. */
bool mayPay(MambaposeScanParams const& p, int32_t family, int32_t multiprocessors, int64_t chunkSteps)
{
    int64_t const chunks = chunksOf(p, chunkSteps), columns = p.batch * p.directions * p.channels;
    bool const asked = family == MAMBAPOSE_CUDA_CHUNKED;
    return chunks == 1
        || ((asked || chunkSteps >= kSHORTEST_PIECE)
            && (chunks == 2 || (chunks - 2) * columns <= multiprocessors * kTHREADS_PER_UNIT));
}

//! Steps of a piece when the length is cut into so many.
int64_t chunkStepsFor(MambaposeScanParams const& p, int64_t pieces, int advance)
{
    int64_t const all = std::max<int64_t>(p.length, 1), even = ceilDivide(all, pieces);
    int64_t const unit = p.segment > 0 ? p.segment : even >= 4 * advance ? advance : 1;
    return std::min(all, unit > all ? all : roundUp(even, unit));
}

int32_t familyOf(MambaposeCudaPlan const& plan, int32_t fewestLanes)
{
    return plan.chunks > 1 ? MAMBAPOSE_CUDA_CHUNKED
        : plan.lanes > fewestLanes ? MAMBAPOSE_CUDA_LANE_SPLIT : MAMBAPOSE_CUDA_SEQUENTIAL;
}

int32_t fewestLanesOf(MambaposeScanParams const& p)
{
    int fewest = INT32_MAX;
    for (WarpForm const& form : kFORMS)
    {
        fewest = std::min(fewest, stateWarpsOf(p, form));
    }
    return fewest;
}

//! The best plan of a family, or of all for AUTO. False when nothing in it can run.
bool findPlan(MambaposeScanParams const& p, int32_t family, int32_t multiprocessors, MambaposeCudaPlan& best)
{
    double shortest = std::numeric_limits<double>::infinity();
    int32_t const fewestLanes = fewestLanesOf(p);
    for (Choice choice; choice.form < kFORMS_COUNT; ++choice.form)
    {
        for (int64_t const pieces : kPIECES)
        {
            for (bool const fused : {false, true})
            {
                choice.fused = fused;
                choice.chunkSteps = chunkStepsFor(p, pieces, choice.advance());
                ForwardLaunch launch{};
                if (!mayPay(p, family, multiprocessors, choice.chunkSteps) || !setLaunch(p, choice, launch))
                {
                    continue;
                }
                MambaposeCudaPlan const plan = planOf(launch);
                double const cycles = Cost(launch, multiprocessors).cycles();
                bool const wanted = family == MAMBAPOSE_CUDA_AUTO || familyOf(plan, fewestLanes) == family;
                if (wanted && cycles < shortest)
                {
                    shortest = cycles;
                    best = plan;
                    best.tactic = familyOf(plan, fewestLanes);
                }
            }
        }
    }
    return shortest < std::numeric_limits<double>::infinity();
}

void wantRange(char const* name, int64_t value, int64_t from, int64_t to)
{
    if (value < from || value > to)
    {
        throw std::invalid_argument(std::string(name) + ": " + std::to_string(from) + " to " + std::to_string(to)
            + " was wanted, found " + std::to_string(value));
    }
}

//! A caller built with another header has less memory for a plan, or other fields in it.
void wantPlanSize(MambaposeCudaPlan const& plan)
{
    wantRange("plan.structSize", plan.structSize, sizeof plan, sizeof plan);
}

bool isSame(MambaposeCudaPlan const& a, MambaposeCudaPlan const& b)
{
    return a.lanes == b.lanes && a.statesPerLane == b.statesPerLane && a.threads == b.threads
        && a.tileSteps == b.tileSteps && a.fused == b.fused && a.chunks == b.chunks && a.chunkSteps == b.chunkSteps
        && a.sharedBytes == b.sharedBytes && a.workspaceBytes == b.workspaceBytes;
}

} // namespace

MambaposeCudaPlan planForward(MambaposeScanParams const& p, int32_t tactic, int32_t multiprocessors)
{
    checkDeviceSizes(p);
    wantRange("tactic", tactic, MAMBAPOSE_CUDA_AUTO, MAMBAPOSE_CUDA_CHUNKED);
    wantRange("multiprocessors", multiprocessors, 1, INT32_MAX);
    MambaposeCudaPlan plan{};
    // A length of one step has no pieces, for example: then a forced family runs as the best of the others.
    if (!findPlan(p, tactic, multiprocessors, plan) && !findPlan(p, MAMBAPOSE_CUDA_AUTO, multiprocessors, plan))
    {
        throw std::invalid_argument("batch: fewer than 2^31 blocks of threads were wanted, found more; "
            "call with parts of the batch");
    }
    plan.tactic = tactic == MAMBAPOSE_CUDA_AUTO ? plan.tactic : tactic;
    plan.multiprocessors = multiprocessors;
    return plan;
}

ForwardLaunch launchOf(MambaposeScanParams const& p, MambaposeCudaPlan const& plan, void* workspace)
{
    checkDeviceParams(p, true);
    wantPlanSize(plan);
    wantRange("plan.chunkSteps", plan.chunkSteps, 1, std::max<int64_t>(p.length, 1));
    Choice choice;
    choice.chunkSteps = plan.chunkSteps;
    choice.fused = plan.fused != 0;
    for (; choice.form < kFORMS_COUNT; ++choice.form)
    {
        ForwardLaunch launch{};
        if (setLaunch(p, choice, launch) && isSame(planOf(launch), plan))
        {
            setMemory(launch.task, static_cast<unsigned char*>(workspace));
            return launch;
        }
    }
    throw std::invalid_argument("plan: one made for these parameters was wanted, found one that does not fit them; "
        "call mambapose_scan_cuda_plan after every change of sizes, attributes or types");
}

} // namespace mambapose

int mambapose_scan_cuda_plan(MambaposeScanParams const* params, int32_t tactic, int32_t multiprocessors,
    MambaposeCudaPlan* plan, char* error, size_t errorSize)
{
    return mambapose::guarded(error, errorSize,
        [&]
        {
            if (params == nullptr || plan == nullptr)
            {
                throw std::invalid_argument("params and plan: two structures were wanted, found none");
            }
            mambapose::wantPlanSize(*plan);
            *plan = mambapose::planForward(*params, tactic, multiprocessors);
        });
}
