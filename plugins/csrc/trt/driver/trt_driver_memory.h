/* Memory and streams of the driver: host memory when the plugin was built with the host shim, the
 * GPU's with -DWITH_CUDA. Every block has just the size asked for, aligned as TensorRT does it; it
 * starts poisoned and lies between guard zones that are looked at afterwards. */
#ifndef MAMBAPOSE_TRT_DRIVER_MEMORY_H
#define MAMBAPOSE_TRT_DRIVER_MEMORY_H

#include "trt/driver/trt_driver_host.h"

#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <memory>

#ifdef WITH_CUDA
#include <cuda_runtime.h>
#endif

namespace mambapose
{
namespace driver
{

using Bytes = std::vector<unsigned char>;

constexpr size_t kALIGNMENT = 256;
constexpr unsigned char kPOISON = 0xff; // a NaN in every float type, -1 in every integer
constexpr unsigned char kGUARD = 0xa5;
#if defined(__SANITIZE_ADDRESS__)
constexpr size_t kZONE = 0; // AddressSanitizer's own zones lie closer
#else
constexpr size_t kZONE = 4096;
#endif

#ifdef WITH_CUDA

inline void requireCuda(cudaError_t status, char const* what)
{
    if (status != cudaSuccess)
    {
        throw std::runtime_error(std::string(what) + ": " + cudaGetErrorString(status));
    }
}

inline void* allocate(size_t bytes)
{
    void* memory = nullptr;
    requireCuda(cudaMalloc(&memory, bytes), "cudaMalloc");
    return memory;
}
inline void release(void* memory)
{
    cudaFree(memory);
}
inline void copyIn(void* to, void const* from, size_t bytes)
{
    requireCuda(cudaMemcpy(to, from, bytes, cudaMemcpyHostToDevice), "cudaMemcpy to the device");
}
inline void copyOut(void* to, void const* from, size_t bytes)
{
    requireCuda(cudaMemcpy(to, from, bytes, cudaMemcpyDeviceToHost), "cudaMemcpy from the device");
}

#else

inline void* allocate(size_t bytes)
{
    void* memory = nullptr;
    if (posix_memalign(&memory, kALIGNMENT, bytes) != 0)
    {
        throw std::bad_alloc();
    }
    return memory;
}
inline void release(void* memory)
{
    std::free(memory);
}
inline void copyIn(void* to, void const* from, size_t bytes)
{
    std::memcpy(to, from, bytes);
}
inline void copyOut(void* to, void const* from, size_t bytes)
{
    std::memcpy(to, from, bytes);
}

#endif

class Memory
{
public:
    explicit Memory(size_t bytes)
        : mBytes(bytes)
        , mBlock(allocate(bytes + 2 * kZONE > 0 ? bytes + 2 * kZONE : 1), release)
    {
        Bytes all(bytes + 2 * kZONE, kGUARD);
        std::fill(all.begin() + kZONE, all.end() - kZONE, kPOISON);
        copyIn(mBlock.get(), all.data(), all.size());
    }
    explicit Memory(Bytes const& values)
        : Memory(values.size())
    {
        copyIn(data(), values.data(), values.size());
    }
    void* data() const
    {
        return static_cast<unsigned char*>(mBlock.get()) + kZONE;
    }
    size_t size() const
    {
        return mBytes;
    }
    Bytes read() const
    {
        Bytes values(mBytes);
        copyOut(values.data(), data(), mBytes);
        return values;
    }
    void poison()
    {
        Bytes const values(mBytes, kPOISON);
        copyIn(data(), values.data(), mBytes);
    }
    bool isPoison() const
    {
        Bytes const values = read();
        return std::all_of(values.begin(), values.end(), [](unsigned char byte) { return byte == kPOISON; });
    }
    //! Complains when something was written before or behind the block.
    void requireGuards(std::string const& name) const
    {
        Bytes all(mBytes + 2 * kZONE);
        copyOut(all.data(), mBlock.get(), all.size());
        for (size_t i = 0; i < kZONE; ++i)
        {
            require(all[kZONE - 1 - i] == kGUARD, text("%s: written %zu bytes before its start", name.c_str(), i + 1));
            require(all[kZONE + mBytes + i] == kGUARD, text("%s: written %zu bytes past its end", name.c_str(), i + 1));
        }
    }

private:
    size_t mBytes;
    std::unique_ptr<void, void (*)(void*)> mBlock;
};

class Stream
{
public:
#ifdef WITH_CUDA
    Stream()
    {
        requireCuda(cudaStreamCreateWithFlags(&mStream, cudaStreamNonBlocking), "cudaStreamCreate");
    }
    ~Stream()
    {
        cudaStreamDestroy(mStream);
    }
    void wait()
    {
        requireCuda(cudaStreamSynchronize(mStream), "the stream after enqueue");
    }
    //! Runs `work` into a graph instead of at once, then the graph `times` times.
    template <typename Work>
    void replay(int times, Work const& work)
    {
        cudaGraph_t graph = nullptr;
        cudaGraphExec_t launch = nullptr;
        requireCuda(cudaStreamBeginCapture(mStream, cudaStreamCaptureModeGlobal), "cudaStreamBeginCapture");
        work();
        requireCuda(cudaStreamEndCapture(mStream, &graph), "capture of enqueue in a graph");
        requireCuda(cudaGraphInstantiate(&launch, graph, 0), "cudaGraphInstantiate");
        for (int i = 0; i < times; ++i)
        {
            requireCuda(cudaGraphLaunch(launch, mStream), "cudaGraphLaunch");
        }
        wait();
        cudaGraphExecDestroy(launch);
        cudaGraphDestroy(graph);
    }
#else
    void wait()
    {
    }
#endif
    cudaStream_t get() const
    {
        return mStream;
    }

private:
    cudaStream_t mStream = nullptr;
};

} // namespace driver
} // namespace mambapose
#endif
