/* What a block works on, and the way of its rows into shared memory: tokens of a tile first, then the rows of
 * those tokens as they are, by copies that run on their own. */
#ifndef MAMBAPOSE_SCAN_CUDA_ROWS_H
#define MAMBAPOSE_SCAN_CUDA_ROWS_H

#include "cuda/scan_cuda_plan.h"
#include "cuda/vec_cuda.h"

namespace mambapose
{
namespace cuda
{

constexpr unsigned kALL_LANES = 0xFFFFFFFFU;

__device__ __forceinline__ int smaller(int a, int b)
{
    return a < b ? a : b;
}

template <class T = float>
__device__ __forceinline__ T* sharedAt(int bytes)
{
    return reinterpret_cast<T*>(sharedMemory() + bytes);
}

/* The work of a block: some channels of one direction over one piece of the length; a fused block does one
 * direction after the other. Lies in shared memory: in registers it would take those of the states. */
struct alignas(16) Walk
{
    int64_t own;            //!< direction * D + the first channel.
    int32_t channel, channels; //!< First channel within the direction, and how many.
    int32_t begin, steps;   //!< The piece has the positions [begin, begin + steps).
    int32_t batch, group, direction;
    int32_t chunk;          //!< Of the piece, in the order they are walked.
    int32_t backwards, last; //!< last: no direction of this block comes after it.
};
static_assert(sizeof(Walk) == kWALK_BYTES, "the place that the plan leaves for it");

//! Some steps of a walk, none of them a reset but the first one. One thread finds them for all, ahead of time.
struct alignas(16) Tile
{
    int32_t begin, count;       //!< count is 0 behind the last tile.
    int32_t steps;              //!< What the recurrence reads: count rounded up, as a warp takes several at a time.
    int32_t resets;             //!< It begins with a reset.
    int32_t tokens;             //!< Place of its tokens, in bytes.
    int32_t rowOfTwo, rowOfThree; //!< Its first row in tensors of which two or three tiles are kept.
    int32_t end;                //!< Of its segment, in steps.
};
static_assert(sizeof(Tile) == kTILE_BYTES, "the place that the plan leaves for it");

//! The index-th direction that this block walks.
__device__ __forceinline__ Walk walkOf(ForwardTask const& task, int index, bool carry)
{
    MambaposeScanParams const& p = task.p;
    int const groups = static_cast<int>(p.groups), width = static_cast<int>(p.channels) / groups;
    int const pieces = task.chunks - (carry ? 1 : 0), directions = static_cast<int>(p.directions);
    bool const fused = task.fused && !carry;
    int rest = static_cast<int>(blockIdx.x);
    int const part = rest % task.groupBlocks;
    rest /= task.groupBlocks;
    Walk walk;
    walk.group = rest % groups;
    rest /= groups;
    int piece = rest % pieces;
    rest /= pieces;
    walk.direction = fused ? index : rest % directions;
    walk.batch = fused ? rest : rest / directions;
    walk.channel = walk.group * width + part * task.blockChannels;
    walk.channels = smaller(task.blockChannels, width - part * task.blockChannels);
    walk.own = walk.direction * p.channels + walk.channel;
    walk.backwards = (p.reverseMask >> walk.direction & 1U) != 0;
    walk.last = !fused || index == directions - 1;
    // The piece that is walked last needs no carry: backwards that is the first one.
    piece += carry && walk.backwards ? 1 : 0;
    walk.chunk = walk.backwards ? task.chunks - 1 - piece : piece;
    walk.begin = piece * task.chunkSteps;
    walk.steps = smaller(task.chunkSteps, static_cast<int>(p.length) - walk.begin);
    return walk;
}

//! The tile behind one, which is the index-th; a warp advances by `advance` steps.
__device__ __forceinline__ Tile tileAfter(
    ForwardTask const& task, Walk const& walk, Tile const& before, int index, int advance)
{
    int const bytes = task.tileSteps * static_cast<int>(sizeof(uint32_t)), lastRow = 2 * task.tileSteps;
    Tile tile;
    tile.begin = before.begin + before.count;
    tile.resets = task.segment > 0 && tile.begin == before.end;
    tile.end = !tile.resets ? before.end
        : walk.steps - before.end > task.segment ? before.end + task.segment : walk.steps;
    tile.count = smaller(task.tileSteps, smaller(tile.end, walk.steps) - tile.begin);
    tile.steps = (tile.count + advance - 1) / advance * advance;
    tile.tokens = task.at.tokens + index % kTOKEN_TILES * bytes;
    tile.rowOfTwo = index % 2 * task.tileSteps;
    tile.rowOfThree = before.rowOfThree == lastRow ? 0 : before.rowOfThree + task.tileSteps;
    return tile;
}

//! What comes before the first tile.
__device__ __forceinline__ Tile tileBefore(ForwardTask const& task, Walk const& walk)
{
    return {0, 0, 0, 0, 0, 0, 0, task.segment > 0 ? 0 : walk.steps};
}

//! Where a tile is kept.
__device__ __forceinline__ Tile& tileAt(ForwardTask const& task, int index)
{
    return sharedAt<Tile>(task.at.tiles)[index & (kTILES - 1)];
}

__device__ __forceinline__ bool isToken(ForwardTask const& task, uint32_t token)
{
    return token < static_cast<uint32_t>(task.p.length);
}

//! Starts the copy of the tokens of a tile. Behind its end stands something that isToken refuses.
__device__ __forceinline__ void fetchTokens(ForwardTask const& task, Walk const& walk, Tile const& tile)
{
    uint32_t* const tokens = sharedAt<uint32_t>(tile.tokens);
    int64_t const row = task.p.orderRows > 1 ? walk.direction * task.p.length : 0;
    MAMBAPOSE_ROLLED
    for (int t = static_cast<int>(threadIdx.x); t < task.tileSteps; t += static_cast<int>(blockDim.x))
    {
        int const step = tile.begin + t;
        int const position = walk.begin + (walk.backwards ? walk.steps - 1 - step : step);
        if (t < tile.count && task.p.order != nullptr)
        {
            copyAsync<4>(tokens + t, task.p.order + row + position);
        }
        else
        {
            tokens[t] = t < tile.count ? static_cast<uint32_t>(position) : ~0U;
        }
    }
}

enum RowTensor
{
    kDT,
    kU,
    kZ,
    kB,
    kC,
    kROW_TENSORS
};

//! How the rows of a tensor get into shared memory.
struct alignas(16) RowCopy
{
    unsigned char const* base; //!< What the block reads of token 0.
    int64_t rowBytes;
    int32_t bytes;             //!< Of a row that the block reads; 0: nothing.
    int32_t target, pitch;     //!< Place of the first row kept; bytes from one to the next.
    int16_t pieceBytes;        //!< 16, 8 or 4 as the addresses allow, or 2, which cp.async does not know.
    int16_t threadShift;       //!< 2^threadShift threads share a row.
    int32_t end;               //!< Of its rows in the list of all rows, in threads; tensors begin with whole warps.
};
static_assert(kROW_TENSORS * sizeof(RowCopy) == kROW_COPIES_BYTES, "the place that the plan leaves for them");

//! The thread's number when the count begins at thread `first` of the block.
__device__ __forceinline__ int threadFrom(int first)
{
    int const thread = static_cast<int>(threadIdx.x);
    return thread - first + (thread < first ? static_cast<int>(blockDim.x) : 0);
}

//! z is applied where the sum over directions is complete.
__device__ __forceinline__ bool gates(ForwardTask const& task, Walk const& walk)
{
    return task.p.z.data != nullptr && task.partials == nullptr && (!task.p.mergeSum || walk.last);
}

//! The copy of one tensor; runs in the thread of its number.
__device__ __forceinline__ RowCopy copyOf(
    ForwardTask const& task, Walk const& walk, int tensor, bool carry)
{
    MambaposeScanParams const& p = task.p;
    int const size = p.dtype == MAMBAPOSE_FP32 ? 4 : 2;
    bool const matrix = tensor == kB || tensor == kC;
    int columns = matrix ? static_cast<int>(p.states) : walk.channels;
    int64_t column = matrix ? (walk.direction * p.groups + walk.group) * p.states : walk.own;
    MambaposeRows rows = p.dt;
    RowCopy copy;
    copy.target = task.at.dt;
    switch (tensor)
    {
    case kU:
        rows = p.u;
        column = p.uShared ? walk.channel : column;
        copy.target = task.at.u;
        break;
    case kZ:
        rows = p.z;
        column = walk.channel;
        columns = carry || !gates(task, walk) ? 0 : columns;
        copy.target = task.at.z;
        break;
    case kB:
        rows = p.B;
        columns = p.bConstant ? 0 : columns;
        copy.target = task.at.B;
        break;
    case kC:
        rows = p.C;
        columns = carry || p.cConstant ? 0 : columns;
        copy.target = task.at.C;
        break;
    default: break;
    }
    copy.base = static_cast<unsigned char const*>(rows.data);
    copy.base += rows.data == nullptr ? 0 : (walk.batch * rows.batchStride + column) * size;
    copy.rowBytes = rows.rowStride * size;
    copy.bytes = columns * size;
    copy.pitch = matrix ? task.at.matrixPitch : task.at.channelPitch;
    uintptr_t const bits = reinterpret_cast<uintptr_t>(copy.base) | static_cast<uintptr_t>(copy.rowBytes)
        | static_cast<uintptr_t>(copy.bytes | copy.pitch);
    copy.pieceBytes = bits % 16 == 0 ? 16 : bits % 8 == 0 ? 8 : bits % 4 == 0 ? 4 : 2;
    copy.threadShift = 0;
    MAMBAPOSE_ROLLED
    while (copy.pieceBytes << copy.threadShift < copy.bytes && copy.threadShift < 5)
    {
        ++copy.threadShift;
    }
    return copy;
}

//! Sets the copies of all tensors; runs in the first warp.
__device__ __forceinline__ void setCopies(ForwardTask const& task, Walk const& walk, int lane, bool carry)
{
    RowCopy copy{};
    if (lane < kROW_TENSORS)
    {
        copy = copyOf(task, walk, lane, carry);
        int const threads = copy.bytes == 0 ? 0 : task.tileSteps << copy.threadShift;
        copy.end = (threads + kWARP - 1) / kWARP * kWARP;
    }
    MAMBAPOSE_UNROLL
    for (int back = 1; back < kROW_TENSORS; back *= 2)
    {
        int const before = __shfl_sync(kALL_LANES, copy.end, lane >= back ? lane - back : lane);
        copy.end += lane >= back ? before : 0;
    }
    if (lane < kROW_TENSORS)
    {
        sharedAt<RowCopy>(task.at.rows)[lane] = copy;
    }
}

//! What does not change over a direction: where rows lie, and the parameters of the channels.
__device__ __forceinline__ void startWalk(ForwardTask const& task, Walk const& walk, bool carry)
{
    int const thread = static_cast<int>(threadIdx.x);
    if (thread < kWARP)
    {
        setCopies(task, walk, thread, carry);
    }
    MAMBAPOSE_ROLLED
    for (int c = thread; c < walk.channels; c += static_cast<int>(blockDim.x))
    {
        sharedAt(task.at.bias)[c] = task.p.dtBias == nullptr ? 0.0F : task.p.dtBias[walk.own + c];
        sharedAt(task.at.skip)[c] = task.p.D == nullptr ? 0.0F : task.p.D[walk.own + c];
    }
}

//! Constant B and C of the channels: (states, channels), absent ones as zeros.
__device__ __forceinline__ void loadConstants(ForwardTask const& task, Walk const& walk, int states, bool carry)
{
    MambaposeScanParams const& p = task.p;
    MAMBAPOSE_ROLLED
    for (int matrix = p.bConstant ? kB : kC; matrix <= (p.cConstant && !carry ? kC : kB); ++matrix)
    {
        MambaposeRows const& rows = matrix == kB ? p.B : p.C;
        float* const target = sharedAt(matrix == kB ? task.at.inputs : task.at.outputs);
        MAMBAPOSE_ROLLED
        for (int i = static_cast<int>(threadIdx.x); i < states << task.channelShift; i += static_cast<int>(blockDim.x))
        {
            int const c = i & (task.blockChannels - 1), n = i >> task.channelShift;
            bool const there = c < walk.channels && n < p.states;
            target[i] = there ? static_cast<float const*>(rows.data)[(walk.own + c) * rows.rowStride + n] : 0.0F;
        }
    }
}

template <int BYTES>
__device__ __forceinline__ void clearPiece(unsigned char* target)
{
    if constexpr (BYTES == 2)
    {
        *reinterpret_cast<uint16_t*>(target) = 0;
    }
    else if constexpr (BYTES == 16)
    {
        *reinterpret_cast<uint4*>(target) = {0, 0, 0, 0};
    }
    else
    {
        MAMBAPOSE_UNROLL
        for (int i = 0; i < BYTES; i += 4)
        {
            *reinterpret_cast<uint32_t*>(target + i) = 0;
        }
    }
}

template <int BYTES>
__device__ __forceinline__ void copyPiece(unsigned char* target, unsigned char const* source)
{
    if constexpr (BYTES == 2)
    {
        *reinterpret_cast<uint16_t*>(target) = *reinterpret_cast<uint16_t const*>(source);
    }
    else
    {
        copyAsync<BYTES>(target, source);
    }
}

//! Copies a row, or its share of one, as one of the threads of it; a row without a token becomes zeros.
template <int BYTES>
__device__ __forceinline__ void copyRow(
    RowCopy const& copy, unsigned char* target, unsigned char const* source, int thread, bool there)
{
    MAMBAPOSE_ROLLED
    for (int at = thread * BYTES; at < copy.bytes; at += BYTES << copy.threadShift)
    {
        if (there)
        {
            copyPiece<BYTES>(target + at, source + at);
        }
        else
        {
            clearPiece<BYTES>(target + at);
        }
    }
}

/* Starts the copies of a tile whose tokens are there. The rows of all tensors make one list that the threads
 * share: going through the tensors one by one would leave most threads idle each time. */
__device__ __forceinline__ void fetchTile(ForwardTask const& task, Tile const& tile)
{
    int i = static_cast<int>(threadIdx.x), start = 0;
    MAMBAPOSE_ROLLED
    for (int tensor = 0; tensor < kROW_TENSORS && tile.count > 0; ++tensor)
    {
        RowCopy const& copy = sharedAt<RowCopy>(task.at.rows)[tensor];
        int const end = copy.end;
        int const first = tensor == kU || tensor == kZ ? tile.rowOfThree : tile.rowOfTwo;
        MAMBAPOSE_ROLLED
        for (; i < end; i += static_cast<int>(blockDim.x))
        {
            int const row = (i - start) >> copy.threadShift, thread = i & ((1 << copy.threadShift) - 1);
            if (row >= tile.steps)
            {
                continue;
            }
            uint32_t const token = sharedAt<uint32_t>(tile.tokens)[row];
            bool const there = isToken(task, token);
            unsigned char* const target = sharedMemory() + copy.target + (first + row) * copy.pitch;
            unsigned char const* const source = copy.base + token * copy.rowBytes;
            switch (copy.pieceBytes)
            {
            case 16: copyRow<16>(copy, target, source, thread, there); break;
            case 8: copyRow<8>(copy, target, source, thread, there); break;
            case 4: copyRow<4>(copy, target, source, thread, there); break;
            default: copyRow<2>(copy, target, source, thread, there); break;
            }
        }
        start = end;
    }
}

} // namespace cuda
} // namespace mambapose
#endif
