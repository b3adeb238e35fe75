/* First kernel of the backward pass: the state at the start of every tile, and the gradient of the state
 * at its end. Both are recurrences with the same factors, so one kernel walks forward in half of its
 * blocks, h = factor * h + s*u * B, and backward in the others, g = factor * (g + dy * C). */
#ifndef MAMBAPOSE_SCAN_CUDA_BACKWARD_WALK_H
#define MAMBAPOSE_SCAN_CUDA_BACKWARD_WALK_H

#include "cuda/scan_cuda_backward.h"

namespace mambapose
{
namespace backward
{

//! What a block walks.
struct WalkPlace
{
    bool forward;
    int stateBlock, channelBlock, group, direction, batch;
};

__device__ inline WalkPlace walkPlace(GradTask const& task)
{
    BlockIndex block;
    WalkPlace at{};
    at.forward = block.next(2) == 0;
    at.stateBlock = block.next(task.stateBlocks);
    at.channelBlock = block.next(task.walkBlocks);
    at.group = block.next(task.p.groups);
    at.direction = block.next(task.p.directions);
    at.batch = block.next(task.p.batch);
    return at;
}

//! States that a thread reads at once.
template <int STATES>
struct alignas(STATES * sizeof(float)) Pack
{
    float of[STATES];
};

//! One tile in shared memory, in the order of the walk. Steps beyond the tile are all zero: they change nothing.
template <int STATES>
struct WalkTile
{
    static constexpr int kSTATES = STATES * kWARPS;
    Pack<STATES> matrix[kTILE][kWARPS]; //!< B or C.
    float s[kTILE][kLANES];
    float x[kTILE][kLANES]; //!< s*u, or dy before the gate.
};

//! Rows of the next tile on their way to shared memory: asked for before this tile is computed, used after it.
template <int STATES>
class WalkRows
{
public:
    __device__ WalkRows(GradTask const& task, WalkPlace const& place, Lane const& lane)
        : mTask(task)
        , mPlace(place)
        , mActive(lane.active)
        , mFirstRow(static_cast<int>(threadIdx.x) / kLANES * kROWS)
        , mDtColumn(columnOf(task.p.dt, lane.batch, lane.own))
        , mXColumn(place.forward ? uColumn(task.p, lane) : dyColumn(task, lane))
        , mZColumn(columnOf(task.p.z, lane.batch, lane.channel))
        , mBias(valueOr0(task.p.dtBias, lane.own))
    {
        MambaposeScanParams const& p = task.p;
        mRow = static_cast<int>(threadIdx.x) / kSTATES;
        int const n = place.stateBlock * kSTATES + threadIdx.x % kSTATES;
        mHasMatrix = n < p.states && !(place.forward ? p.bConstant : p.cConstant);
        mMatrixColumn = matrixColumn(p, place.forward ? p.B : p.C, lane.batch, lane.direction, lane.group, n);
        mGated = !place.forward && p.z.data != nullptr;
    }

    __device__ void fetch(Tile const& tile)
    {
        int tokens[kROWS];
        mValid = 0;
        MAMBAPOSE_UNROLL
        for (int i = 0; i < kROWS; ++i)
        {
            tokens[i] = tokenAt(tile, mFirstRow + i);
            mValid |= mActive && tokens[i] >= 0 ? 1U << i : 0U;
        }
        MAMBAPOSE_UNROLL
        for (int i = 0; i < kROWS; ++i)
        {
            mDt[i] = mDtColumn.at(tokens[i]);
            mX[i] = mXColumn.at(tokens[i]);
            mZ[i] = mGated ? mZColumn.at(tokens[i]) : 0.0F;
        }
        MAMBAPOSE_UNROLL
        for (int i = 0; i < kPIECES; ++i)
        {
            int const row = mRow + i * kROW_STEP;
            int const token = mHasMatrix && row < kTILE ? tokenAt(tile, row) : -1;
            mMatrix[i] = token < 0 ? 0.0F : mMatrixColumn.at(token);
        }
    }

    __device__ void store(WalkTile<STATES>& buffer) const
    {
        MAMBAPOSE_UNROLL
        for (int i = 0; i < kROWS; ++i)
        {
            bool const valid = (mValid >> i & 1U) != 0;
            float const dt = mDt[i] + mBias;
            float const s = mTask.p.deltaSoftplus ? softplus(dt) : dt;
            float const x = mPlace.forward ? s * mX[i] : mGated ? mX[i] * silu(mZ[i]) : mX[i];
            buffer.s[mFirstRow + i][threadIdx.x % kLANES] = valid ? s : 0.0F;
            buffer.x[mFirstRow + i][threadIdx.x % kLANES] = valid ? x : 0.0F;
        }
        int const n = threadIdx.x % kSTATES;
        MAMBAPOSE_UNROLL
        for (int i = 0; i < kPIECES; ++i)
        {
            int const row = mRow + i * kROW_STEP;
            if (row < kTILE)
            {
                buffer.matrix[row][n / STATES].of[n % STATES] = mMatrix[i];
            }
        }
    }

private:
    static constexpr int kSTATES = WalkTile<STATES>::kSTATES;
    static constexpr int kROWS = kTILE / kWARPS;          //!< A thread loads so many rows of its channel,
    static constexpr int kROW_STEP = kTHREADS / kSTATES;  //!< and these of one column of B or C.
    static constexpr int kPIECES = (kTILE + kROW_STEP - 1) / kROW_STEP;

    //! Token of a row of the buffer, -1 beyond the tile.
    __device__ int tokenAt(Tile const& tile, int row) const
    {
        int const step = mPlace.forward ? row : tile.count - 1 - row;
        return row < tile.count ? tokenOf(mTask.p, mPlace.direction, tile.begin + step) : -1;
    }

    GradTask const& mTask;
    WalkPlace const& mPlace;
    bool mActive, mGated, mHasMatrix;
    int mFirstRow, mRow;
    Column mDtColumn, mXColumn, mZColumn, mMatrixColumn;
    float mBias;
    unsigned mValid = 0;
    float mDt[kROWS], mX[kROWS], mZ[kROWS], mMatrix[kPIECES];
};

//! Walks one tile. CONSTANT: B or C is `fixed` for all steps.
template <bool FORWARD, bool CONSTANT, int STATES>
__device__ inline void walkTile(WalkTile<STATES> const& tile, int column, int warp,
    float const (&decay)[STATES], Pack<STATES> const& fixed, float (&state)[STATES])
{
    MAMBAPOSE_UNROLL
    for (int row = 0; row < kTILE; ++row)
    {
        float const s = tile.s[row][column], x = tile.x[row][column];
        Pack<STATES> const matrix = CONSTANT ? fixed : tile.matrix[row][warp];
        MAMBAPOSE_UNROLL
        for (int n = 0; n < STATES; ++n)
        {
            float const factor = exp2Approx(s * decay[n]);
            state[n] = FORWARD ? fmaf(factor, state[n], x * matrix.of[n]) : factor * fmaf(x, matrix.of[n], state[n]);
        }
    }
}

//! Leaves the state that enters a tile.
template <int STATES>
__device__ inline void storeState(
    GradTask const& task, WalkPlace const& place, Lane const& lane, int tile, int n0, float const (&state)[STATES])
{
    MAMBAPOSE_UNROLL
    for (int n = 0; n < STATES; ++n)
    {
        if (lane.active && n0 + n < task.p.states)
        {
            (place.forward ? task.starts : task.ends)[tileState(task, lane, tile, n0 + n)] = state[n];
        }
    }
}

//! Lanes are channels; each warp of a block has STATES of their states.
template <int STATES>
__global__ void __launch_bounds__(kTHREADS, 4) walkStates(GradTask const task)
{
    MambaposeScanParams const& p = task.p;
    auto* const buffers = reinterpret_cast<WalkTile<STATES>*>(sharedMemory());
    WalkPlace const place = walkPlace(task);
    int const warp = static_cast<int>(threadIdx.x) / kLANES, column = static_cast<int>(threadIdx.x) % kLANES;
    int const n0 = (place.stateBlock * kWARPS + warp) * STATES;
    Lane const lane = laneOf(task, place.batch, place.direction, place.group, place.channelBlock * kLANES + column);
    bool const constant = place.forward ? p.bConstant : p.cConstant;
    float const* const fixedRow = constant ? constantRow(place.forward ? p.B : p.C, lane) : nullptr;
    // With segments there is no initial state, and the gradient of the last state enters at the last tile only.
    float const* const entering = place.forward ? p.initialState : task.g.dFinalState;
    float state[STATES], decay[STATES];
    Pack<STATES> fixed;
    MAMBAPOSE_UNROLL
    for (int n = 0; n < STATES; ++n)
    {
        bool const real = lane.active && n0 + n < p.states;
        state[n] = real ? valueOr0(entering, stateRow(p, lane) + n0 + n) : 0.0F;
        decay[n] = real ? p.A[lane.own * p.states + n0 + n] * cuda::kLOG2_E : 0.0F;
        fixed.of[n] = real ? valueOr0(fixedRow, n0 + n) : 0.0F;
    }

    WalkRows<STATES> rows(task, place, lane);
    int const last = static_cast<int>(task.tiles) - 1; // Of the walk: nothing enters a tile behind it.
    Tile tile = tileOf(task, place.forward ? 0 : last);
    storeState(task, place, lane, tile.index, n0, state);
    rows.fetch(tile);
    rows.store(buffers[0]);
    for (int i = 0; i < last; ++i)
    {
        tile = tileOf(task, place.forward ? i + 1 : last - i - 1);
        __syncthreads(); // The tile before is in shared memory, and nobody reads the one before that.
        if (i + 1 < last)
        {
            rows.fetch(tile);
        }
        WalkTile<STATES> const& now = buffers[i % 2];
        if (place.forward)
        {
            constant ? walkTile<true, true>(now, column, warp, decay, fixed, state)
                     : walkTile<true, false>(now, column, warp, decay, fixed, state);
        }
        else
        {
            constant ? walkTile<false, true>(now, column, warp, decay, fixed, state)
                     : walkTile<false, false>(now, column, warp, decay, fixed, state);
        }
        bool const reset = place.forward ? tile.opens : tile.closes;
        MAMBAPOSE_UNROLL
        for (int n = 0; n < STATES; ++n)
        {
            state[n] = reset ? 0.0F : state[n];
        }
        storeState(task, place, lane, tile.index, n0, state);
        if (i + 1 < last)
        {
            rows.store(buffers[(i + 1) % 2]);
        }
    }
}

} // namespace backward
} // namespace mambapose
#endif
