/* The states a thread holds: read at the start of a walk, or found from the pieces before, and left at its end. */
#ifndef MAMBAPOSE_SCAN_CUDA_STATES_H
#define MAMBAPOSE_SCAN_CUDA_STATES_H

#include "cuda/scan_cuda_rows.h"

namespace mambapose
{
namespace cuda
{

constexpr int kTHREADS_PER_UNIT = 384; //!< Registers are shared out so that a multiprocessor runs so many.

//! What a kernel is compiled for.
template <int FORM, bool CONSTANTS, bool CARRY>
struct Kind
{
    static constexpr int kSTATES = kFORMS[FORM].statesPerThread;
    static constexpr int kTIME_LANES = kFORMS[FORM].timeLanes;
    static constexpr int kSTEPS = kFORMS[FORM].stepsPerThread;
    static constexpr int kCHANNELS = kWARP / kTIME_LANES; //!< Of a warp.
    static constexpr int kADVANCE = kTIME_LANES * kSTEPS; //!< Steps of a warp at a time.
    static constexpr int kPIECES_AT_ONCE = kSTATES > 4 ? 1 : 4; //!< Loads for more would not fit in registers.
    static constexpr int kMAX_THREADS = kFORMS[FORM].maxWarps * kWARP;
    static constexpr bool kCONSTANTS = CONSTANTS;         //!< B or C may be constant.
    static constexpr bool kCARRY = CARRY;                 //!< Only the state at the end is wanted.
};

//! Where a thread stands in its walk.
struct Lane
{
    int channel;    //!< Of the block's; behind them in threads that only keep step.
    int time;       //!< Which of the threads of that channel.
    int stateWarp;
    bool there;     //!< The channel exists.
};

template <class K>
__device__ __forceinline__ Lane laneOf(ForwardTask const& task, Walk const& walk)
{
    int const warp = static_cast<int>(threadIdx.x) / kWARP, lane = static_cast<int>(threadIdx.x) % kWARP;
    Lane at;
    at.stateWarp = warp % task.stateWarps;
    at.channel = warp / task.stateWarps * K::kCHANNELS + lane % K::kCHANNELS;
    at.time = lane / K::kCHANNELS;
    at.there = at.channel < walk.channels;
    return at;
}

//! The states of a thread. Of several time lanes, only the first knows h between two advances.
template <class K>
struct States
{
    float decay[K::kSTATES]; //!< A * log2(e)
    float h[K::kSTATES];
};

//! Runs body(j, n) for the states that exist: the thread's j-th is state n.
template <class K, class Body>
__device__ __forceinline__ void forStates(ForwardTask const& task, Lane const& at, Body const& body)
{
    int const first = at.stateWarp * K::kSTATES;
    int const count = at.there ? static_cast<int>(task.p.states) - first : 0;
    MAMBAPOSE_UNROLL
    for (int j = 0; j < K::kSTATES; ++j)
    {
        if (j < count)
        {
            body(j, first + j);
        }
    }
}

//! Index of a channel of a piece in `stepSums`, and times N in `ends`; pieces in walking order.
__device__ __forceinline__ int64_t endAt(ForwardTask const& task, int batch, int chunk, int64_t own)
{
    int64_t const piece = static_cast<int64_t>(batch) * task.chunks + chunk;
    return piece * task.p.directions * task.p.channels + own;
}

//! Index of a channel's states in the caller's tensors.
__device__ __forceinline__ int64_t statesAt(ForwardTask const& task, int batch, int64_t own)
{
    return (batch * task.p.directions * task.p.channels + own) * task.p.states;
}

//! Reads the parameters of the thread's states; h is 0.
template <class K>
__device__ __forceinline__ void loadStates(ForwardTask const& task, Walk const& walk, Lane const& at, States<K>& x)
{
    MambaposeScanParams const& p = task.p;
    int64_t const own = walk.own + at.channel;
    MAMBAPOSE_UNROLL
    for (int j = 0; j < K::kSTATES; ++j)
    {
        x.decay[j] = x.h[j] = 0.0F;
    }
    float const* const A = p.A + own * p.states;
    forStates<K>(task, at, [&](int j, int n) { x.decay[j] = A[n] * kLOG2_E; });
}

/* The state before the first step. The final state may overwrite the initial one, and blocks of other
 * pieces may still have to read it then, so the carry kernel moves it to the last place of `ends`, which
 * no piece needs. */
template <class K>
__device__ __forceinline__ void startStates(
    ForwardTask const& task, Walk const& walk, Lane const& at, States<K>& x)
{
    MambaposeScanParams const& p = task.p;
    int64_t const own = walk.own + at.channel;
    if (p.initialState != nullptr && walk.chunk == 0)
    {
        float* const moved
            = task.ends == nullptr ? nullptr : task.ends + endAt(task, walk.batch, task.chunks - 1, own) * p.states;
        float const* const given = p.initialState + statesAt(task, walk.batch, own);
        float const* const source = K::kCARRY || moved == nullptr ? given : moved;
        forStates<K>(task, at,
            [&](int j, int n)
            {
                x.h[j] = source[n];
                if (K::kCARRY && at.time == 0)
                {
                    moved[n] = x.h[j];
                }
            });
    }
    if constexpr (!K::kCARRY)
    {
        // A piece that begins with a reset needs nothing of those before.
        int const before = p.segment > 0 ? 0 : walk.chunk;
        MAMBAPOSE_UNROLL_BY(K::kPIECES_AT_ONCE)
        for (int chunk = 0; chunk < before; ++chunk)
        {
            int64_t const place = endAt(task, walk.batch, chunk, own);
            float const steps = at.there ? task.stepSums[place] : 0.0F;
            float const* const end = task.ends + place * p.states;
            forStates<K>(task, at,
                [&](int j, int n) { x.h[j] = fmaf(exp2Approx(x.decay[j] * steps), x.h[j], end[n]); });
        }
    }
}

//! The sum over the time lanes of a channel.
template <class K>
__device__ __forceinline__ float sumOfLanes(float x)
{
    MAMBAPOSE_UNROLL
    for (int lanes = 1; lanes < K::kTIME_LANES; lanes *= 2)
    {
        x += __shfl_xor_sync(kALL_LANES, x, lanes * K::kCHANNELS);
    }
    return x;
}

//! Leaves the state behind the piece: for the next pieces, or for the caller.
template <class K>
__device__ __forceinline__ void endStates(
    ForwardTask const& task, Walk const& walk, Lane const& at, States<K> const& x, float total)
{
    MambaposeScanParams const& p = task.p;
    int64_t const own = walk.own + at.channel;
    if constexpr (K::kCARRY)
    {
        if constexpr (K::kTIME_LANES > 1)
        {
            total = sumOfLanes<K>(total);
        }
        if (at.time == 0 && at.there && at.stateWarp == 0)
        {
            task.stepSums[endAt(task, walk.batch, walk.chunk, own)] = total;
        }
    }
    if (at.time != 0 || (!K::kCARRY && (p.finalState == nullptr || walk.chunk < task.chunks - 1)))
    {
        return;
    }
    float* const target = K::kCARRY ? task.ends + endAt(task, walk.batch, walk.chunk, own) * p.states
                                    : p.finalState + statesAt(task, walk.batch, own);
    forStates<K>(task, at, [&](int j, int n) { target[n] = x.h[j]; });
}

} // namespace cuda
} // namespace mambapose
#endif
