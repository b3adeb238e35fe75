/* What a thread of the tile kernel does: lanes are channels, so that sums over states stay in a thread,
 * and the steps of the tile stand side by side in its registers. Sums over channels are shuffles. */
#ifndef MAMBAPOSE_SCAN_CUDA_BACKWARD_TILE_H
#define MAMBAPOSE_SCAN_CUDA_BACKWARD_TILE_H

#include "cuda/scan_cuda_backward.h"

namespace mambapose
{
namespace backward
{

//! The steps of one channel. Missing steps and idle lanes are all zero: they change nothing.
template <bool GATE>
struct Steps
{
    float s[kTILE], su[kTILE], dy[kTILE];                            //!< dy: before the gate.
    float ds[kTILE] = {}, dsu[kTILE] = {}, y[GATE ? kTILE : 1] = {}; //!< Sums over states.
};

//! dt to s.
__device__ inline void stepSizes(GradTask const& task, Lane const& lane, float (&dt)[kTILE])
{
    float const bias = valueOr0(task.p.dtBias, lane.own);
    MAMBAPOSE_UNROLL
    for (int t = 0; t < kTILE; ++t)
    {
        dt[t] += bias;
    }
    if (task.p.deltaSoftplus)
    {
        MAMBAPOSE_UNROLL
        for (int t = 0; t < kTILE; ++t)
        {
            dt[t] = softplus(dt[t]);
        }
    }
}

template <bool GATE>
__device__ inline void loadSteps(GradTask const& task, Lane const& lane, int const* tokens, Steps<GATE>& x)
{
    MambaposeScanParams const& p = task.p;
    Column const uRows = uColumn(p, lane), dtRows = columnOf(p.dt, lane.batch, lane.own);
    Column const dyRows = dyColumn(task, lane), zRows = columnOf(p.z, lane.batch, lane.channel);
    bool const gated = p.z.data != nullptr;
    float u[kTILE], z[kTILE];
    MAMBAPOSE_UNROLL
    for (int t = 0; t < kTILE; ++t)
    {
        u[t] = uRows.at(tokens[t]);
        x.s[t] = dtRows.at(tokens[t]);
        x.dy[t] = dyRows.at(tokens[t]);
        z[t] = gated ? zRows.at(tokens[t]) : 0.0F;
    }
    if (gated)
    {
        MAMBAPOSE_UNROLL
        for (int t = 0; t < kTILE; ++t)
        {
            x.dy[t] *= silu(z[t]);
        }
    }
    stepSizes(task, lane, x.s);
    MAMBAPOSE_UNROLL
    for (int t = 0; t < kTILE; ++t)
    {
        bool const valid = lane.active && tokens[t] >= 0;
        x.s[t] = valid ? x.s[t] : 0.0F;
        x.su[t] = valid ? x.s[t] * u[t] : 0.0F;
        x.dy[t] = valid ? x.dy[t] : 0.0F;
    }
}

/* One state of one channel. Before the tile: A, the state at its start, the gradient of the state at its end,
 * and B, C when they are constant. After it: the gradients of A, of the state at its start, of B and of C. */
struct State
{
    float a, start, end, B, C;
};

/* Where the states of one channel and tile come from, and where their gradients go. Addresses are made anew
 * for every state: registers are what the loop over states is short of. */
template <bool B_CONSTANT, bool C_CONSTANT>
class StateColumns
{
public:
    __device__ StateColumns(GradTask const& task, Lane const& lane, Tile const& tile)
        : mTask(task)
        , mTile(tile)
        , mLane(lane)
        , mPlace(tileState(task, lane, tile.index, 0))
    {
    }

    __device__ State load(int n) const
    {
        MambaposeScanParams const& p = mTask.p;
        State state{};
        if (mLane.active)
        {
            state.a = p.A[mLane.own * p.states + n];
            state.start = mTask.starts[placeOf(n)];
            state.end = mTask.ends[placeOf(n)];
            state.B = B_CONSTANT ? constantRow(p.B, mLane)[n] : 0.0F;
            state.C = C_CONSTANT ? constantRow(p.C, mLane)[n] : 0.0F;
        }
        return state;
    }

    __device__ void store(int n, State const& state) const
    {
        if (!mLane.active)
        {
            return;
        }
        if (mTask.aParts != nullptr)
        {
            mTask.aParts[placeOf(n)] = state.a;
        }
        if (B_CONSTANT && mTask.bParts != nullptr)
        {
            mTask.bParts[placeOf(n)] = state.B;
        }
        if (C_CONSTANT && mTask.cParts != nullptr)
        {
            mTask.cParts[placeOf(n)] = state.C;
        }
        if (mTile.index == 0 && mTask.g.gInitialState != nullptr)
        {
            // A reset in the first step leaves nothing of the state before it.
            mTask.g.gInitialState[stateRow(mTask.p, mLane) + n] = mTask.p.segment > 0 ? 0.0F : state.start;
        }
    }

private:
    __device__ int64_t placeOf(int n) const
    {
        return mPlace + static_cast<int64_t>(n) * static_cast<int>(mTask.p.channels);
    }

    GradTask const& mTask;
    Tile const& mTile;
    Lane mLane;
    int64_t mPlace;
};

//! Gradients of B and C at the steps of the tile, as far as one channel contributes.
struct Shares
{
    float B[kTILE], C[kTILE];
};

//! The recurrence of one state over the tile and back.
template <bool GATE, bool B_CONSTANT, bool C_CONSTANT>
__device__ inline void retreat(State& state, float const* B, float const* C, Steps<GATE>& x, Shares& shares)
{
    float const decay = state.a * cuda::kLOG2_E;
    float factor[kTILE], before[kTILE];
    float h = state.start, dh = state.end, gA = 0.0F, gB = 0.0F, gC = 0.0F;
    MAMBAPOSE_UNROLL
    for (int t = 0; t < kTILE; ++t)
    {
        factor[t] = exp2Approx(x.s[t] * decay);
        before[t] = h;
        h = fmaf(factor[t], h, x.su[t] * (B_CONSTANT ? state.B : B[t]));
    }
    MAMBAPOSE_UNROLL
    for (int t = kTILE - 1; t >= 0; --t)
    {
        float const b = B_CONSTANT ? state.B : B[t], c = C_CONSTANT ? state.C : C[t];
        float const d = fmaf(x.dy[t], c, dh);
        shares.B[t] = d * x.su[t];
        shares.C[t] = x.dy[t] * h;
        gB += B_CONSTANT ? shares.B[t] : 0.0F;
        gC += C_CONSTANT ? shares.C[t] : 0.0F;
        if constexpr (GATE)
        {
            x.y[t] = fmaf(h, c, x.y[t]);
        }
        x.dsu[t] = fmaf(d, b, x.dsu[t]);
        dh = d * factor[t];
        h = before[t];
        float const change = dh * h;
        x.ds[t] = fmaf(change, state.a, x.ds[t]);
        gA = fmaf(change, x.s[t], gA);
    }
    state = {gA, dh, 0.0F, gB, gC};
}

//! Halves the values and the lanes they are spread over: lane i keeps the half that bit HALF of i names.
template <int HALF>
__device__ inline void foldLanes(float (&x)[kTILE])
{
    bool const upper = (threadIdx.x & HALF) != 0;
    MAMBAPOSE_UNROLL
    for (int i = 0; i < HALF; ++i)
    {
        float const kept = upper ? x[i + HALF] : x[i];
        float const given = upper ? x[i] : x[i + HALF];
        x[i] = kept + __shfl_xor_sync(0xFFFFFFFFU, given, HALF);
    }
    if constexpr (HALF > 1)
    {
        foldLanes<HALF / 2>(x);
    }
}

/* Sums over the channels of a warp, without those of a constant B or C: of shares.B[i] in lane i below kTILE,
 * of shares.C[i] in lane i + kTILE. */
template <bool B_CONSTANT, bool C_CONSTANT>
__device__ inline float sumOverLanes(Shares& shares)
{
    float(&x)[kTILE] = B_CONSTANT ? shares.C : shares.B;
    if constexpr (!B_CONSTANT && !C_CONSTANT)
    {
        bool const upper = (threadIdx.x & kTILE) != 0;
        MAMBAPOSE_UNROLL
        for (int i = 0; i < kTILE; ++i)
        {
            float const kept = upper ? shares.C[i] : shares.B[i];
            float const given = upper ? shares.B[i] : shares.C[i];
            x[i] = kept + __shfl_xor_sync(0xFFFFFFFFU, given, kTILE);
        }
        foldLanes<kTILE / 2>(x);
        return x[0];
    }
    foldLanes<kTILE / 2>(x);
    return x[0] + __shfl_xor_sync(0xFFFFFFFFU, x[0], kTILE);
}

} // namespace backward
} // namespace mambapose
#endif
