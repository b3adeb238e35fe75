/* The form of a forward launch: how the threads of a block share channels, states and steps, how much
 * shared memory that takes, and how long it is expected to run. */
#ifndef MAMBAPOSE_SCAN_CUDA_PLAN_H
#define MAMBAPOSE_SCAN_CUDA_PLAN_H

#include "cuda/scan_cuda.h"

namespace mambapose
{

constexpr int kWARP = 32;
constexpr int kTILES = 8; //!< Tiles whose extents are kept: a power of two.
constexpr int kWALK_BYTES = 48, kTILE_BYTES = 32, kROW_COPIES_BYTES = 240;
constexpr int kTOKEN_TILES = 4; //!< Tiles whose tokens are kept: one is stored, one computed, two are fetched.

/* How a warp is used. It holds 32 / timeLanes channels. Each of the timeLanes threads of a channel takes
 * stepsPerThread steps in a row, so the warp advances by timeLanes * stepsPerThread steps at a time. All of
 * them hold the same statesPerThread states; further states are in further warps of the block. */
struct WarpForm
{
    int statesPerThread, timeLanes, stepsPerThread;
    int maxWarps; //!< Of a block: fewer leave more registers to each thread.
};

/* What is compiled. Time lanes make many threads of few channels at the price of some shuffles per state;
 * pieces of the length in two launches do the same at the price of every exponential a second time. */
constexpr WarpForm kFORMS[] = {
    {1, 1, 8, 4}, {1, 8, 8, 16}, {2, 8, 8, 8}, {4, 1, 8, 4}, {4, 4, 8, 4}, {4, 8, 8, 4}, {16, 1, 4, 16}};
constexpr int kFORMS_COUNT = static_cast<int>(sizeof(kFORMS) / sizeof(kFORMS[0]));

//! Constant B or C are rare: no form with several time lanes is compiled for them.
constexpr bool takesConstants(WarpForm const& form)
{
    return form.timeLanes == 1;
}

//! Places in the shared memory of a block, in bytes.
struct SharedLayout
{
    int32_t walk, tiles;            //!< The block's Walk; some of its Tiles.
    int32_t rows;                   //!< A RowCopy of each tensor of rows.
    int32_t bias, skip;             //!< dtBias and D of the block's channels.
    int32_t tokens;                 //!< Of kTOKEN_TILES tiles.
    int32_t dt, u, z, B, C;         //!< Rows as they come: of two tiles for dt, B and C, of three for u and z.
    int32_t channelPitch, matrixPitch; //!< Bytes of a row of dt, u and z; of B and C.
    int32_t s, su;                  //!< fp32 of one tile: (channels, pitch).
    int32_t inputs, outputs;        //!< B and C in fp32: (states, pitch); (states, channels) when constant.
    int32_t y;                      //!< (stateWarps, channels, pitch)
    int32_t sums;                   //!< (chunkSteps, channels), when fused.
    int32_t bytes;
};

//! The argument of the forward kernels.
struct ForwardTask
{
    MambaposeScanParams p;
    SharedLayout at;
    int32_t stateWarps;        //!< Warps that share a channel's states.
    int32_t blockChannels;     //!< Channels of a block, 2^channelShift of them,
    int32_t channelShift;
    int32_t groupBlocks;       //!< and blocks over a group.
    int32_t tileSteps, pitch;  //!< Steps of a tile; floats from one channel or state of it to the next.
    int32_t segment;           //!< Steps from reset to reset within a piece; 0 when only its start is one.
    int32_t chunks, chunkSteps;
    int32_t fused;
    int32_t stepsThread, matricesThread; //!< Threads that begin with the steps, and with B and C of a tile.
    float *ends, *stepSums;    //!< (B, chunks, K*D, N) and (B, chunks, K*D), pieces in the order they are walked.
    float* partials;           //!< (K, B, L, D) when another kernel merges the directions, else null.
};

//! A task with the launch that runs it.
struct ForwardLaunch
{
    ForwardTask task;
    int form; //!< Index into kFORMS.
    bool constants;
    unsigned blocks, carryBlocks, threads;
};

//! Throws std::invalid_argument with a sentence.
MambaposeCudaPlan planForward(MambaposeScanParams const& params, int32_t tactic, int32_t multiprocessors);

//! The launch of a plan. Refuses a plan that was made for other parameters.
ForwardLaunch launchOf(MambaposeScanParams const& params, MambaposeCudaPlan const& plan, void* workspace);

} // namespace mambapose
#endif
