/* The recurrence in registers, the kernel around it, and the kernel that merges directions. */
#ifndef MAMBAPOSE_SCAN_CUDA_FORWARD_H
#define MAMBAPOSE_SCAN_CUDA_FORWARD_H

#include "cuda/scan_cuda_states.h"
#include "cuda/scan_cuda_tile.h"

namespace mambapose
{
namespace cuda
{

//! Reads as many floats as there are steps of a thread.
template <int STEPS>
__device__ __forceinline__ void load(float const* source, float (&x)[STEPS])
{
    MAMBAPOSE_UNROLL
    for (int i = 0; i < STEPS; i += 4)
    {
        float4 const four = *reinterpret_cast<float4 const*>(source + i);
        x[i] = four.x;
        x[i + 1] = four.y;
        x[i + 2] = four.z;
        x[i + 3] = four.w;
    }
}

//! B or C of one state at the steps of a thread; constant ones have one value for a channel.
template <bool CONSTANT, int STEPS>
__device__ __forceinline__ void loadMatrix(float const* values, int row, int constant, float (&x)[STEPS])
{
    if constexpr (CONSTANT)
    {
        float const value = values[constant];
        MAMBAPOSE_UNROLL
        for (int i = 0; i < STEPS; ++i)
        {
            x[i] = value;
        }
    }
    else
    {
        load(values + row, x);
    }
}

//! Turns the states at the end of each time lane's own steps into those before them; h becomes that after all.
template <class K>
__device__ __forceinline__ float startOfLane(Lane const& at, float end, float factor, float& h)
{
    static_assert(K::kTIME_LANES > 1, "a single lane starts with h");
    int const lane = static_cast<int>(threadIdx.x) % kWARP;
    MAMBAPOSE_UNROLL
    for (int back = 1; back < K::kTIME_LANES; back *= 2)
    {
        bool const any = at.time >= back;
        int const source = any ? lane - back * K::kCHANNELS : lane;
        float const earlier = __shfl_sync(kALL_LANES, end, source);
        end = any ? fmaf(factor, earlier, end) : end;
        if (back * 2 < K::kTIME_LANES) // The last exchange needs no further factor.
        {
            float const factorBefore = __shfl_sync(kALL_LANES, factor, source);
            factor = any ? factor * factorBefore : factor;
        }
    }
    // Each lane gets the end of the one before it; the first gets the last one's, the state after all.
    float const before = __shfl_sync(kALL_LANES, end, (lane + kWARP - K::kCHANNELS) % kWARP);
    float const start = at.time == 0 ? h : before;
    h = at.time == 0 ? before : h;
    return start;
}

//! One advance of one state: y gains its share.
template <class K>
__device__ __forceinline__ void advanceState(Lane const& at, float const (&s)[K::kSTEPS], float stepSum, float decay,
    float const (&inputs)[K::kSTEPS], float const (&outputs)[K::kSTEPS], float& h, float (&y)[K::kSTEPS])
{
    float factors[K::kSTEPS];
    MAMBAPOSE_UNROLL
    for (int i = 0; i < K::kSTEPS; ++i)
    {
        factors[i] = exp2Approx(s[i] * decay);
    }
    float state = h;
    if constexpr (K::kTIME_LANES > 1)
    {
        float end = at.time == 0 ? h : 0.0F;
        MAMBAPOSE_UNROLL
        for (int i = 0; i < K::kSTEPS; ++i)
        {
            end = fmaf(factors[i], end, inputs[i]);
        }
        state = startOfLane<K>(at, end, exp2Approx(stepSum * decay), h);
    }
    if constexpr (K::kTIME_LANES == 1 || !K::kCARRY)
    {
        MAMBAPOSE_UNROLL
        for (int i = 0; i < K::kSTEPS; ++i)
        {
            state = fmaf(factors[i], state, inputs[i]);
            if constexpr (!K::kCARRY)
            {
                y[i] = fmaf(state, outputs[i], y[i]);
            }
        }
    }
    if constexpr (K::kTIME_LANES == 1)
    {
        h = state;
    }
}

//! Walks the tile that prepareTile left. Returns the thread's sum of s.
template <class K, bool B_CONSTANT, bool C_CONSTANT>
__device__ __forceinline__ float advanceTile(ForwardTask const& task, Lane const& at, Tile const& tile, States<K>& x)
{
    SharedLayout const& shared = task.at;
    bool const inBlock = !K::kCONSTANTS || at.channel < task.blockChannels; // All are, but where constants fill it.
    int const channel = inBlock ? at.channel : 0, first = at.time * K::kSTEPS, own = channel * task.pitch;
    int const states = at.stateWarp * K::kSTATES * task.pitch;
    float total = 0.0F;
    MAMBAPOSE_ROLLED
    for (int begin = first; begin - first < tile.count; begin += K::kADVANCE)
    {
        float s[K::kSTEPS], su[K::kSTEPS], y[K::kSTEPS], stepSum = 0.0F;
        load(sharedAt(shared.s) + own + begin, s);
        load(sharedAt(shared.su) + own + begin, su);
        MAMBAPOSE_UNROLL
        for (int i = 0; i < K::kSTEPS; ++i)
        {
            y[i] = 0.0F;
            stepSum += s[i];
        }
        MAMBAPOSE_UNROLL
        for (int j = 0; j < K::kSTATES; ++j)
        {
            if ((K::kCONSTANTS || K::kSTATES > 4) && j > 0 && j % 4 == 0)
            {
                __syncwarp(); // Else the compiler loads more ahead than fits in the registers.
            }
            int const row = states + j * task.pitch + begin;
            float inputs[K::kSTEPS], outputs[K::kSTEPS];
            int const constant = (at.stateWarp * K::kSTATES + j) * task.blockChannels + channel;
            loadMatrix<B_CONSTANT>(sharedAt(shared.inputs), row, constant, inputs);
            if constexpr (!K::kCARRY)
            {
                loadMatrix<C_CONSTANT>(sharedAt(shared.outputs), row, constant, outputs);
            }
            MAMBAPOSE_UNROLL
            for (int i = 0; i < K::kSTEPS; ++i)
            {
                inputs[i] *= su[i];
            }
            advanceState<K>(at, s, stepSum, x.decay[j], inputs, outputs, x.h[j], y);
        }
        total += stepSum;
        if (!K::kCARRY && inBlock)
        {
            float* const target = sharedAt(shared.y) + at.stateWarp * task.blockChannels * task.pitch + own + begin;
            MAMBAPOSE_UNROLL
            for (int i = 0; i < K::kSTEPS; i += 4)
            {
                *reinterpret_cast<float4*>(target + i) = {y[i], y[i + 1], y[i + 2], y[i + 3]};
            }
        }
    }
    return total;
}

//! The same, by what is constant.
template <class K>
__device__ __forceinline__ float advanceTileOf(ForwardTask const& task, Lane const& at, Tile const& tile, States<K>& x)
{
    if constexpr (K::kCONSTANTS)
    {
        if (task.p.bConstant && task.p.cConstant && !K::kCARRY)
        {
            return advanceTile<K, true, true>(task, at, tile, x);
        }
        if (task.p.bConstant)
        {
            return advanceTile<K, true, false>(task, at, tile, x);
        }
        return advanceTile<K, false, !K::kCARRY>(task, at, tile, x);
    }
    return advanceTile<K, false, false>(task, at, tile, x);
}

__device__ __forceinline__ void prepareTileOf(
    ForwardTask const& task, Walk const& walk, Tile const& tile, int states, bool carry)
{
    switch (task.p.dtype)
    {
    case MAMBAPOSE_FP16: prepareTile<Fp16>(task, walk, tile, states, carry); break;
    case MAMBAPOSE_BF16: prepareTile<Bf16>(task, walk, tile, states, carry); break;
    default: prepareTile<float>(task, walk, tile, states, carry); break;
    }
}

__device__ __forceinline__ void storeTileOf(
    ForwardTask const& task, Walk const& walk, Tile const& tile)
{
    switch (task.p.dtype)
    {
    case MAMBAPOSE_FP16: storeTile<Fp16>(task, walk, tile); break;
    case MAMBAPOSE_BF16: storeTile<Bf16>(task, walk, tile); break;
    default: storeTile<float>(task, walk, tile); break;
    }
}

//! One direction over the block's piece. Returns the thread's sum of s.
template <class K>
__device__ __forceinline__ float walkTiles(
    ForwardTask const& task, Lane const& at, States<K>& x)
{
    fetchTokens(task, *sharedAt<Walk>(task.at.walk), tileAt(task, 0));
    commitCopies();
    startStates<K>(task, *sharedAt<Walk>(task.at.walk), at, x);
    float total = 0.0F;
    // In round i the rows of tile i + 1 are on their way, tile i is computed, and tile i - 1 is stored.
    MAMBAPOSE_ROLLED
    for (int round = -1;; ++round)
    {
        waitCopies<0>();
        __syncthreads();
        Walk const walk = *sharedAt<Walk>(task.at.walk);
        fetchTile(task, tileAt(task, round + 1));
        fetchTokens(task, walk, tileAt(task, round + 2));
        commitCopies();
        if (threadIdx.x == blockDim.x - 1)
        {
            tileAt(task, round + 3) = tileAfter(task, walk, tileAt(task, round + 2), round + 3, K::kADVANCE);
        }
        if (!K::kCARRY && round > 0)
        {
            storeTileOf(task, walk, tileAt(task, round - 1));
        }
        if (round < 0)
        {
            continue;
        }
        Tile const tile = tileAt(task, round);
        if (tile.count == 0)
        {
            break;
        }
        prepareTileOf(task, walk, tile, task.stateWarps * K::kSTATES, K::kCARRY);
        __syncthreads();
        if (tile.resets)
        {
            MAMBAPOSE_UNROLL
            for (int j = 0; j < K::kSTATES; ++j)
            {
                x.h[j] = 0.0F;
            }
        }
        total += advanceTileOf<K>(task, at, tile, x);
    }
    waitCopies<0>();
    return total;
}

//! A block of the scan, as Walk says.
template <class K>
__global__ void __launch_bounds__(
    K::kMAX_THREADS, (kTHREADS_PER_UNIT + K::kMAX_THREADS - 1) / K::kMAX_THREADS) scanForward(ForwardTask const task)
{
    int const walks = task.fused && !K::kCARRY ? static_cast<int>(task.p.directions) : 1;
    MAMBAPOSE_ROLLED
    for (int i = 0; i < walks; ++i)
    {
        __syncthreads(); // The direction before is stored.
        if (threadIdx.x == 0)
        {
            Walk const walk = walkOf(task, i, K::kCARRY);
            *sharedAt<Walk>(task.at.walk) = walk;
            Tile const first = tileAfter(task, walk, tileBefore(task, walk), 0, K::kADVANCE);
            tileAt(task, 0) = first;
            tileAt(task, 1) = tileAfter(task, walk, first, 1, K::kADVANCE);
        }
        __syncthreads();
        startWalk(task, *sharedAt<Walk>(task.at.walk), K::kCARRY);
        if constexpr (K::kCONSTANTS)
        {
            loadConstants(task, *sharedAt<Walk>(task.at.walk), task.stateWarps * K::kSTATES, K::kCARRY);
        }
        Lane const at = laneOf<K>(task, *sharedAt<Walk>(task.at.walk));
        States<K> x;
        loadStates<K>(task, *sharedAt<Walk>(task.at.walk), at, x);
        float const total = walkTiles<K>(task, at, x);
        endStates<K>(task, *sharedAt<Walk>(task.at.walk), at, x, total);
    }
}

template <class T>
__device__ __forceinline__ void storeMerged(
    MambaposeScanParams const& p, int64_t batch, int64_t token, int64_t channel, float y)
{
    if (p.z.data != nullptr)
    {
        T const* const z = static_cast<T const*>(p.z.data) + batch * p.z.batchStride + token * p.z.rowStride;
        y *= siluOf({valueOf(z[channel])}).v;
    }
    T* const rows = static_cast<T*>(p.y.data) + batch * p.y.batchStride + token * p.y.rowStride;
    setValue(rows[channel], y);
}

//! Adds the partial sums of the directions in their order, gates and stores. 2^threadShift threads share a row.
__global__ void __launch_bounds__(256) mergeDirections(ForwardTask const task, int32_t threadShift)
{
    MambaposeScanParams const& p = task.p;
    int const threads = 1 << threadShift, rowsPerBlock = static_cast<int>(blockDim.x) >> threadShift;
    int64_t const row = static_cast<int64_t>(blockIdx.x) * rowsPerBlock + (threadIdx.x >> threadShift);
    int64_t const rows = p.batch * p.length;
    if (row >= rows)
    {
        return;
    }
    int64_t const batch = p.batch == 1 ? 0 : row / p.length, token = row - batch * p.length;
    MAMBAPOSE_ROLLED
    for (int64_t d = threadIdx.x & (threads - 1); d < p.channels; d += threads)
    {
        float y = 0.0F;
        MAMBAPOSE_UNROLL_BY(4)
        for (int k = 0; k < static_cast<int>(p.directions); ++k)
        {
            y += task.partials[(k * rows + row) * p.channels + d];
        }
        switch (p.dtype)
        {
        case MAMBAPOSE_FP16: storeMerged<Fp16>(p, batch, token, d, y); break;
        case MAMBAPOSE_BF16: storeMerged<Bf16>(p, batch, token, d, y); break;
        default: storeMerged<float>(p, batch, token, d, y); break;
        }
    }
}

} // namespace cuda
} // namespace mambapose
#endif
