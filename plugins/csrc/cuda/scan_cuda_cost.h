/* How long a forward launch is expected to run: what chooses among the forms where nothing was timed. */
#ifndef MAMBAPOSE_SCAN_CUDA_COST_H
#define MAMBAPOSE_SCAN_CUDA_COST_H

#include "cuda/scan_cuda_plan.h"

#include <algorithm>
#include <cmath>

namespace mambapose
{

/* Expected run time in cycles of a multiprocessor. A multiprocessor issues 4 instructions of a warp per
 * cycle, starts an exponential of a warp every 2 cycles and one access to shared memory every cycle.
 * Instructions were counted in the compiled kernels; latencies are those published for Ampere and Hopper.
 * No figure was measured: on a device the tactics are there to be timed. */
class Cost
{
public:
    Cost(ForwardLaunch const& launch, int32_t multiprocessors)
        : mTask(launch.task)
        , mForm(kFORMS[launch.form])
        , mThreads(launch.threads)
        , mMultiprocessors(multiprocessors)
    {
        mExchanges = log2Of(mForm.timeLanes);
        mCycles = kernel(launch.blocks, false, mTask.fused ? static_cast<double>(mTask.p.directions) : 1.0);
        if (launch.carryBlocks > 0)
        {
            mCycles += kLAUNCH + kernel(launch.carryBlocks, true, 1.0);
        }
        if (mTask.p.mergeSum && mTask.p.directions > 1 && !mTask.fused)
        {
            MambaposeScanParams const& p = mTask.p;
            double const outputs = static_cast<double>(p.batch * p.length * p.channels);
            mCycles += kLAUNCH + 1000.0 + outputs * (static_cast<double>(p.directions) + 3.0) / 8.0 / mMultiprocessors;
        }
    }
    double cycles() const
    {
        return mCycles;
    }

private:
    static constexpr double kLAUNCH = 2000.0; //!< From the end of one kernel to the start of the next.

    static double log2Of(int x)
    {
        return x <= 1 ? 0.0 : 1.0 + log2Of(x / 2);
    }

    /* The longer of two times: the work of all blocks of a multiprocessor, and the way of one block after the
     * other through the chains of dependent instructions. */
    double kernel(double blocks, bool carry, double walks) const
    {
        double const steps = mForm.stepsPerThread, lanes = mForm.timeLanes > 1, warps = mThreads / kWARP;
        double const rounds = mTask.tileSteps / (steps * mForm.timeLanes);
        double const advances = rounds * warps * mForm.statesPerThread;
        double const points = static_cast<double>(mTask.tileSteps) * mTask.blockChannels / kWARP;
        double const each = (carry ? 5.0 : 6.25) * steps + lanes * (steps + 12.0 + 8.0 * mExchanges);
        double const around = outside(points, carry);
        double const special = advances * (steps + lanes) + points * (carry ? 1.0 : 4.0);
        double const loads = (carry ? 0.25 : 0.5) * steps * (1.0 + lanes) + lanes * (1.0 + 2.0 * mExchanges);
        double const access = advances * loads + around * 0.2;
        double const busy = std::max({(advances * each + around) / 4.0, special * 2.0, access}) / 0.85;
        double const chain = 70.0 + 4.0 * steps + lanes * (50.0 + 4.0 * steps + 30.0 * mExchanges);
        double const waiting = 250.0 + 1.5 * around / warps + rounds * (chain + mForm.statesPerThread * each * 0.8);
        double const perUnit = std::ceil(blocks / mMultiprocessors);
        double const fitting = std::min({1536.0 / mThreads, 65536.0 / (110.0 * mThreads), 163840.0 / mTask.at.bytes});
        double const resident = std::max(1.0, std::floor(std::min(perUnit, fitting)));
        double const tiles = walks * tilesOf(), start = 1500.0 * walks + (carry ? 0.0 : 40.0 * mTask.chunks);
        return std::max(perUnit * tiles * busy, std::ceil(perUnit / resident) * (tiles * waiting + start));
    }

    //! Instructions of a warp for a tile outside of the recurrence: copies, B and C, and `points` of 32 channels.
    double outside(double points, bool carry) const
    {
        MambaposeScanParams const& p = mTask.p;
        double const size = p.dtype == MAMBAPOSE_FP32 ? 4.0 : 2.0, rows = mTask.tileSteps, matrices = carry ? 1.0 : 2.0;
        double const ofMatrix = std::ceil(static_cast<double>(p.states) * size / 16.0);
        double const tensors = carry || p.z.data == nullptr ? 2.0 : 3.0;
        double const ofChannels = std::ceil(mTask.blockChannels * size / 16.0) * tensors;
        double const copies = rows * (matrices * ofMatrix + ofChannels) / kWARP;
        double const pairs = rows / 4.0 * matrices * 8.0 * std::ceil(static_cast<double>(p.states) / 16.0) / kWARP;
        double const ofPoint = carry ? 40.0 : 76.0 + 1.75 * mTask.stateWarps;
        return 70.0 * mThreads / kWARP + 55.0 * copies + 80.0 * pairs + ofPoint * points;
    }

    double tilesOf() const
    {
        int64_t const segment = mTask.segment > 0 ? mTask.segment : mTask.chunkSteps;
        int64_t const each = (segment + mTask.tileSteps - 1) / mTask.tileSteps;
        return static_cast<double>(each * ((mTask.chunkSteps + segment - 1) / segment));
    }

    ForwardTask const& mTask;
    WarpForm mForm;
    double mThreads, mExchanges = 0.0, mCycles = 0.0;
    int32_t mMultiprocessors;
};

} // namespace mambapose
#endif
