/* The fused forward scan: time tile > channel block > step > state, lanes = channels. Per tile and
 * block three passes over the first-level cache: step sizes and inputs, recurrence, gate and store.
 * Needs Vec of one vec_*.h. */
#ifndef MAMBAPOSE_SCAN_FORWARD_H
#define MAMBAPOSE_SCAN_FORWARD_H

#include "cpu/scan_block.h"

namespace mambapose
{
namespace MAMBAPOSE_ISA
{

constexpr int64_t kFORWARD_STEPS = 64;
constexpr int64_t kSUM_FLOATS = 65536; //!< Running fp32 sums of an fp16 merge: 256 KiB, or one block.

template <typename T>
class Forward
{
public:
    explicit Forward(ScanTask const& task)
        : mP(*task.params)
        , mTask(task)
        , mSteps(tileSteps(mP.states, kFORWARD_STEPS))
        , mBegin(task.channelBegin)
        , mEnd(task.channelEnd)
        , mKeepSums(keepsSums(mP))
    {
        carve(task.scratch);
    }

    //! Floats of scratch for a task.
    static int64_t scratchSize(ScanTask const& task)
    {
        Forward sizes(task);
        return sizes.carve(nullptr);
    }

    void run()
    {
        int64_t const part = partChannels();
        for (int64_t begin = mTask.channelBegin; begin < mTask.channelEnd; begin += part)
        {
            mBegin = begin;
            mEnd = smaller(begin + part, mTask.channelEnd);
            for (int64_t k = mTask.directionBegin; k < mTask.directionEnd; ++k)
            {
                direction(k);
            }
        }
    }

private:
    //! Sums of several directions cannot be kept in an fp16 y.
    static bool keepsSums(MambaposeScanParams const& p)
    {
        return sizeof(T) == 2 && p.mergeSum && p.directions > 1;
    }

    //! Channels run through all directions together: all of the task, unless their sums would not stay in cache.
    int64_t partChannels() const
    {
        int64_t const all = (mTask.channelEnd - mTask.channelBegin + kW - 1) / kW * kW;
        if (!mKeepSums || mP.length == 0)
        {
            return all;
        }
        int64_t const fitting = kSUM_FLOATS / (mP.length * kW) * kW;
        return smaller(all, fitting < kW ? kW : fitting);
    }

    //! Divides the scratch; returns its size in floats.
    int64_t carve(float* memory)
    {
        Scratch scratch(memory);
        int64_t const part = partChannels();
        mState = scratch.take(part * mP.states);
        mDecay = scratch.take(part * mP.states);
        mX.s = scratch.take(mSteps * kW);
        mX.su = scratch.take(mSteps * kW);
        mX.y = scratch.take(mSteps * kW);
        mTiles.B.data = scratch.take(matrixTileSize(mP, mSteps));
        mTiles.C.data = scratch.take(matrixTileSize(mP, mSteps));
        mTokens = reinterpret_cast<int32_t*>(scratch.take(2 * mSteps));
        mSums = scratch.take(mKeepSums ? part * mP.length : 0);
        return scratch.taken();
    }

    void direction(int64_t k)
    {
        mK = k;
        int64_t const first = k * mP.channels;
        int64_t const stateRow = mTask.batch * mP.directions * mP.channels + first;
        for (int64_t c = mBegin; c < mEnd; c += kW)
        {
            int const lanes = lanesAt(c, mEnd);
            packStates(mP.A + (first + c) * mP.states, mP.states, lanes, mP.states, kLOG2_E, decayOf(c));
            if (mP.initialState == nullptr)
            {
                clear(stateOf(c), mP.states * kW);
                continue;
            }
            float const* const start = mP.initialState + (stateRow + c) * mP.states;
            packStates(start, mP.states, lanes, mP.states, 1.0F, stateOf(c));
        }
        for (int64_t begin = 0; begin < mP.length; begin += mSteps)
        {
            tile(begin, smaller(mSteps, mP.length - begin));
        }
        for (int64_t c = mBegin; c < mEnd && mP.finalState != nullptr; c += kW)
        {
            unpackStates(stateOf(c), lanesAt(c, mEnd), mP.states, mP.finalState + (stateRow + c) * mP.states);
        }
    }

    void tile(int64_t begin, int64_t count)
    {
        int64_t const after = smaller(mSteps, mP.length - begin - count);
        tokensOf(mP, mK, begin, count + after, mTokens);
        mTiles.start(mP, mTask.batch, mK, mTokens, count);
        fetchMatrices(mTokens + count, after);
        for (int64_t c = mBegin; c < mEnd; c += kW)
        {
            Block const block{mTask.batch, mK, c, lanesAt(c, mEnd), mTokens, count};
            NextRows const next
                = c + kW < mEnd ? rowsOf(c + kW, mTokens, count) : rowsOf(mBegin, mTokens + count, after);
            mX.next = &next;
            mTiles.prepare(c, block.lanes);
            prepareSteps<T>(mP, block, mX);
            recur(mP, begin, count, mX, decayOf(c), stateOf(c), mTiles);
            finish(block);
        }
    }

    //! The rows of a block that tile() will come to.
    NextRows rowsOf(int64_t channel, int32_t const* tokens, int64_t count) const
    {
        int64_t const own = mK * mP.channels + channel;
        NextRows next{tokens, count, 0, {}, {}};
        next.add<T>(mP.dt, mTask.batch, own);
        next.add<T>(mP.u, mTask.batch, mP.uShared ? channel : own);
        next.add<T>(mP.y, mTask.batch, mP.mergeSum ? channel : own);
        next.add<T>(mP.z, mTask.batch, channel);
        return next;
    }

    //! Asks for the first rows of B and C of the next tile when an order scatters them.
    void fetchMatrices(int32_t const* tokens, int64_t count) const
    {
        int64_t const column = mK * mP.groups * mP.states;
        for (int64_t t = 0; t < count && mP.order != nullptr; ++t)
        {
            if (!mP.bConstant)
            {
                __builtin_prefetch(rowOf<T>(mP.B, mTask.batch, tokens[t]) + column);
            }
            if (!mP.cConstant)
            {
                __builtin_prefetch(rowOf<T>(mP.C, mTask.batch, tokens[t]) + column);
            }
        }
    }

    //! Adds the directions before, gates after the last one, stores in token order.
    void finish(Block const& block)
    {
        int64_t const c = block.channel;
        int const lanes = block.lanes;
        bool const add = mP.mergeSum && mK > 0;
        bool const last = !mP.mergeSum || mK == mP.directions - 1;
        int64_t const column = mP.mergeSum ? c : mK * mP.channels + c;
        for (int64_t t = 0; t < block.count; ++t)
        {
            int64_t const token = mTokens[t];
            T* const target = rowOf<T>(mP.y, mTask.batch, token) + column;
            float* const sum = mSums + (mKeepSums ? (c - mBegin) * mP.length + token * kW : 0);
            Vec y = Vec::load(mX.y + t * kW);
            if (add)
            {
                y = y + (mKeepSums ? Vec::load(sum) : loadLanes(target, lanes));
            }
            if (!last && mKeepSums)
            {
                y.store(sum);
                continue;
            }
            if (last && mP.z.data != nullptr)
            {
                y = y * siluOf(loadLanes(rowOf<T>(mP.z, mTask.batch, token) + c, lanes));
            }
            storeLanes(y, target, lanes);
        }
    }

    float* stateOf(int64_t c)
    {
        return mState + (c - mBegin) * mP.states;
    }
    float* decayOf(int64_t c)
    {
        return mDecay + (c - mBegin) * mP.states;
    }

    MambaposeScanParams const& mP;
    ScanTask const& mTask;
    int64_t mSteps, mBegin, mEnd;
    bool mKeepSums;
    int64_t mK = 0;
    float *mState = nullptr, *mDecay = nullptr, *mSums = nullptr;
    BlockSteps mX{};
    int32_t* mTokens = nullptr;
    MatrixTiles<T> mTiles;
};

} // namespace MAMBAPOSE_ISA
} // namespace mambapose
#endif
