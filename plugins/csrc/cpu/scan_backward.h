/* Gradients of the fused scan, fp32. A forward pass keeps the state at the start of every tile; the
 * tiles are then walked from the last to the first, each recomputing its own states. Needs Vec of
 * one vec_*.h. */
#ifndef MAMBAPOSE_SCAN_BACKWARD_H
#define MAMBAPOSE_SCAN_BACKWARD_H

#include "cpu/scan_retreat.h"

namespace mambapose
{
namespace MAMBAPOSE_ISA
{

constexpr int64_t kBACKWARD_STEPS = 32;
constexpr float kLN_2 = 0.693147181F;

class Backward
{
public:
    explicit Backward(BackwardTask const& task)
        : Backward(task.scan)
    {
        mGrads = task.grads;
        mOut = &task;
        carve(task.scan.scratch);
    }

    //! Floats of scratch for a task.
    static int64_t scratchSize(ScanTask const& task)
    {
        return Backward(task).carve(nullptr);
    }

    void run()
    {
        for (mK = mTask.directionBegin; mK < mTask.directionEnd; ++mK)
        {
            startDirection();
            for (int64_t begin = 0; begin < mP.length; begin += mSteps)
            {
                forwardTile(begin);
            }
            startStates(mGrads->dFinalState, mDState, 1.0F);
            for (int64_t tile = mTiles - 1; tile >= 0; --tile)
            {
                backwardTile(tile * mSteps);
            }
            finishDirection();
        }
        finishGate();
    }

private:
    explicit Backward(ScanTask const& task)
        : mP(*task.params)
        , mTask(task)
        , mBegin(task.channelBegin)
        , mEnd(task.channelEnd)
        , mSteps(tileSteps(mP.states, kBACKWARD_STEPS))
        , mTiles((mP.length + mSteps - 1) / mSteps)
        , mPart((mEnd - mBegin + kW - 1) / kW * kW)
        , mMatrixSize(mPart * mP.states)
        , mGradBSize(mP.bConstant ? mMatrixSize : mSteps * mP.states * kW)
        , mGradCSize(mP.cConstant ? mMatrixSize : mSteps * mP.states * kW)
    {
    }

    //! Divides the scratch; returns its size in floats.
    int64_t carve(float* memory)
    {
        Scratch scratch(memory);
        mState = scratch.take(mMatrixSize);
        mDecay = scratch.take(mMatrixSize);
        mDState = scratch.take(mMatrixSize);
        mGradA = scratch.take(mMatrixSize);
        mStarts = scratch.take(mTiles * mMatrixSize);
        mGradD = scratch.take(mPart);
        mGradBias = scratch.take(mPart);
        mX.s = scratch.take(mSteps * kW);
        mX.su = scratch.take(mSteps * kW);
        mX.y = scratch.take(mSteps * kW);
        mG.dy = scratch.take(mSteps * kW);
        mG.ds = scratch.take(mSteps * kW);
        mG.dsu = scratch.take(mSteps * kW);
        mMatrices.B.data = scratch.take(matrixTileSize(mP, mSteps));
        mMatrices.C.data = scratch.take(matrixTileSize(mP, mSteps));
        mGradB = scratch.take(mGradBSize);
        mGradC = scratch.take(mGradCSize);
        mG.before = scratch.take(mSteps * kRETREAT * kW);
        mG.factor = scratch.take(mSteps * kRETREAT * kW);
        mTokens = reinterpret_cast<int32_t*>(scratch.take(mSteps));
        return scratch.taken();
    }

    //! States (B, K*D, N) of this direction to packed blocks; null means zeros.
    void startStates(float const* rows, float* packed, float scale)
    {
        for (int64_t c = mBegin; c < mEnd; c += kW)
        {
            float* const target = packed + at(c);
            if (rows == nullptr)
            {
                clear(target, mP.states * kW);
                continue;
            }
            packStates(rows + stateRow(c), mP.states, lanesAt(c, mEnd), mP.states, scale, target);
        }
    }

    void startDirection()
    {
        for (int64_t c = mBegin; c < mEnd; c += kW)
        {
            float const* const rows = mP.A + (mK * mP.channels + c) * mP.states;
            packStates(rows, mP.states, lanesAt(c, mEnd), mP.states, kLOG2_E, mDecay + at(c));
        }
        startStates(mP.initialState, mState, 1.0F);
        clear(mGradA, mMatrixSize);
        clear(mGradB, mGradBSize);
        clear(mGradC, mGradCSize);
        clear(mGradD, mPart);
        clear(mGradBias, mPart);
    }

    //! Tokens and B, C of the tile that starts at this step.
    Block startTile(int64_t begin)
    {
        int64_t const count = smaller(mSteps, mP.length - begin);
        tokensOf(mP, mK, begin, count, mTokens);
        mMatrices.start(mP, mTask.batch, mK, mTokens, count);
        return Block{mTask.batch, mK, mBegin, kW, mTokens, count};
    }

    void forwardTile(int64_t begin)
    {
        Block block = startTile(begin);
        float* const starts = mStarts + begin / mSteps * mMatrixSize;
        for (int64_t c = mBegin; c < mEnd; c += kW)
        {
            block.channel = c;
            block.lanes = lanesAt(c, mEnd);
            mMatrices.prepare(c, block.lanes);
            prepareSteps<float>(mP, block, mX);
            for (int64_t i = 0; i < mP.states * kW; i += kW)
            {
                Vec::load(mState + at(c) + i).store(starts + at(c) + i);
            }
            recur(mP, begin, block.count, mX, mDecay + at(c), mState + at(c), mMatrices);
            if (mGrads->gZ != nullptr && mP.z.data != nullptr)
            {
                gatherGate(block);
            }
        }
    }

    //! Adds dY * y before the gate to gZ; finishGate multiplies by the slope of the gate.
    void gatherGate(Block const& block)
    {
        for (int64_t t = 0; t < block.count; ++t)
        {
            float* const target = mGrads->gZ + tokenRow(block.tokens[t]) * mP.channels + block.channel;
            Vec const share = loadLanes(dyOf(block, t), block.lanes) * Vec::load(mX.y + t * kW);
            Vec const before = mK > 0 ? loadLanes(target, block.lanes) : Vec::set(0.0F);
            storeLanes(before + share, target, block.lanes);
        }
    }

    void backwardTile(int64_t begin)
    {
        Block block = startTile(begin);
        float const* const starts = mStarts + begin / mSteps * mMatrixSize;
        for (int64_t c = mBegin; c < mEnd; c += kW)
        {
            block.channel = c;
            block.lanes = lanesAt(c, mEnd);
            mMatrices.prepare(c, block.lanes);
            prepareSteps<float>(mP, block, mX);
            prepareGradients(block);
            LaneGrads const grads{mDState + at(c), mGradA + at(c), laneTile(mGradB, mP.bConstant, c),
                laneTile(mGradC, mP.cConstant, c)};
            walkBack(mP, begin, block.count, mX, mG, mDecay + at(c), starts + at(c), mMatrices, grads);
            storeSteps(block);
            if (mMatrices.perLane || !sharesSums(c, c + kW))
            {
                addColumns(block, mP.bConstant, mGradB, mOut->gB, mOut->bRowStride);
                addColumns(block, mP.cConstant, mGradC, mOut->gC, mOut->cRowStride);
            }
        }
    }

    //! True when the next block adds to the same rows of gB and gC, lane for lane.
    bool sharesSums(int64_t c, int64_t next) const
    {
        return next < mEnd && groupOf(c) == groupOf(next) && !needsPerLane(mP, next, lanesAt(next, mEnd));
    }

    //! dy before the gate, and zeros where walkBack adds.
    void prepareGradients(Block const& block)
    {
        for (int64_t t = 0; t < block.count; ++t)
        {
            Vec dy = loadLanes(dyOf(block, t), block.lanes);
            if (mP.z.data != nullptr)
            {
                float const* const z = rowOf<float>(mP.z, mTask.batch, block.tokens[t]) + block.channel;
                dy = dy * siluOf(loadLanes(z, block.lanes));
            }
            dy.store(mG.dy + t * kW);
            Vec::set(0.0F).store(mG.ds + t * kW);
            Vec::set(0.0F).store(mG.dsu + t * kW);
        }
    }

    //! gU and gDt of the tile, and the sums for gD and gDtBias.
    void storeSteps(Block const& block)
    {
        int const lanes = block.lanes;
        int64_t const own = mK * mP.channels + block.channel;
        int64_t const uColumn = mP.uShared ? block.channel : own;
        Vec const zero = Vec::set(0.0F);
        Vec const bias = mP.dtBias == nullptr ? zero : loadLanes(mP.dtBias + own, lanes);
        Vec const skip = mP.D == nullptr ? zero : loadLanes(mP.D + own, lanes);
        Vec sumD = Vec::load(mGradD + block.channel - mBegin);
        Vec sumBias = Vec::load(mGradBias + block.channel - mBegin);
        for (int64_t t = 0; t < block.count; ++t)
        {
            int64_t const token = block.tokens[t];
            Vec const u = loadLanes(rowOf<float>(mP.u, mTask.batch, token) + uColumn, lanes);
            Vec const dy = Vec::load(mG.dy + t * kW), dsu = Vec::load(mG.dsu + t * kW);
            Vec dt = fma(u, dsu, Vec::load(mG.ds + t * kW) * Vec::set(kLN_2));
            if (mP.deltaSoftplus)
            {
                dt = dt * sigmoidOf(loadLanes(rowOf<float>(mP.dt, mTask.batch, token) + own, lanes) + bias);
            }
            sumD = fma(dy, u, sumD);
            sumBias = sumBias + dt;
            if (mGrads->gDt != nullptr)
            {
                storeLanes(dt, mGrads->gDt + tokenRow(token) * mP.directions * mP.channels + own, lanes);
            }
            if (mGrads->gU != nullptr)
            {
                int64_t const wide = mP.channels * (mP.uShared ? 1 : mP.directions);
                float* const target = mGrads->gU + tokenRow(token) * wide + uColumn;
                Vec const before = mP.uShared && mK > 0 ? loadLanes(target, lanes) : zero;
                storeLanes(before + fma(Vec::load(mX.s + t * kW), dsu, skip * dy), target, lanes);
            }
        }
        sumD.store(mGradD + block.channel - mBegin);
        sumBias.store(mGradBias + block.channel - mBegin);
    }

    //! Sums over lanes of a step-dependent B or C into its rows; the lane sums start again at zero.
    void addColumns(Block const& block, int32_t constant, float* lanes, float* rows, int64_t rowStride)
    {
        if (constant || rows == nullptr)
        {
            return;
        }
        int64_t const column = mK * mP.groups * mP.states;
        for (int64_t t = 0; t < block.count; ++t)
        {
            float* const row = rows + block.tokens[t] * rowStride + column;
            for (int64_t n = 0; n < mP.states; ++n)
            {
                float const* const x = lanes + (t * mP.states + n) * kW;
                if (!mMatrices.perLane)
                {
                    row[groupOf(block.channel) * mP.states + n] += sumOf(Vec::load(x));
                    continue;
                }
                for (int lane = 0; lane < block.lanes; ++lane)
                {
                    row[groupOf(block.channel + lane) * mP.states + n] += x[lane];
                }
            }
        }
        clear(lanes, block.count * mP.states * kW);
    }

    void finishDirection()
    {
        for (int64_t c = mBegin; c < mEnd; c += kW)
        {
            int const lanes = lanesAt(c, mEnd);
            int64_t const own = mK * mP.channels + c;
            unpackInto(mDState + at(c), mGrads->gInitialState, lanes, stateRow(c));
            unpackInto(mGradA + at(c), mOut->gA, lanes, own * mP.states);
            unpackInto(mGradB + at(c), mP.bConstant ? mOut->gB : nullptr, lanes, own * mP.states);
            unpackInto(mGradC + at(c), mP.cConstant ? mOut->gC : nullptr, lanes, own * mP.states);
            if (mOut->gD != nullptr)
            {
                storeLanes(Vec::load(mGradD + c - mBegin), mOut->gD + own, lanes);
            }
            if (mOut->gDtBias != nullptr)
            {
                storeLanes(Vec::load(mGradBias + c - mBegin), mOut->gDtBias + own, lanes);
            }
        }
    }

    void unpackInto(float const* packed, float* rows, int lanes, int64_t offset) const
    {
        if (rows != nullptr)
        {
            unpackStates(packed, lanes, mP.states, rows + offset);
        }
    }

    //! gZ = (sum of dY * y) * d silu(z) / dz.
    void finishGate()
    {
        if (mGrads->gZ == nullptr || mP.z.data == nullptr)
        {
            return;
        }
        Vec const one = Vec::set(1.0F);
        for (int64_t token = 0; token < mP.length; ++token)
        {
            for (int64_t c = mBegin; c < mEnd; c += kW)
            {
                int const lanes = lanesAt(c, mEnd);
                float* const target = mGrads->gZ + tokenRow(token) * mP.channels + c;
                Vec const z = loadLanes(rowOf<float>(mP.z, mTask.batch, token) + c, lanes);
                Vec const sigmoid = sigmoidOf(z);
                Vec const slope = sigmoid * fma(z, one - sigmoid, one);
                storeLanes(loadLanes(target, lanes) * slope, target, lanes);
            }
        }
    }

    float const* dyOf(Block const& block, int64_t t) const
    {
        int64_t const wide = mP.mergeSum ? 1 : mP.directions;
        int64_t const column = mP.mergeSum ? block.channel : mK * mP.channels + block.channel;
        return mGrads->dY + tokenRow(block.tokens[t]) * wide * mP.channels + column;
    }
    //! Step-dependent sums live for one tile, constant ones for the direction.
    MatrixTile laneTile(float* lanes, int32_t constant, int64_t c) const
    {
        return constant ? MatrixTile{lanes + at(c), 0} : MatrixTile{lanes, mP.states * kW};
    }
    int64_t tokenRow(int64_t token) const
    {
        return mTask.batch * mP.length + token;
    }
    int64_t stateRow(int64_t c) const
    {
        return ((mTask.batch * mP.directions + mK) * mP.channels + c) * mP.states;
    }
    int64_t groupOf(int64_t channel) const
    {
        return channel / (mP.channels / mP.groups);
    }
    int64_t at(int64_t c) const
    {
        return (c - mBegin) * mP.states;
    }

    MambaposeScanParams const& mP;
    ScanTask const& mTask;
    MambaposeScanGrads const* mGrads = nullptr;
    BackwardTask const* mOut = nullptr;
    int64_t mBegin, mEnd, mSteps, mTiles;
    int64_t mPart, mMatrixSize;     //!< Channels with padding, and their states.
    int64_t mGradBSize, mGradCSize; //!< Lane sums of B and C: of the direction when constant, else of one tile.
    int64_t mK = 0;
    float *mState = nullptr, *mDecay = nullptr, *mDState = nullptr, *mStarts = nullptr;
    float *mGradA = nullptr, *mGradB = nullptr, *mGradC = nullptr, *mGradD = nullptr, *mGradBias = nullptr;
    BlockSteps mX{};
    BackSteps mG{};
    int32_t* mTokens = nullptr;
    MatrixTiles<float> mMatrices;
};

} // namespace MAMBAPOSE_ISA
} // namespace mambapose
#endif
