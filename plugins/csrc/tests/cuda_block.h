/* One block of a launch on the host: its threads, who of them runs, what they wait for, its shared
 * memory and its asynchronous copies. A launch runs its blocks one after another. */
#ifndef MAMBAPOSE_CUDA_BLOCK_H
#define MAMBAPOSE_CUDA_BLOCK_H

#include "tests/cuda_fiber.h"
#include "tests/cuda_shim.h"

#include <cstdarg>
#include <memory>
#include <vector>

namespace mambapose
{
namespace shim
{

constexpr unsigned kWARP = 32, kMAX_THREADS = 1024;

//! splitmix64
class Random
{
public:
    explicit Random(uint64_t seed)
        : mState(seed)
    {
    }

    uint64_t next()
    {
        uint64_t x = mState += 0x9E3779B97F4A7C15U;
        x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9U;
        x = (x ^ (x >> 27)) * 0x94D049BB133111EBU;
        return x ^ (x >> 31);
    }

    //! The number of one of the set bits.
    unsigned bitOf(unsigned bits)
    {
        unsigned const by = next() % 32;
        unsigned const turned = by == 0 ? bits : bits >> by | bits << (32 - by);
        return (static_cast<unsigned>(__builtin_ctz(turned)) + by) % 32;
    }

private:
    uint64_t mState;
};

enum class State
{
    kREADY,
    kBLOCK,
    kWARP,
    kSHUFFLE,
    kDONE,
};

struct Copy
{
    void* shared;
    void const* global;
    unsigned bytes;
};

struct Thread
{
    static constexpr unsigned kMAX_COPIES = 512, kMAX_GROUPS = 64; //!< Under way; more is taken for a mistake.

    Fiber fiber;
    State state = State::kDONE;
    Site site{};
    unsigned mask = 0, source = 0; //!< Of a shuffle: lanes that take part, lane to read.
    uint64_t bits = 0;
    // Rings: copies issued and done, groups committed and waited for, since the block began.
    unsigned issued = 0, copied = 0, committed = 0, awaited = 0;
    Copy copies[kMAX_COPIES];
    unsigned groupEnds[kMAX_GROUPS]; //!< Copies issued when the group was committed.
};

struct Warp
{
    unsigned lanes = 0, ready = 0;
    unsigned turn = 0; //!< Barriers so far.
    char order[2]{};   //!< For ThreadSanitizer, used in turn so that no barrier stands for the next one.
};

class Block
{
public:
    //! stacks: number of a set of stacks; blocks that ThreadSanitizer is to tell apart need different ones.
    Block(void (*body)(void const*), void const* arguments, unsigned threads, size_t sharedBytes, uint64_t seed,
        unsigned stacks);
    Block(Block const&) = delete;
    Block& operator=(Block const&) = delete;

    //! Null, or what the kernel did that no kernel may do.
    char const* run();

    //! Makes the memory that the threads wrote visible to the caller of run.
    void join()
    {
        acquire(&mEnd);
    }

    unsigned char* shared();
    void waitForBlock(Site site);
    void waitForWarp(unsigned mask, Site site);
    uint64_t exchange(unsigned mask, uint64_t bits, int laneMask, int width, Site site);
    void queueCopy(void* target, void const* global, unsigned bytes);
    void commit();
    void wait(unsigned pending);

    static Block* running;

private:
    static void runThread();
    Thread& current();
    Warp& warpOf(unsigned thread);
    void resume(unsigned thread);
    void resumeLanes(unsigned mask);
    void stop(Thread& self, State state, Site site);
    bool pick();
    void goOn();
    bool meet(unsigned mask, State state, Site site);
    void exchangeBits(unsigned mask);
    void checkGuards();
    void describeStandstill();
    __attribute__((format(printf, 2, 3))) void describe(char const* format, ...);
    __attribute__((format(printf, 2, 3), noreturn)) void fail(char const* format, ...);
    void write(char const* format, va_list arguments);

    void (*mBody)(void const*);
    void const* mArguments;
    unsigned mThreadCount;
    size_t mSharedBytes;
    Random mRandom;
    bool mAhead; //!< A warp runs as far as it can before another one does.
    std::unique_ptr<unsigned char[]> mMemory;
    std::vector<Thread>& mThreads;
    Fiber mHost;
    Warp mWarps[kMAX_THREADS / kWARP];
    unsigned mCurrent = 0, mReady = 0, mDone = 0, mWaiting = 0, mTurn = 0;
    Site mSite{}; //!< Of the __syncthreads that some threads have reached.
    char mStart = 0, mEnd = 0, mOrder[2]{}; //!< For ThreadSanitizer.
    char mFault[512] = "";
};

} // namespace shim
} // namespace mambapose
#endif
