/* The C interface on the CPU: backward. The split into tasks and the order of every sum depend on the
 * shapes alone, so gradients are the same bits for every number of threads. */
#include "core/scan_check.h"
#include "cpu/scan_driver.h"

#include <cstring>
#include <numeric>
#include <stdexcept>
#include <string>
#include <vector>

namespace mambapose
{
namespace
{

constexpr int64_t kTASKS = 16;      //!< Enough for the cores of a workstation, few enough for the partial sums.
constexpr int64_t kLEAST_UNITS = 4; //!< Blocks that share the sums over lanes into gB and gC.

//! Channel ranges of the tasks, and the sizes of what they add up.
struct BackwardSplit
{
    int64_t parts, unit, units;      //!< A part is a range of units of channels.
    int64_t columns, stateSize;      //!< Of a row of gB; of gA.
    bool bPartial, cPartial;         //!< Several parts add to the same rows.
};

BackwardSplit splitBackward(MambaposeScanParams const& p, int64_t width)
{
    BackwardSplit split{};
    // With several groups a part holds whole groups, so that no two parts share rows of gB.
    split.unit = p.groups > 1 ? std::lcm(p.channels / p.groups, width) : width;
    split.units = (p.channels + split.unit - 1) / split.unit;
    int64_t const wanted = p.batch == 0 ? 1 : (kTASKS + p.batch - 1) / p.batch;
    int64_t const possible = p.groups > 1 ? split.units : (split.units + kLEAST_UNITS - 1) / kLEAST_UNITS;
    split.parts = wanted < possible ? wanted : possible;
    split.columns = p.directions * p.groups * p.states;
    split.stateSize = p.directions * p.channels * p.states;
    bool const shared = p.groups == 1 && split.parts > 1;
    split.bPartial = shared && !p.bConstant;
    split.cPartial = shared && !p.cConstant;
    return split;
}

//! One gradient: `count` sums of `size` floats, in the caller's memory when there is just one.
class Sums
{
public:
    Sums(float* target, int64_t count, int64_t size)
        : mTarget(target)
        , mCount(count)
        , mSize(size)
    {
        if (target != nullptr && count > 1)
        {
            mParts.resize(static_cast<size_t>(count * size));
        }
        else if (target != nullptr)
        {
            std::memset(target, 0, static_cast<size_t>(size) * sizeof(float));
        }
    }

    float* part(int64_t index)
    {
        return mTarget == nullptr || mParts.empty() ? mTarget : mParts.data() + index * mSize;
    }

    //! Adds the parts in their order.
    void reduce()
    {
        for (int64_t i = 0; i < mSize && !mParts.empty(); ++i)
        {
            float sum = 0.0F;
            for (int64_t index = 0; index < mCount; ++index)
            {
                sum += mParts[static_cast<size_t>(index * mSize + i)];
            }
            mTarget[i] = sum;
        }
    }

private:
    float* mTarget;
    int64_t mCount, mSize;
    std::vector<float> mParts;
};

//! Gradient of B or C: constant ones add over the batch, others over the parts of each batch element.
class MatrixSums
{
public:
    MatrixSums(float* target, MambaposeScanParams const& p, BackwardSplit const& split, bool constant, bool partial)
        : mConstant(constant)
        , mParts(partial ? split.parts : 1)
    {
        int64_t const size = constant ? split.stateSize : p.length * split.columns;
        for (int64_t b = 0; b < (constant ? 1 : p.batch); ++b)
        {
            mSums.emplace_back(target == nullptr ? nullptr : target + b * size, constant ? p.batch : mParts, size);
        }
    }

    float* part(int64_t batch, int64_t index)
    {
        return mConstant ? mSums.front().part(batch) : mSums[static_cast<size_t>(batch)].part(mParts > 1 ? index : 0);
    }

    void reduce()
    {
        for (Sums& sums : mSums)
        {
            sums.reduce();
        }
    }

private:
    bool mConstant;
    int64_t mParts;
    std::vector<Sums> mSums;
};

void scanBackward(MambaposeScanParams const* params, MambaposeScanGrads const* grads)
{
    checkGrads(params, grads);
    checkParams(*params, false);
    checkOutputGrad(*params, *grads);
    MambaposeScanParams const& p = *params;
    ScanKernels const& kernels = *activeKernels();
    BackwardSplit const split = splitBackward(p, kernels.width);
    int64_t const wide = p.directions * p.channels;
    Sums gA(grads->gA, p.batch, split.stateSize);
    Sums gD(grads->gD, p.batch, wide);
    Sums gDtBias(grads->gDtBias, p.batch, wide);
    MatrixSums gB(grads->gB, p, split, p.bConstant != 0, split.bPartial);
    MatrixSums gC(grads->gC, p, split, p.cConstant != 0, split.cPartial);
    runTasks(p, usefulThreads(p), p.batch * split.parts,
        [&](int64_t index)
        {
            int64_t const b = index / split.parts, part = index % split.parts;
            int64_t const begin = split.units * part / split.parts * split.unit;
            int64_t const end = split.units * (part + 1) / split.parts * split.unit;
            BackwardTask task{{&p, b, 0, p.directions, begin, end < p.channels ? end : p.channels, nullptr}, grads,
                gA.part(b), gD.part(b), gDtBias.part(b), gB.part(b, part), gC.part(b, part), split.columns,
                split.columns};
            withScratch(kernels.backwardScratch(task.scan),
                [&](float* scratch)
                {
                    task.scan.scratch = scratch;
                    kernels.backward(task);
                });
        });
    for (Sums* sums : {&gA, &gD, &gDtBias})
    {
        sums->reduce();
    }
    gB.reduce();
    gC.reduce();
}

} // namespace
} // namespace mambapose

int mambapose_scan_cpu_backward(
    MambaposeScanParams const* params, MambaposeScanGrads const* grads, char* error, size_t errorSize)
{
    return mambapose::guarded(error, errorSize, [&] { mambapose::scanBackward(params, grads); });
}
