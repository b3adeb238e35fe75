/* Second kernel of the backward pass: all gradients of one tile of the channels of one block. */
#ifndef MAMBAPOSE_SCAN_CUDA_BACKWARD_GRADIENTS_H
#define MAMBAPOSE_SCAN_CUDA_BACKWARD_GRADIENTS_H

#include "cuda/scan_cuda_backward_tile.h"

namespace mambapose
{
namespace backward
{

constexpr int kSTATES_AT_ONCE = 32;    //!< States whose B, C, gB and gC are in shared memory.
constexpr int kMATRIX_ROW = kTILE + 1; //!< Odd: loads of pairs need registers side by side, and there are none left.
constexpr int kSUM_ROW = kLANES + 1;
constexpr int kROWS_AT_ONCE = 4; //!< Steps whose rows are loaded together at the end.

//! What a block works on.
struct TilePlace
{
    Tile tile;
    int channelBlock, group, direction, batch;
};

__device__ inline TilePlace tilePlace(GradTask const& task)
{
    BlockIndex block;
    TilePlace place{};
    place.channelBlock = block.next(task.tileBlocks);
    place.group = block.next(task.p.groups);
    place.direction = block.next(task.p.directions);
    place.tile = tileOf(task, block.next(task.tiles));
    place.batch = block.next(task.p.batch);
    return place;
}

//! Shared memory of a block. What a thread can read here it need not keep in registers while it walks.
struct TileMemory
{
    TilePlace place;
    int tokens[kTILE]; //!< -1: no step, or no token.
    float B[kSTATES_AT_ONCE][kMATRIX_ROW], C[kSTATES_AT_ONCE][kMATRIX_ROW]; //!< A state's steps side by side.
    float sums[kWARPS][kSTATES_AT_ONCE][kSUM_ROW]; //!< Of each warp, over its lanes: steps of gB, steps of gC.
};

__device__ inline Lane laneOf(GradTask const& task, TilePlace const& place)
{
    int const inGroup = place.channelBlock * static_cast<int>(blockDim.x) + static_cast<int>(threadIdx.x);
    return laneOf(task, place.batch, place.direction, place.group, inGroup);
}

/* Calls body(t, n) for all steps of a tile and n below count, in the threads of a block. Threads side by side
 * have states side by side, as in a row of B. */
template <class Body>
__device__ inline void forEachElement(int count, Body const& body)
{
    constexpr int kWIDTH = 16;
    for (int t = static_cast<int>(threadIdx.x) / kWIDTH; t < kTILE; t += static_cast<int>(blockDim.x) / kWIDTH)
    {
        MAMBAPOSE_UNROLL
        for (int first = 0; first < kSTATES_AT_ONCE; first += kWIDTH)
        {
            int const n = first + static_cast<int>(threadIdx.x) % kWIDTH;
            if (n < count)
            {
                body(t, n);
            }
        }
    }
}

//! B or C of the states from n0 on into shared memory; zero at missing steps.
__device__ inline void stageMatrix(GradTask const& task, TileMemory const& memory, MambaposeRows const& rows, int n0,
    int count, float (*target)[kMATRIX_ROW])
{
    TilePlace const& place = memory.place;
    Column const first = matrixColumn(task.p, rows, place.batch, place.direction, place.group, n0);
    forEachElement(count,
        [&](int t, int n)
        {
            Column const column{first.data + n, first.rowStride};
            target[n][t] = memory.tokens[t] >= 0 ? column.at(memory.tokens[t]) : 0.0F;
        });
}

/* Adds what the warps summed over their channels, steps in the lanes from firstLane on, and writes it to the
 * parts of this block. */
__device__ inline void writeSums(
    GradTask const& task, TileMemory const& memory, int n0, int count, int firstLane, float* parts)
{
    MambaposeScanParams const& p = task.p;
    TilePlace const& place = memory.place;
    if (parts == nullptr)
    {
        return;
    }
    int64_t const columns = p.directions * p.groups * p.states;
    int64_t const firstRow = (place.channelBlock * p.batch + place.batch) * p.length;
    float* const first = parts + firstRow * columns + (place.direction * p.groups + place.group) * p.states + n0;
    int const warps = static_cast<int>(blockDim.x) / kLANES;
    forEachElement(count,
        [&](int t, int n)
        {
            float sum = 0.0F;
            MAMBAPOSE_UNROLL
            for (int warp = 0; warp < kWARPS; ++warp)
            {
                sum += warp < warps ? memory.sums[warp][n][firstLane + t] : 0.0F;
            }
            if (memory.tokens[t] >= 0)
            {
                first[memory.tokens[t] * columns + n] = sum;
            }
        });
}

//! One state after the other, kSTATES_AT_ONCE between two barriers.
template <bool GATE, bool B_CONSTANT, bool C_CONSTANT>
__device__ inline void walkAllStates(GradTask const& task, Steps<GATE>& x, TileMemory& memory)
{
    MambaposeScanParams const& p = task.p;
    using Columns = StateColumns<B_CONSTANT, C_CONSTANT>;
    float* const bSums = B_CONSTANT ? nullptr : task.bParts;
    float* const cSums = C_CONSTANT ? nullptr : task.cParts;
    for (int n0 = 0; n0 < p.states; n0 += kSTATES_AT_ONCE)
    {
        int const count = static_cast<int>(smaller(p.states - n0, kSTATES_AT_ONCE));
        if constexpr (!B_CONSTANT)
        {
            stageMatrix(task, memory, p.B, n0, count, memory.B);
        }
        if constexpr (!C_CONSTANT)
        {
            stageMatrix(task, memory, p.C, n0, count, memory.C);
        }
        __syncthreads(); // B and C are there, and the sums of the states before have been read.
        auto const columns = [&] { return Columns(task, laneOf(task, memory.place), memory.place.tile); };
        State next = columns().load(n0);
        for (int n = 0; n < count; ++n)
        {
            State state = next;
            if (n + 1 < count) // Asked for before this state is computed, used after it.
            {
                next = columns().load(n0 + n + 1);
            }
            Shares shares;
            retreat<GATE, B_CONSTANT, C_CONSTANT>(state, memory.B[n], memory.C[n], x, shares);
            if (bSums != nullptr || cSums != nullptr)
            {
                float const sum = sumOverLanes<B_CONSTANT, C_CONSTANT>(shares);
                memory.sums[threadIdx.x / kLANES][n][threadIdx.x % kLANES] = sum;
            }
            columns().store(n0 + n, state);
        }
        __syncthreads(); // The sums are there, and B and C have been read.
        writeSums(task, memory, n0, count, 0, bSums);
        writeSums(task, memory, n0, count, kTILE, cSums);
    }
}

//! gU, gDt and gZ of all steps, and the sums over them for gD and gDtBias.
template <bool GATE>
__device__ inline void finishSteps(GradTask const& task, Steps<GATE> const& x, TileMemory const& memory)
{
    MambaposeScanParams const& p = task.p;
    Lane const lane = laneOf(task, memory.place);
    Column const uRows = uColumn(p, lane), dtRows = columnOf(p.dt, lane.batch, lane.own);
    Column const dyRows = dyColumn(task, lane), zRows = columnOf(p.z, lane.batch, lane.channel);
    float const bias = valueOr0(p.dtBias, lane.own), skip = valueOr0(p.D, lane.own);
    int64_t const wide = p.directions * p.channels, rows = p.batch * p.length;
    float sumD = 0.0F, sumBias = 0.0F;
    MAMBAPOSE_UNROLL
    for (int first = 0; first < kTILE; first += kROWS_AT_ONCE)
    {
        float u[kROWS_AT_ONCE], dt[kROWS_AT_ONCE], dy[kROWS_AT_ONCE], z[kROWS_AT_ONCE];
        MAMBAPOSE_UNROLL
        for (int i = 0; i < kROWS_AT_ONCE; ++i)
        {
            int const token = memory.tokens[first + i];
            u[i] = uRows.at(token);
            dt[i] = dtRows.at(token);
            dy[i] = GATE ? dyRows.at(token) : 0.0F;
            z[i] = GATE ? zRows.at(token) : 0.0F;
        }
        MAMBAPOSE_UNROLL
        for (int i = 0; i < kROWS_AT_ONCE; ++i)
        {
            int const t = first + i, token = memory.tokens[t];
            if (!lane.active || token < 0)
            {
                continue;
            }
            float const slope = p.deltaSoftplus ? sigmoid(dt[i] + bias) : 1.0F;
            float const gDt = slope * fmaf(u[i], x.dsu[t], x.ds[t]);
            int64_t const row = lane.batch * p.length + token;
            int64_t const narrow = (lane.direction * rows + row) * p.channels + lane.channel;
            sumD = fmaf(x.dy[t], u[i], sumD);
            sumBias += gDt;
            if (task.g.gDt != nullptr)
            {
                task.g.gDt[row * wide + lane.own] = gDt;
            }
            if (task.uParts != nullptr)
            {
                task.uParts[p.uShared ? narrow : row * wide + lane.own] = fmaf(x.s[t], x.dsu[t], skip * x.dy[t]);
            }
            if constexpr (GATE)
            {
                task.zParts[narrow] = dy[i] * fmaf(skip, u[i], x.y[t]) * siluSlope(z[i]);
            }
        }
    }
    int64_t const place = (lane.batch * task.tiles + memory.place.tile.index) * wide + lane.own;
    if (lane.active && task.biasParts != nullptr)
    {
        task.biasParts[place] = sumBias;
    }
    if (lane.active && task.dParts != nullptr)
    {
        task.dParts[place] = sumD;
    }
}

//! GATE: gZ is wanted. Three blocks on a multiprocessor leave 168 registers to a thread.
template <bool GATE, bool B_CONSTANT, bool C_CONSTANT>
__global__ void __launch_bounds__(kTHREADS, 3) tileGradients(GradTask const task)
{
    auto& memory = *reinterpret_cast<TileMemory*>(sharedMemory());
    if (threadIdx.x == 0)
    {
        memory.place = tilePlace(task);
    }
    __syncthreads();
    if (threadIdx.x < kTILE)
    {
        Tile const& tile = memory.place.tile;
        int const t = static_cast<int>(threadIdx.x);
        memory.tokens[t] = t < tile.count ? tokenOf(task.p, memory.place.direction, tile.begin + t) : -1;
    }
    __syncthreads();
    Steps<GATE> x;
    loadSteps(task, laneOf(task, memory.place), memory.tokens, x);
    walkAllStates<GATE, B_CONSTANT, C_CONSTANT>(task, x, memory);
    finishSteps(task, x, memory);
}

} // namespace backward
} // namespace mambapose
#endif
