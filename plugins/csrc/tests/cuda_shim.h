/* CUDA as far as the kernels use it, on a host without a GPU and for tests only. Included by
 * scan_cuda_port.h where nvcc does not compile. It is made to find faults, not to be fast:
 *
 * - The threads of a block are fibers, run one at a time in a shuffled order that a seed decides; so
 *   are the blocks of a launch. A thread runs until it waits, so one warp may be far ahead.
 * - Barriers and shuffles must be reached, at the same line, by every thread they name. Otherwise the
 *   launch fails with a sentence; it never hangs.
 * - Shared memory is all NaN when a block begins and is exactly as large as asked for.
 * - The target of an asynchronous copy is NaN from its issue until waitCopies, which copies.
 * - Built with -fsanitize=thread, two accesses of one address by two threads without a barrier
 *   between them are reported (shuffles order no memory, as on the GPU).
 *
 * MAMBAPOSE_SHIM_SEED and MAMBAPOSE_SHIM_MULTIPROCESSORS in the environment set the seed and the size of
 * the GPU; mambapose_shim_set_seed and its neighbours in cuda_shim.cpp change them later.
 *
 * Not modelled: registers, warps in step, memory order between blocks, errors that stay, streams
 * (a launch has run when it returns). */
#ifndef MAMBAPOSE_CUDA_SHIM_H
#define MAMBAPOSE_CUDA_SHIM_H

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <tuple>
#include <type_traits>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)

struct uint3
{
    unsigned x, y, z;
};
struct dim3
{
    unsigned x = 1, y = 1, z = 1;
};
// Aligned as on the GPU: an unaligned access is a fault there.
struct alignas(8) float2
{
    float x, y;
};
struct alignas(16) float4
{
    float x, y, z, w;
};
struct alignas(8) uint2
{
    unsigned x, y;
};
struct alignas(16) uint4
{
    unsigned x, y, z, w;
};

enum cudaError_t
{
    cudaSuccess = 0,
    cudaErrorInvalidValue = 1,
    cudaErrorInvalidConfiguration = 9,
    cudaErrorInvalidDevice = 101,
    cudaErrorLaunchFailure = 719,
};
enum cudaDeviceAttr
{
    cudaDevAttrMaxThreadsPerBlock = 1,
    cudaDevAttrMaxSharedMemoryPerBlock = 8,
    cudaDevAttrMultiProcessorCount = 16,
    cudaDevAttrComputeCapabilityMajor = 75,
    cudaDevAttrComputeCapabilityMinor = 76,
};
struct CUstream_st;
using cudaStream_t = CUstream_st*;

extern uint3 threadIdx, blockIdx;
extern dim3 blockDim, gridDim;

cudaError_t cudaGetDevice(int* device);
cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int device);
cudaError_t cudaPeekAtLastError();
cudaError_t cudaGetLastError();
//! For cudaErrorLaunchFailure the sentence that says what the last failed kernel did.
char const* cudaGetErrorString(cudaError_t error);

namespace mambapose
{
namespace shim
{

//! Where a kernel waits: threads that wait together must do so at one place of the source.
struct Site
{
    char const* file;
    int line;
};

void waitForBlock(Site site);
void waitForWarp(unsigned mask, Site site);
uint64_t exchange(unsigned mask, uint64_t bits, int laneMask, int width, Site site);
void queueCopy(void* shared, void const* global, unsigned bytes);
void commit();
void wait(unsigned groups);
unsigned char* blockMemory();
//! 1 plus the error a test asked for.
float exp2Factor(float x);
cudaError_t run(
    void (*thread)(void const*), void const* arguments, unsigned blocks, unsigned threads, size_t sharedBytes);

template <class... P>
struct Call
{
    void (*kernel)(P...);
    std::tuple<P...> arguments;

    static void thread(void const* self)
    {
        auto const* call = static_cast<Call const*>(self);
        std::apply(call->kernel, call->arguments);
    }
};

} // namespace shim

//! Dynamic shared memory of the block.
inline unsigned char* sharedMemory()
{
    return shim::blockMemory();
}

template <int BYTES>
void copyAsync(void* shared, void const* global)
{
    static_assert(BYTES == 4 || BYTES == 8 || BYTES == 16, "sizes that cp.async knows");
    shim::queueCopy(shared, global, BYTES);
}

inline void commitCopies()
{
    shim::commit();
}

template <int N>
void waitCopies()
{
    shim::wait(N);
}

//! As ex2.approx.ftz: denormal results are zero. exp2Factor adds the error a test asked for.
inline float exp2Approx(float x)
{
    float const y = exp2f(x) * shim::exp2Factor(x);
    return y < 1.17549435e-38F ? 0.0F : y;
}

//! One-dimensional. The error is that of the whole run, as if the caller had waited for the stream.
template <class... P>
cudaError_t launch(void (*kernel)(P...), unsigned blocks, unsigned threads, size_t sharedBytes, cudaStream_t,
    std::common_type_t<P>... arguments)
{
    static_assert((std::is_trivially_copyable_v<P> && ...), "kernel arguments are copied as bytes");
    static_assert((sizeof(P) + ... + 0) <= 4096, "CUDA takes 4096 bytes of kernel arguments");
    shim::Call<P...> const call{kernel, {arguments...}};
    return shim::run(shim::Call<P...>::thread, &call, blocks, threads, sharedBytes);
}

} // namespace mambapose

inline void __syncthreads(char const* file = __builtin_FILE(), int line = __builtin_LINE())
{
    mambapose::shim::waitForBlock({file, line});
}

inline void __syncwarp(
    unsigned mask = 0xFFFFFFFFU, char const* file = __builtin_FILE(), int line = __builtin_LINE())
{
    mambapose::shim::waitForWarp(mask, {file, line});
}

template <class T>
T __shfl_xor_sync(unsigned mask, T value, int laneMask, int width = 32, char const* file = __builtin_FILE(),
    int line = __builtin_LINE())
{
    static_assert(std::is_arithmetic_v<T> && (sizeof(T) == 4 || sizeof(T) == 8), "types that CUDA shuffles");
    uint64_t bits = 0;
    std::memcpy(&bits, &value, sizeof value);
    bits = mambapose::shim::exchange(mask, bits, laneMask, width, {file, line});
    std::memcpy(&value, &bits, sizeof value);
    return value;
}

//! The value of a lane of the warp.
template <class T>
T __shfl_sync(unsigned mask, T value, int lane, char const* file = __builtin_FILE(), int line = __builtin_LINE())
{
    return __shfl_xor_sync(mask, value, static_cast<int>(threadIdx.x % 32) ^ (lane % 32), 32, file, line);
}

#endif
