#include "tests/cuda_shim.h"

#include "tests/cuda_block.h"

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <deque>
#include <mutex>
#include <numeric>
#include <string>
#include <utility>

uint3 threadIdx, blockIdx;
dim3 blockDim, gridDim;

namespace mambapose
{
namespace shim
{
namespace
{

constexpr unsigned kMAX_BLOCKS = 0x7FFFFFFF;
constexpr size_t kMAX_SHARED = size_t{48} << 10;

uint64_t environment(char const* name, uint64_t otherwise)
{
    char const* text = std::getenv(name);
    return text == nullptr || *text == '\0' ? otherwise : std::strtoull(text, nullptr, 0);
}

//! What is set from outside and what is read back. A launch holds the lock from begin to end.
struct Machine
{
    std::mutex lock;
    uint64_t seed = environment("MAMBAPOSE_SHIM_SEED", 1);
    int multiprocessors = static_cast<int>(environment("MAMBAPOSE_SHIM_MULTIPROCESSORS", 8));
    float exp2Error = 0.0F;
    int64_t launches = 0;
    cudaError_t lastError = cudaSuccess;
    std::string fault = "no kernel has failed";
};

Machine& machine()
{
    static Machine only;
    return only;
}

//! Visits 0 to count - 1 once each, in steps of a size that shares no factor with count.
class BlockOrder
{
public:
    BlockOrder(uint64_t count, Random& random)
        : mCount(count)
        , mStep(random.next() % count)
        , mAt(random.next() % count)
    {
        while (std::gcd(mStep, mCount) != 1)
        {
            mStep = (mStep + 1) % mCount;
        }
    }

    unsigned next()
    {
        mAt = (mAt + mStep) % mCount;
        return static_cast<unsigned>(mAt);
    }

private:
    uint64_t mCount, mStep, mAt;
};

//! Blocks that for ThreadSanitizer run at the same time. It can tell 8128 threads apart.
unsigned keptBlocks(unsigned threads)
{
#ifdef MAMBAPOSE_SHIM_THREADS
    return std::max(2048 / threads, 2U);
#else
    return static_cast<void>(threads), 1;
#endif
}

cudaError_t check(unsigned blocks, unsigned threads, size_t sharedBytes)
{
    if (blocks == 0 || blocks > kMAX_BLOCKS || threads == 0 || threads > kMAX_THREADS)
    {
        return cudaErrorInvalidConfiguration;
    }
    return sharedBytes > kMAX_SHARED ? cudaErrorInvalidValue : cudaSuccess;
}

} // namespace

cudaError_t run(
    void (*thread)(void const*), void const* arguments, unsigned blocks, unsigned threads, size_t sharedBytes)
{
    Machine& m = machine();
    std::lock_guard<std::mutex> const guard(m.lock);
    cudaError_t const wrong = check(blocks, threads, sharedBytes);
    if (wrong != cudaSuccess)
    {
        return m.lastError = wrong;
    }
    ++m.launches;
    gridDim.x = blocks;
    blockDim.x = threads;
    Random random(m.seed);
    BlockOrder order(blocks, random);
    std::deque<std::unique_ptr<Block>> ended;
    for (unsigned i = 0; i < blocks; ++i)
    {
        blockIdx.x = order.next();
        if (ended.size() == keptBlocks(threads))
        {
            ended.front()->join();
            ended.pop_front();
        }
        unsigned const stacks = i % keptBlocks(threads);
        ended.push_back(std::make_unique<Block>(thread, arguments, threads, sharedBytes, random.next(), stacks));
        char const* fault = ended.back()->run();
        if (fault != nullptr)
        {
            m.fault = fault;
            return m.lastError = cudaErrorLaunchFailure;
        }
    }
    std::for_each(ended.begin(), ended.end(), [](auto& block) { block->join(); });
    return cudaSuccess;
}

void waitForBlock(Site site)
{
    Block::running->waitForBlock(site);
}

void waitForWarp(unsigned mask, Site site)
{
    Block::running->waitForWarp(mask, site);
}

uint64_t exchange(unsigned mask, uint64_t bits, int laneMask, int width, Site site)
{
    return Block::running->exchange(mask, bits, laneMask, width, site);
}

void queueCopy(void* shared, void const* global, unsigned bytes)
{
    Block::running->queueCopy(shared, global, bytes);
}

void commit()
{
    Block::running->commit();
}

void wait(unsigned groups)
{
    Block::running->wait(groups);
}

unsigned char* blockMemory()
{
    return Block::running->shared();
}

float exp2Factor(float x)
{
    float const error = machine().exp2Error;
    if (error == 0.0F || x == 0.0F) // 2^0 is exact on the GPU.
    {
        return 1.0F;
    }
    uint32_t bits = 0;
    std::memcpy(&bits, &x, sizeof bits);
    return 1.0F + error * (static_cast<float>(Random(bits).next() % 2048) / 1023.5F - 1.0F);
}

} // namespace shim
} // namespace mambapose

using mambapose::shim::machine;

cudaError_t cudaGetDevice(int* device)
{
    *device = 0;
    return cudaSuccess;
}

cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int device)
{
    if (device != 0)
    {
        return machine().lastError = cudaErrorInvalidDevice;
    }
    switch (attribute)
    {
    case cudaDevAttrMaxThreadsPerBlock: *value = mambapose::shim::kMAX_THREADS; return cudaSuccess;
    case cudaDevAttrMaxSharedMemoryPerBlock: *value = mambapose::shim::kMAX_SHARED; return cudaSuccess;
    case cudaDevAttrMultiProcessorCount: *value = machine().multiprocessors; return cudaSuccess;
    case cudaDevAttrComputeCapabilityMajor: *value = 8; return cudaSuccess;
    case cudaDevAttrComputeCapabilityMinor: *value = 7; return cudaSuccess;
    }
    return machine().lastError = cudaErrorInvalidValue;
}

cudaError_t cudaPeekAtLastError()
{
    return machine().lastError;
}

cudaError_t cudaGetLastError()
{
    return std::exchange(machine().lastError, cudaSuccess);
}

char const* cudaGetErrorString(cudaError_t error)
{
    switch (error)
    {
    case cudaSuccess: return "no error";
    case cudaErrorInvalidValue: return "invalid argument";
    case cudaErrorInvalidConfiguration: return "invalid configuration argument";
    case cudaErrorInvalidDevice: return "invalid device ordinal";
    case cudaErrorLaunchFailure: return machine().fault.c_str();
    }
    return "unrecognized error code";
}

// For tests, beside the C interface of the operator.
#define MAMBAPOSE_SHIM_API extern "C" __attribute__((visibility("default")))

MAMBAPOSE_SHIM_API void mambapose_shim_set_seed(uint64_t seed)
{
    machine().seed = seed;
}

MAMBAPOSE_SHIM_API void mambapose_shim_set_multiprocessors(int count)
{
    machine().multiprocessors = count;
}

//! Largest relative error of exp2Approx from now on; a function of its argument alone.
MAMBAPOSE_SHIM_API void mambapose_shim_set_exp2_error(float error)
{
    machine().exp2Error = error;
}

//! Kernels launched since the process began.
MAMBAPOSE_SHIM_API int64_t mambapose_shim_launches()
{
    return machine().launches;
}
