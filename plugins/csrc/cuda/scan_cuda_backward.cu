/* The C interface on CUDA: backward. Three launches; every sum has one order, which depends on the shapes
 * alone: gradients are the same bits on every number of multiprocessors. */
#include "core/scan_check.h"
#include "core/scan_guard.h"
#include "cuda/scan_cuda.h"
#include "cuda/scan_cuda_backward_gradients.h"
#include "cuda/scan_cuda_backward_walk.h"
#include "cuda/scan_cuda_sum.h"

#include <algorithm>
#include <cstdint>
#include <stdexcept>
#include <string>

namespace mambapose
{
namespace backward
{
namespace
{

constexpr int64_t kALIGNMENT = 256;
constexpr int64_t kMOST_CHANNELS = int64_t{1} << 30; //!< Channels of all directions are counted in 32 bits.
constexpr int64_t kSLICE = 16;       //!< Parts of one element that are worth a thread.
constexpr int64_t kMOST_SLICES = 16; //!< The threads of a block then still read pieces of 32 bytes.

int64_t ceilDivide(int64_t a, int64_t b)
{
    return (a + b - 1) / b;
}

//! Divides the workspace; without memory it only counts.
class Workspace
{
public:
    explicit Workspace(void* memory)
        : mMemory(static_cast<unsigned char*>(memory))
    {
    }
    float* take(int64_t floats)
    {
        unsigned char* const piece = mMemory == nullptr ? nullptr : mMemory + mTaken;
        mTaken += ceilDivide(floats * static_cast<int64_t>(sizeof(float)), kALIGNMENT) * kALIGNMENT;
        return reinterpret_cast<float*>(piece);
    }
    int64_t taken() const
    {
        return mTaken;
    }

private:
    unsigned char* mMemory;
    int64_t mTaken = 0;
};

void setTiles(GradTask& task)
{
    MambaposeScanParams const& p = task.p;
    bool const cut = p.segment > 0 && p.segment < p.length;
    task.segment = cut ? p.segment : p.length > 0 ? p.length : 1;
    task.segmentTiles = ceilDivide(task.segment, kTILE);
    int64_t const whole = p.length / task.segment;
    task.tiles = whole * task.segmentTiles + ceilDivide(p.length - whole * task.segment, kTILE);
}

//! The walk for so many states.
struct WalkForm
{
    void (*kernel)(GradTask);
    int64_t states; //!< Of a block.
    size_t sharedBytes;
};

template <int STATES>
constexpr WalkForm walkForm()
{
    return {walkStates<STATES>, WalkTile<STATES>::kSTATES, 2 * sizeof(WalkTile<STATES>)};
}

WalkForm walkFormOf(int64_t states)
{
    return states <= kWARPS ? walkForm<1>() : states <= 2 * kWARPS ? walkForm<2>() : walkForm<4>();
}

//! The channels of a group over as few blocks as hold them, in as few warps.
void setBlocks(GradTask& task)
{
    int64_t const warps = ceilDivide(task.groupWidth, kLANES);
    task.tileBlocks = ceilDivide(warps, kWARPS);
    task.tileThreads = ceilDivide(warps, task.tileBlocks) * kLANES;
    task.walkBlocks = warps;
    task.stateBlocks = ceilDivide(task.p.states, walkFormOf(task.p.states).states);
}

//! Floats of what the parts of each gradient and the states between tiles need.
struct Sizes
{
    explicit Sizes(GradTask const& task)
        : rows(task.p.batch * task.p.length)
        , wide(task.p.directions * task.p.channels)
        , columns(task.p.directions * task.p.groups * task.p.states)
        , tileRows(task.p.batch * task.tiles)
        , states(wide * task.p.states)
    {
    }
    int64_t rows, wide, columns; //!< Of the tensors; columns: of B and C.
    int64_t tileRows, states;
};

/* Divides the workspace and returns its bytes; without memory it only counts. Gradients that one block
 * computes alone go to the caller's memory at once. */
int64_t carve(GradTask& task, void* memory)
{
    MambaposeScanParams const& p = task.p;
    MambaposeScanGrads const& g = task.g;
    Sizes const size(task);
    Workspace workspace(memory);
    auto const parts = [&](float* target, int64_t count, int64_t floats)
    { return target == nullptr || count == 1 ? target : workspace.take(count * floats); };
    bool const bConstant = p.bConstant && g.gB != nullptr, cConstant = p.cConstant && g.gC != nullptr;
    task.starts = workspace.take(size.tileRows * size.states);
    task.ends = workspace.take(size.tileRows * size.states);
    task.aParts = g.gA != nullptr ? task.starts : nullptr;
    task.bParts = bConstant ? task.ends : parts(g.gB, task.tileBlocks, size.rows * size.columns);
    task.cParts = !cConstant ? parts(g.gC, task.tileBlocks, size.rows * size.columns)
        : bConstant          ? workspace.take(size.tileRows * size.states)
                             : task.ends;
    task.uParts = parts(g.gU, p.uShared ? p.directions : 1, size.rows * p.channels);
    task.zParts = p.z.data == nullptr ? nullptr : parts(g.gZ, p.directions, size.rows * p.channels);
    task.dParts = parts(g.gD, size.tileRows, size.wide);
    task.biasParts = parts(g.gDtBias, size.tileRows, size.wide);
    return workspace.taken();
}

//! The form of the launches; the workspace is still to be divided.
GradTask planTask(MambaposeScanParams const& p, MambaposeScanGrads const& g)
{
    GradTask task{};
    task.p = p;
    task.g = g;
    task.groupWidth = p.channels / p.groups;
    setTiles(task);
    setBlocks(task);
    return task;
}

//! The sums that are left after the tiles.
class SumList
{
public:
    //! target: size values, each the sum of `count` parts; nothing when the target holds them already.
    void add(float const* parts, float* target, int64_t size, int64_t count, int64_t rows = 1, int64_t columns = 1)
    {
        if (target == nullptr || parts == target || size == 0)
        {
            return;
        }
        int64_t slices = 1;
        while (slices < kMOST_SLICES && count >= 2 * slices * kSLICE)
        {
            slices *= 2;
        }
        mSums.sums[mSums.count++] = {parts, target, size, count, rows, columns, slices, mBlocks};
        mBlocks += ceilDivide(size * slices, kSUM_THREADS);
    }
    Sums const& sums() const
    {
        return mSums;
    }
    int64_t blocks() const
    {
        return mBlocks;
    }

private:
    Sums mSums{};
    int64_t mBlocks = 0;
};

SumList sumsOf(GradTask const& task)
{
    MambaposeScanParams const& p = task.p;
    MambaposeScanGrads const& g = task.g;
    Sizes const size(task);
    SumList list;
    list.add(task.aParts, g.gA, size.states, size.tileRows, p.states, p.channels);
    auto const addMatrix = [&](float const* parts, float* target, bool constant)
    {
        constant ? list.add(parts, target, size.states, size.tileRows, p.states, p.channels)
                 : list.add(parts, target, size.rows * size.columns, task.tileBlocks);
    };
    addMatrix(task.bParts, g.gB, p.bConstant != 0);
    addMatrix(task.cParts, g.gC, p.cConstant != 0);
    list.add(task.uParts, g.gU, size.rows * p.channels * (p.uShared ? 1 : p.directions), p.directions);
    list.add(task.zParts, p.z.data == nullptr ? nullptr : g.gZ, size.rows * p.channels, p.directions);
    list.add(task.dParts, g.gD, size.wide, size.tileRows);
    list.add(task.biasParts, g.gDtBias, size.wide, size.tileRows);
    if (p.length == 0) // No tile takes the gradient of the last state to the first.
    {
        list.add(g.dFinalState, g.gInitialState, p.batch * size.states, g.dFinalState != nullptr ? 1 : 0);
    }
    return list;
}

using TileKernel = void (*)(GradTask);

template <bool GATE>
TileKernel tileKernelOf(bool bConstant, bool cConstant)
{
    return bConstant ? (cConstant ? tileGradients<GATE, true, true> : tileGradients<GATE, true, false>)
                     : (cConstant ? tileGradients<GATE, false, true> : tileGradients<GATE, false, false>);
}

//! What goes on the stream.
struct Launches
{
    explicit Launches(GradTask const& task)
        : sums(sumsOf(task))
    {
        int64_t const scans = task.p.batch * task.p.directions * task.p.groups;
        walkBlocks = task.tiles == 0 ? 0 : 2 * scans * task.walkBlocks * task.stateBlocks;
        tileBlocks = scans * task.tiles * task.tileBlocks;
        if (std::max({walkBlocks, tileBlocks, sums.blocks()}) > INT32_MAX)
        {
            throw std::invalid_argument("batch: fewer than 2^31 blocks in a launch were wanted, found more; "
                                        "call with parts of the batch");
        }
    }
    SumList sums;
    int64_t walkBlocks, tileBlocks;
};

template <class Argument>
void launchOn(cudaStream_t stream, char const* name, void (*kernel)(Argument), int64_t blocks, int64_t threads,
    size_t sharedBytes, Argument const& argument)
{
    cudaError_t const status = blocks == 0 ? cudaSuccess
                                           : launch(kernel, static_cast<unsigned>(blocks),
                                               static_cast<unsigned>(threads), sharedBytes, stream, argument);
    if (status != cudaSuccess)
    {
        throw std::runtime_error(
            "launch of " + std::string(name) + ": success was wanted, found " + cudaGetErrorString(status));
    }
}

void run(GradTask const& task, cudaStream_t stream)
{
    MambaposeScanParams const& p = task.p;
    Launches const launches(task);
    WalkForm const form = walkFormOf(p.states);
    launchOn(stream, "walkStates", form.kernel, launches.walkBlocks, kTHREADS, form.sharedBytes, task);
    TileKernel const kernel = task.zParts != nullptr ? tileKernelOf<true>(p.bConstant != 0, p.cConstant != 0)
                                                     : tileKernelOf<false>(p.bConstant != 0, p.cConstant != 0);
    launchOn(stream, "tileGradients", kernel, launches.tileBlocks, task.tileThreads, sizeof(TileMemory), task);
    launchOn(stream, "sumParts", sumParts, launches.sums.blocks(), kSUM_THREADS, kSUM_THREADS * sizeof(float),
        launches.sums.sums());
}

void checkCall(MambaposeScanParams const* params, MambaposeScanGrads const* grads, int32_t multiprocessors)
{
    checkGrads(params, grads);
    if (multiprocessors < 1)
    {
        throw std::invalid_argument("multiprocessors: 1 or more were wanted, found " + std::to_string(multiprocessors));
    }
    MambaposeScanParams const& p = *params;
    if (p.directions * p.channels >= kMOST_CHANNELS)
    {
        throw std::invalid_argument("channels: fewer than 2^30 over all directions were wanted, found "
            + std::to_string(p.directions * p.channels));
    }
    double const updates = static_cast<double>(p.batch) * static_cast<double>(p.length)
        * static_cast<double>(p.directions * p.channels * (p.states + 4));
    if (updates >= 0x1p56)
    {
        throw std::invalid_argument("batch: fewer than 2^56 state updates in one call were wanted, found "
            + std::to_string(updates));
    }
}

int64_t workspaceSize(MambaposeScanParams const* params, MambaposeScanGrads const* grads, int32_t multiprocessors)
{
    checkCall(params, grads, multiprocessors);
    GradTask task = planTask(*params, *grads);
    return carve(task, nullptr);
}

void scanBackward(MambaposeScanParams const* params, MambaposeScanGrads const* grads, int32_t multiprocessors,
    void* workspace, size_t workspaceBytes, cudaStream_t stream)
{
    int64_t const needed = workspaceSize(params, grads, multiprocessors);
    checkDeviceParams(*params, false);
    checkOutputGrad(*params, *grads);
    if (needed > 0 && (workspace == nullptr || workspaceBytes < static_cast<uint64_t>(needed)))
    {
        throw std::invalid_argument("workspace: " + std::to_string(needed) + " bytes were wanted, found "
            + std::to_string(workspace == nullptr ? 0 : workspaceBytes));
    }
    if (needed > 0 && reinterpret_cast<uintptr_t>(workspace) % kALIGNMENT != 0)
    {
        throw std::invalid_argument("workspace: an address divisible by " + std::to_string(kALIGNMENT)
            + " was wanted, found remainder " + std::to_string(reinterpret_cast<uintptr_t>(workspace) % kALIGNMENT));
    }
    GradTask task = planTask(*params, *grads);
    carve(task, workspace);
    run(task, stream);
}

} // namespace
} // namespace backward
} // namespace mambapose

int mambapose_scan_cuda_backward_workspace(MambaposeScanParams const* params, MambaposeScanGrads const* grads,
    int32_t multiprocessors, int64_t* bytes, char* error, size_t errorSize)
{
    using namespace mambapose;
    return guarded(error, errorSize,
        [&]
        {
            if (bytes == nullptr)
            {
                throw std::invalid_argument("bytes: a number was wanted, found none");
            }
            *bytes = backward::workspaceSize(params, grads, multiprocessors);
        });
}

int mambapose_scan_cuda_backward(MambaposeScanParams const* params, MambaposeScanGrads const* grads,
    int32_t multiprocessors, void* workspace, size_t workspaceBytes, void* stream, char* error, size_t errorSize)
{
    using namespace mambapose;
    return guarded(error, errorSize,
        [&]
        {
            backward::scanBackward(
                params, grads, multiprocessors, workspace, workspaceBytes, static_cast<cudaStream_t>(stream));
        });
}
