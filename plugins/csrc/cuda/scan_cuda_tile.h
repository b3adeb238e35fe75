/* A tile before and after the recurrence: its rows turned into fp32 with the steps of a channel or state side
 * by side, and its outputs merged, gated and stored. */
#ifndef MAMBAPOSE_SCAN_CUDA_TILE_H
#define MAMBAPOSE_SCAN_CUDA_TILE_H

#include "cuda/scan_cuda_rows.h"

namespace mambapose
{
namespace cuda
{

/* A thread works on one channel all the time, since the threads of a block are a multiple of its channels,
 * and on four steps of it at a time. */
struct Part
{
    int channel;
    int first, stride; //!< Its first steps are [first, first + 4), its next ones `stride` later.
};

__device__ __forceinline__ Part partOf(ForwardTask const& task, int firstThread)
{
    int const thread = threadFrom(firstThread), threads = static_cast<int>(blockDim.x);
    return {thread & (task.blockChannels - 1), (thread >> task.channelShift) * 4, (threads >> task.channelShift) * 4};
}

//! A column of four rows, the first of them in shared memory at `place`.
template <class T>
__device__ __forceinline__ void loadColumn(int place, int pitch, float (&x)[4])
{
    MAMBAPOSE_UNROLL
    for (int q = 0; q < 4; ++q)
    {
        x[q] = valueOf(*sharedAt<T>(place + q * pitch));
    }
}

__device__ __forceinline__ void storeFour(float* target, float const (&x)[4])
{
    *reinterpret_cast<float4*>(target) = {x[0], x[1], x[2], x[3]};
}

//! Which of four steps have a token.
__device__ __forceinline__ void findTokens(
    ForwardTask const& task, Tile const& tile, int step, uint32_t (&found)[4], bool (&there)[4])
{
    uint4 const four = *sharedAt<uint4>(tile.tokens + step * static_cast<int>(sizeof(uint32_t)));
    found[0] = four.x;
    found[1] = four.y;
    found[2] = four.z;
    found[3] = four.w;
    MAMBAPOSE_UNROLL
    for (int q = 0; q < 4; ++q)
    {
        there[q] = isToken(task, found[q]);
    }
}

/* Step sizes s and inputs s*u of a tile. Absent steps and channels get zeros, with
 * which the recurrence keeps its state. */
template <class T>
__device__ __forceinline__ void prepareSteps(ForwardTask const& task, Walk const& walk, Tile const& tile)
{
    SharedLayout const& at = task.at;
    Part const part = partOf(task, task.stepsThread);
    if (part.first >= tile.steps)
    {
        return;
    }
    bool const exists = part.channel < walk.channels;
    float const bias = exists ? sharedAt(at.bias)[part.channel] : 0.0F;
    float* const target = sharedAt(at.s) + part.channel * task.pitch;
    int const column = part.channel * static_cast<int>(sizeof(T)), toInputs = (at.su - at.s) / 4;
    MAMBAPOSE_ROLLED
    for (int step = part.first; step < tile.steps; step += part.stride)
    {
        float s[4], su[4];
        uint32_t tokens[4];
        bool there[4];
        findTokens(task, tile, step, tokens, there);
        loadColumn<T>(at.dt + (tile.rowOfTwo + step) * at.channelPitch + column, at.channelPitch, s);
        loadColumn<T>(at.u + (tile.rowOfThree + step) * at.channelPitch + column, at.channelPitch, su);
        MAMBAPOSE_UNROLL
        for (int q = 0; q < 4; ++q)
        {
            s[q] += bias;
        }
        if (task.p.deltaSoftplus)
        {
            MAMBAPOSE_UNROLL
            for (int q = 0; q < 4; ++q)
            {
                s[q] = softplusOf({s[q]}).v;
            }
        }
        MAMBAPOSE_UNROLL
        for (int q = 0; q < 4; ++q)
        {
            s[q] = exists && there[q] ? s[q] : 0.0F;
            su[q] = exists ? s[q] * su[q] : 0.0F;
        }
        storeFour(target + step, s);
        storeFour(target + toInputs + step, su);
    }
}

__device__ __forceinline__ void loadPair(float const* row, float& a, float& b)
{
    float2 const pair = *reinterpret_cast<float2 const*>(row);
    a = pair.x;
    b = pair.y;
}
template <class T>
__device__ __forceinline__ void loadPair(T const* row, float& a, float& b)
{
    uint32_t const pair = *reinterpret_cast<uint32_t const*>(row);
    a = valueOf(T{static_cast<uint16_t>(pair & 0xFFFFU)});
    b = valueOf(T{static_cast<uint16_t>(pair >> 16)});
}

/* B and C of a tile in fp32; absent states become zeros. A thread takes two states and four steps at a time,
 * of B or of C, whose steps make one list. */
template <class T>
__device__ __forceinline__ void prepareMatrices(
    ForwardTask const& task, Tile const& tile, int first, int last, int states)
{
    constexpr int kPAIRS = 8;
    SharedLayout const& at = task.at;
    int const thread = threadFrom(task.matricesThread), threads = static_cast<int>(blockDim.x);
    int const end = tile.steps * (last - first + 1);
    MAMBAPOSE_ROLLED
    for (int listed = thread / kPAIRS * 4; listed < end; listed += threads / kPAIRS * 4)
    {
        bool const isB = first == kB && listed < tile.steps;
        int const step = listed < tile.steps ? listed : listed - tile.steps;
        int const source = (isB ? at.B : at.C) + (tile.rowOfTwo + step) * at.matrixPitch;
        float* const target = sharedAt(isB ? at.inputs : at.outputs) + step;
        MAMBAPOSE_ROLLED
        for (int n = thread % kPAIRS * 2; n < states; n += kPAIRS * 2)
        {
            float a[4] = {}, b[4] = {};
            bool const second = n + 1 < task.p.states;
            MAMBAPOSE_UNROLL
            for (int q = 0; q < 4 && n < task.p.states; ++q)
            {
                loadPair(sharedAt<T>(source + q * at.matrixPitch) + n, a[q], b[q]);
                b[q] = second ? b[q] : 0.0F;
            }
            storeFour(target + n * task.pitch, a);
            if (n + 1 < states)
            {
                storeFour(target + (n + 1) * task.pitch, b);
            }
        }
    }
}

/* The tile as the recurrence reads it. Small tiles do not keep all threads busy, so each kind of work begins
 * at another thread, where the one before ends. states: of the block, with the absent ones. */
template <class T>
__device__ __forceinline__ void prepareTile(
    ForwardTask const& task, Walk const& walk, Tile const& tile, int states, bool carry)
{
    prepareSteps<T>(task, walk, tile);
    prepareMatrices<T>(task, tile, task.p.bConstant ? kC : kB, carry || task.p.cConstant ? kB : kC, states);
}

//! Four outputs of a channel: what the warps found for their states, and D*u.
template <class T>
__device__ __forceinline__ void sumOutputs(
    ForwardTask const& task, Part const& part, Tile const& tile, int step, float (&y)[4])
{
    SharedLayout const& at = task.at;
    float const* plane = sharedAt(at.y) + part.channel * task.pitch + step;
    float4 sum = *reinterpret_cast<float4 const*>(plane);
    MAMBAPOSE_ROLLED
    for (int w = 1; w < task.stateWarps; ++w)
    {
        plane += task.blockChannels * task.pitch;
        float4 const more = *reinterpret_cast<float4 const*>(plane);
        sum = {sum.x + more.x, sum.y + more.y, sum.z + more.z, sum.w + more.w};
    }
    y[0] = sum.x;
    y[1] = sum.y;
    y[2] = sum.z;
    y[3] = sum.w;
    if (task.p.D != nullptr)
    {
        float const skip = sharedAt(at.skip)[part.channel];
        float u[4];
        int const column = part.channel * static_cast<int>(sizeof(T));
        loadColumn<T>(at.u + (tile.rowOfThree + step) * at.channelPitch + column, at.channelPitch, u);
        MAMBAPOSE_UNROLL
        for (int q = 0; q < 4; ++q)
        {
            y[q] = fmaf(skip, u[q], y[q]);
        }
    }
}

//! Adds four outputs to those of the directions before; only the last direction is stored elsewhere.
__device__ __forceinline__ void addDirections(
    ForwardTask const& task, Walk const& walk, int channel, int step, bool const (&there)[4], float (&y)[4])
{
    MAMBAPOSE_UNROLL
    for (int q = 0; q < 4; ++q)
    {
        if (there[q])
        {
            int const position = walk.backwards ? walk.steps - 1 - step - q : step + q;
            float* const sum = sharedAt(task.at.sums) + (position << task.channelShift) + channel;
            y[q] += walk.direction > 0 ? *sum : 0.0F;
            *sum = y[q];
        }
    }
}

//! Writes four outputs to a column of the rows of their tokens.
template <class T>
__device__ __forceinline__ void storeColumn(
    T* column, int64_t rowStride, uint32_t const (&tokens)[4], bool const (&there)[4], float const (&y)[4])
{
    MAMBAPOSE_UNROLL
    for (int q = 0; q < 4; ++q)
    {
        if (there[q])
        {
            setValue(column[tokens[q] * rowStride], y[q]);
        }
    }
}

//! Merges, gates and stores the outputs of a tile.
template <class T>
__device__ __forceinline__ void storeTile(ForwardTask const& task, Walk const& walk, Tile const& tile)
{
    MambaposeScanParams const& p = task.p;
    Part const part = partOf(task, 0);
    if (part.channel >= walk.channels || part.first >= tile.count)
    {
        return;
    }
    bool const partial = task.partials != nullptr;
    int64_t const rowStride = partial ? p.channels : p.y.rowStride;
    int64_t const batch = partial ? (walk.direction * p.batch + walk.batch) * p.length * rowStride
                                  : walk.batch * p.y.batchStride;
    int64_t const first = batch + (p.mergeSum ? walk.channel : walk.own) + part.channel;
    MAMBAPOSE_ROLLED
    for (int step = part.first; step < tile.count; step += part.stride)
    {
        float y[4];
        uint32_t tokens[4];
        bool there[4];
        findTokens(task, tile, step, tokens, there);
        sumOutputs<T>(task, part, tile, step, y);
        if (partial)
        {
            storeColumn(task.partials + first, rowStride, tokens, there, y);
            continue;
        }
        if (task.fused)
        {
            addDirections(task, walk, part.channel, tile.begin + step, there, y);
            if (!walk.last)
            {
                continue;
            }
        }
        if (p.z.data != nullptr)
        {
            float z[4];
            int const column = part.channel * static_cast<int>(sizeof(T)), pitch = task.at.channelPitch;
            loadColumn<T>(task.at.z + (tile.rowOfThree + step) * pitch + column, pitch, z);
            MAMBAPOSE_UNROLL
            for (int q = 0; q < 4; ++q)
            {
                y[q] *= siluOf({z[q]}).v;
            }
        }
        storeColumn(static_cast<T*>(p.y.data) + first, rowStride, tokens, there, y);
    }
}

} // namespace cuda
} // namespace mambapose
#endif
