/* What the kernels of the backward pass share: the task, and where things lie.
 *
 * Scan steps are cut into tiles of at most kTILE steps, and no tile crosses a reset. The first kernel
 * (scan_cuda_backward_walk.h) walks the whole length twice and leaves the state at the start of every
 * tile and the gradient of the state at its end. With both at hand every tile is independent of the
 * others, so the second kernel (scan_cuda_backward_tile.h), which does most of the work, runs over all
 * tiles at once. The third (scan_cuda_sum.h) adds what several blocks computed of the same gradient. */
#ifndef MAMBAPOSE_SCAN_CUDA_BACKWARD_H
#define MAMBAPOSE_SCAN_CUDA_BACKWARD_H

#include "core/mambapose_scan.h"
#include "cuda/vec_cuda.h"

namespace mambapose
{
namespace backward
{

constexpr int kTILE = 16; //!< Steps: their states, factors and gradients fit in the registers of a thread.
constexpr int kLANES = 32;
constexpr int kWARPS = 4;
constexpr int kTHREADS = kWARPS * kLANES;

//! The argument of the kernels. Gradients that several blocks add to go to `parts` in the workspace.
struct GradTask
{
    MambaposeScanParams p;
    MambaposeScanGrads g;
    int64_t groupWidth;   //!< Channels of a group.
    int64_t segment;      //!< Steps between resets; the length when there are none.
    int64_t segmentTiles; //!< Tiles of a segment.
    int64_t tiles;        //!< Of the length.
    int64_t stateBlocks;  //!< Blocks of the walk over the states of a channel,
    int64_t walkBlocks;   //!< and over the channels of a group.
    int64_t tileBlocks;   //!< Blocks of the tile kernel over the channels of a group.
    int64_t tileThreads;  //!< Of such a block: its channels.
    //! (B, tiles, K, N, D): states at the start of tiles, gradients of the state at their end. Each value
    //! has one reader, which leaves its share of gA (and of gB, gC when they are constant) in its place.
    float *starts, *ends;
    float* aParts;
    float *bParts, *cParts;    //!< (tileBlocks, B, L, K*G*N), or as `starts` when constant.
    float *uParts, *zParts;    //!< (K, B, L, D), or (B, L, K*D) for a u per direction.
    float *dParts, *biasParts; //!< (B, tiles, K*D).
};

//! Takes apart the number of a block, the fastest index first.
class BlockIndex
{
public:
    __device__ int next(int64_t size)
    {
        unsigned const count = static_cast<unsigned>(size), index = mLeft % count;
        mLeft /= count;
        return static_cast<int>(index);
    }

private:
    unsigned mLeft = blockIdx.x;
};

//! Steps [begin, begin + count) of the walk.
struct Tile
{
    int index, begin, count;
    bool opens, closes; //!< It begins a segment; it ends one, or the length.
};

__device__ inline int64_t smaller(int64_t a, int64_t b)
{
    return a < b ? a : b;
}

__device__ inline Tile tileOf(GradTask const& task, int index)
{
    int const perSegment = static_cast<int>(task.segmentTiles);
    int const segment = index / perSegment, piece = index % perSegment;
    int64_t const begin = segment * task.segment + piece * kTILE;
    int64_t const left = smaller((segment + 1) * task.segment, task.p.length) - begin;
    return {index, static_cast<int>(begin), static_cast<int>(smaller(left, kTILE)), piece == 0, left <= kTILE};
}

__device__ inline float softplus(float x)
{
    return cuda::softplusOf(cuda::Vec::set(x)).v;
}

__device__ inline float sigmoid(float x)
{
    return cuda::sigmoidOf(cuda::Vec::set(x)).v;
}

__device__ inline float silu(float x)
{
    return cuda::siluOf(cuda::Vec::set(x)).v;
}

//! The derivative of silu.
__device__ inline float siluSlope(float x)
{
    float const y = sigmoid(x);
    return y * fmaf(x, 1.0F - y, 1.0F);
}

//! The token of a step, or -1 when the order names none of [0, L).
__device__ inline int tokenOf(MambaposeScanParams const& p, int direction, int step)
{
    int const length = static_cast<int>(p.length);
    int const place = (p.reverseMask >> direction & 1) != 0 ? length - 1 - step : step;
    if (p.order == nullptr)
    {
        return place;
    }
    int const token = p.order[(p.orderRows == 1 ? 0 : direction * p.length) + place];
    return token >= 0 && token < length ? token : -1;
}

//! The channel that a thread works on.
struct Lane
{
    int batch, direction, group, channel;
    int own;     //!< Of its parameters: direction * D + channel.
    bool active; //!< False where a block is wider than its group: loads what its neighbour loads, stores nothing.
};

__device__ inline Lane laneOf(GradTask const& task, int batch, int direction, int group, int inGroup)
{
    int const width = static_cast<int>(task.groupWidth);
    int const channel = group * width + (inGroup < width ? inGroup : width - 1);
    return {batch, direction, group, channel, direction * static_cast<int>(task.p.channels) + channel, inGroup < width};
}

/* One column of a tensor of rows. Loads of tiles are not skipped where there is no step or channel, only
 * their values: without branches between them they are all under way at once. */
struct Column
{
    float const* data;
    int64_t rowStride;

    __device__ float at(int token) const
    {
        return data[(token < 0 ? 0 : token) * rowStride];
    }
};

__device__ inline Column columnOf(MambaposeRows const& rows, int batch, int64_t column)
{
    return {static_cast<float const*>(rows.data) + batch * rows.batchStride + column, rows.rowStride};
}

__device__ inline Column uColumn(MambaposeScanParams const& p, Lane const& at)
{
    return columnOf(p.u, at.batch, p.uShared ? at.channel : at.own);
}

__device__ inline Column dyColumn(GradTask const& task, Lane const& at)
{
    MambaposeScanParams const& p = task.p;
    int64_t const wide = p.mergeSum ? p.channels : p.directions * p.channels;
    return {task.g.dY + at.batch * p.length * wide + (p.mergeSum ? at.channel : at.own), wide};
}

//! Column n of B or C when it has rows.
__device__ inline Column matrixColumn(
    MambaposeScanParams const& p, MambaposeRows const& rows, int batch, int direction, int group, int n)
{
    return columnOf(rows, batch, (direction * p.groups + group) * p.states + n);
}

//! A row of constant B or C.
__device__ inline float const* constantRow(MambaposeRows const& rows, Lane const& at)
{
    return static_cast<float const*>(rows.data) + at.own * rows.rowStride;
}

__device__ inline float valueOr0(float const* values, int64_t index)
{
    return values == nullptr ? 0.0F : values[index];
}

//! Place of a lane's state n in `starts` and in what is shaped like it.
__device__ inline int64_t tileState(GradTask const& task, Lane const& at, int tile, int n)
{
    MambaposeScanParams const& p = task.p;
    return (((at.batch * task.tiles + tile) * p.directions + at.direction) * p.states + n) * p.channels + at.channel;
}

//! Place of a lane's first state in (B, K*D, N).
__device__ inline int64_t stateRow(MambaposeScanParams const& p, Lane const& at)
{
    return (at.batch * p.directions * p.channels + at.own) * p.states;
}

} // namespace backward
} // namespace mambapose
#endif
