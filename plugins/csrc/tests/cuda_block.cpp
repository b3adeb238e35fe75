#include "tests/cuda_block.h"

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <string>

namespace mambapose
{
namespace shim
{
namespace
{

constexpr uint32_t kPATTERN = 0xFFFDFFFE; //!< Around shared memory: no number in any type, nor a result of any.
#ifdef MAMBAPOSE_SHIM_SANITIZED
constexpr size_t kGUARD = 0; // The sanitizer guards the ends of the heap block.
#else
constexpr size_t kGUARD = 4096;
#endif

//! Threads with their stacks, which are kept from block to block.
std::vector<Thread>& threadsOf(unsigned stacks, unsigned count)
{
    static std::map<unsigned, std::vector<Thread>> sets;
    std::vector<Thread>& threads = sets[stacks];
    if (threads.size() < count)
    {
        threads.resize(count);
    }
    return threads;
}

char const* nameOf(State state)
{
    switch (state)
    {
    case State::kBLOCK: return "wait in __syncthreads";
    case State::kWARP: return "wait in __syncwarp";
    case State::kSHUFFLE: return "wait in a shuffle";
    case State::kDONE: return "have returned";
    default: return "could go on";
    }
}

char const* baseOf(char const* path)
{
    char const* slash = std::strrchr(path, '/');
    return slash == nullptr ? path : slash + 1;
}

bool same(Site const& a, Site const& b)
{
    return a.line == b.line && (a.file == b.file || std::strcmp(a.file, b.file) == 0);
}

//! The lowest set bit's number, which is then cleared.
unsigned takeBit(unsigned& bits)
{
    auto const bit = static_cast<unsigned>(__builtin_ctz(bits));
    bits &= bits - 1;
    return bit;
}

} // namespace

Block* Block::running = nullptr;

Block::Block(void (*body)(void const*), void const* arguments, unsigned threads, size_t sharedBytes, uint64_t seed,
    unsigned stacks)
    : mBody(body)
    , mArguments(arguments)
    , mThreadCount(threads)
    , mSharedBytes(sharedBytes)
    , mRandom(seed)
    , mAhead(mRandom.next() % 2 == 0)
    , mMemory(new unsigned char[kGUARD + sharedBytes + kGUARD])
    , mThreads(threadsOf(stacks, threads))
{
    std::memset(shared(), 0xFF, sharedBytes);
    for (size_t at = 0; at < kGUARD; at += sizeof kPATTERN)
    {
        std::memcpy(mMemory.get() + at, &kPATTERN, sizeof kPATTERN);
        std::memcpy(shared() + sharedBytes + at, &kPATTERN, sizeof kPATTERN);
    }
    release(&mStart);
    for (unsigned i = 0; i < threads; ++i)
    {
        warpOf(i).lanes |= 1U << (i % kWARP);
        Thread& one = mThreads[i];
        one.issued = one.copied = one.committed = one.awaited = 0;
        beginFiber(one.fiber, runThread);
        resume(i);
    }
}

char const* Block::run()
{
    running = this;
    pick();
    switchFiber(mHost, current().fiber);
    if (mFault[0] == '\0' && mDone < mThreadCount)
    {
        describeStandstill();
    }
    if (mFault[0] == '\0')
    {
        checkGuards();
    }
    return mFault[0] == '\0' ? nullptr : mFault;
}

void Block::runThread()
{
    Block& block = *running;
    enterFiber(block.mHost);
    acquire(&block.mStart);
    threadIdx.x = block.mCurrent;
    block.mBody(block.mArguments);
    Thread& self = block.current();
    if (self.copied != self.issued)
    {
        block.fail("returns without waiting for %u asynchronous copies", self.issued - self.copied);
    }
    release(&block.mEnd);
    ++block.mDone;
    block.stop(self, State::kDONE, {"", 0});
    switchFiber(self.fiber, block.pick() ? block.current().fiber : block.mHost, true);
}

unsigned char* Block::shared()
{
    return mMemory.get() + kGUARD;
}

Thread& Block::current()
{
    return mThreads[mCurrent];
}

Warp& Block::warpOf(unsigned thread)
{
    return mWarps[thread / kWARP];
}

void Block::resume(unsigned thread)
{
    mThreads[thread].state = State::kREADY;
    warpOf(thread).ready |= 1U << (thread % kWARP);
    mReady |= 1U << (thread / kWARP);
}

void Block::resumeLanes(unsigned mask)
{
    unsigned const first = mCurrent / kWARP * kWARP;
    while (mask != 0)
    {
        resume(first + takeBit(mask));
    }
}

void Block::stop(Thread& self, State state, Site site)
{
    self.state = state;
    self.site = site;
    Warp& warp = warpOf(mCurrent);
    warp.ready &= ~(1U << (mCurrent % kWARP));
    if (warp.ready == 0)
    {
        mReady &= ~(1U << (mCurrent / kWARP));
    }
}

//! Chooses who runs next; false when nobody can.
bool Block::pick()
{
    if (mReady == 0)
    {
        return false;
    }
    unsigned warp = mCurrent / kWARP;
    if (!mAhead || mWarps[warp].ready == 0)
    {
        warp = mRandom.bitOf(mReady);
    }
    mCurrent = warp * kWARP + mRandom.bitOf(mWarps[warp].ready);
    return true;
}

//! Lets others run until this thread may go on.
void Block::goOn()
{
    unsigned const self = mCurrent;
    if (!pick())
    {
        switchFiber(mThreads[self].fiber, mHost);
    }
    else if (mCurrent != self)
    {
        switchFiber(mThreads[self].fiber, current().fiber);
    }
    threadIdx.x = self;
}

void Block::waitForBlock(Site site)
{
    if (mWaiting != 0 && !same(site, mSite))
    {
        fail("is at __syncthreads of %s:%d while others wait at that of %s:%d", baseOf(site.file), site.line,
            baseOf(mSite.file), mSite.line);
    }
    mSite = site;
    char* order = &mOrder[mTurn % 2];
    release(order);
    stop(current(), State::kBLOCK, site);
    if (++mWaiting == mThreadCount)
    {
        mWaiting = 0;
        ++mTurn;
        for (unsigned i = 0; i < mThreadCount; ++i)
        {
            resume(i);
        }
    }
    goOn();
    acquire(order);
}

//! Arrives where lanes of a warp meet; true for the last one. Lanes that the block lacks are not waited for.
bool Block::meet(unsigned mask, State state, Site site)
{
    if ((mask >> (mCurrent % kWARP) & 1U) == 0)
    {
        fail("is not among the lanes %08x it waits for at %s:%d", mask, baseOf(site.file), site.line);
    }
    mask &= warpOf(mCurrent).lanes;
    current().mask = mask;
    stop(current(), state, site);
    Thread const* lanes = &mThreads[mCurrent / kWARP * kWARP];
    bool complete = true;
    for (unsigned rest = mask; rest != 0 && complete;)
    {
        Thread const& lane = lanes[takeBit(rest)];
        complete = lane.state == state && lane.mask == mask && same(lane.site, site);
    }
    return complete;
}

void Block::waitForWarp(unsigned mask, Site site)
{
    Warp& warp = warpOf(mCurrent);
    char* order = &warp.order[warp.turn % 2];
    release(order);
    if (meet(mask, State::kWARP, site))
    {
        ++warp.turn;
        resumeLanes(current().mask);
    }
    goOn();
    acquire(order);
}

uint64_t Block::exchange(unsigned mask, uint64_t bits, int laneMask, int width, Site site)
{
    if (width < 1 || width > 32 || (width & (width - 1)) != 0 || laneMask < 0 || laneMask > 31)
    {
        fail("shuffles with width %d (a power of two up to 32 was wanted) and lane mask %d (0 to 31)", width, laneMask);
    }
    // A lane of a later part of `width` lanes cannot be read: CUDA then returns the thread's own value.
    unsigned const lane = mCurrent % kWARP, last = lane | static_cast<unsigned>(width - 1);
    unsigned const other = lane ^ static_cast<unsigned>(laneMask);
    Thread& self = current();
    self.bits = bits;
    self.source = other > last ? lane : other;
    if (meet(mask, State::kSHUFFLE, site))
    {
        exchangeBits(self.mask);
        resumeLanes(self.mask);
    }
    goOn();
    return self.bits;
}

void Block::exchangeBits(unsigned mask)
{
    Thread* lanes = &mThreads[mCurrent / kWARP * kWARP];
    uint64_t results[kWARP];
    for (unsigned rest = mask; rest != 0;)
    {
        unsigned const lane = takeBit(rest), source = lanes[lane].source;
        if ((mask >> source & 1U) == 0)
        {
            Site const site = lanes[lane].site;
            fail("reads lane %u in a shuffle of the lanes %08x at %s:%d", source, mask, baseOf(site.file), site.line);
        }
        results[lane] = lanes[source].bits;
    }
    for (unsigned rest = mask; rest != 0;)
    {
        unsigned const lane = takeBit(rest);
        lanes[lane].bits = results[lane];
    }
}

void Block::queueCopy(void* target, void const* global, unsigned bytes)
{
    auto const from = reinterpret_cast<uintptr_t>(global), to = reinterpret_cast<uintptr_t>(target);
    auto const offset = static_cast<int64_t>(to - reinterpret_cast<uintptr_t>(shared()));
    Thread& self = current();
    if (offset < 0 || offset + bytes > static_cast<int64_t>(mSharedBytes))
    {
        fail("copies %u bytes to offset %lld of %zu bytes of shared memory", bytes, static_cast<long long>(offset),
            mSharedBytes);
    }
    if (from % bytes != 0 || to % bytes != 0)
    {
        fail("copies %u bytes between addresses that are no multiples of that", bytes);
    }
    if (self.issued - self.copied == Thread::kMAX_COPIES)
    {
        fail("issues more than %u asynchronous copies without waiting", Thread::kMAX_COPIES);
    }
    noteWrite(target, bytes);
    std::memset(target, 0xFF, bytes);
    self.copies[self.issued++ % Thread::kMAX_COPIES] = {target, global, bytes};
}

void Block::commit()
{
    Thread& self = current();
    if (self.committed - self.awaited == Thread::kMAX_GROUPS)
    {
        fail("commits more than %u groups of copies without waiting", Thread::kMAX_GROUPS);
    }
    self.groupEnds[self.committed++ % Thread::kMAX_GROUPS] = self.issued;
}

void Block::wait(unsigned pending)
{
    Thread& self = current();
    while (self.committed - self.awaited > pending)
    {
        unsigned const end = self.groupEnds[self.awaited++ % Thread::kMAX_GROUPS];
        while (self.copied != end)
        {
            Copy const& copy = self.copies[self.copied++ % Thread::kMAX_COPIES];
            noteRead(copy.global, copy.bytes);
            noteWrite(copy.shared, copy.bytes);
            std::memcpy(copy.shared, copy.global, copy.bytes);
        }
    }
}

void Block::checkGuards()
{
    unsigned char const* const ends[] = {mMemory.get(), shared() + mSharedBytes};
    for (size_t at = 0; at < kGUARD; at += sizeof kPATTERN)
    {
        for (unsigned char const* end : ends)
        {
            if (std::memcmp(end + at, &kPATTERN, sizeof kPATTERN) != 0)
            {
                describe("writes outside its %zu bytes of shared memory", mSharedBytes);
                return;
            }
        }
    }
}

//! Nobody can go on and some have not returned: who waits where.
void Block::describeStandstill()
{
    std::string text;
    std::vector<bool> told(mThreadCount, false);
    for (unsigned i = 0; i < mThreadCount; ++i)
    {
        Thread const& one = mThreads[i];
        unsigned count = 0;
        for (unsigned j = i; j < mThreadCount && !told[i]; ++j)
        {
            bool const alike = mThreads[j].state == one.state && same(mThreads[j].site, one.site);
            count += alike ? 1U : 0U;
            told[j] = told[j] || (alike && j != i);
        }
        if (count != 0)
        {
            text += (text.empty() ? "" : ", ") + std::to_string(count) + " threads (first " + std::to_string(i) + ") "
                + nameOf(one.state);
        }
        if (count != 0 && one.site.line != 0)
        {
            text += std::string(" at ") + baseOf(one.site.file) + ":" + std::to_string(one.site.line);
        }
    }
    describe("stands still: %s", text.c_str());
}

void Block::describe(char const* format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    write(format, arguments);
    va_end(arguments);
}

//! Called by a thread, which never goes on.
void Block::fail(char const* format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    write(format, arguments);
    va_end(arguments);
    switchFiber(current().fiber, mHost, true);
    std::abort();
}

void Block::write(char const* format, va_list arguments)
{
    int const used
        = std::snprintf(mFault, sizeof mFault, "a kernel (block %u, thread %u) ", blockIdx.x, mCurrent);
    std::vsnprintf(mFault + used, sizeof mFault - static_cast<size_t>(used), format, arguments);
}

} // namespace shim
} // namespace mambapose
