/* What the kernels need of CUDA beyond its plain words: copies to shared memory that run on their own,
 * the fast exponential, and a launch that is an ordinary function call. Without nvcc the host shim of
 * the tests takes the place of all of it. */
#ifndef MAMBAPOSE_SCAN_CUDA_PORT_H
#define MAMBAPOSE_SCAN_CUDA_PORT_H

#ifdef __CUDACC__

#include <cstddef>
#include <cstdint>
#include <cuda_runtime.h>
#include <type_traits>

#define MAMBAPOSE_UNROLL _Pragma("unroll")
#define MAMBAPOSE_PRAGMA(words) _Pragma(#words)
#define MAMBAPOSE_UNROLL_BY(count) MAMBAPOSE_PRAGMA(unroll(count))
#define MAMBAPOSE_ROLLED _Pragma("unroll 1") //!< Copies of such a loop would only cost registers.

namespace mambapose
{

//! Dynamic shared memory of the block.
__device__ __forceinline__ unsigned char* sharedMemory()
{
    extern __shared__ __align__(16) unsigned char memory[];
    return memory;
}

/* Starts a copy of 4, 8 or 16 bytes, both addresses a multiple of it. It has ended, for the thread that
 * started it, after waitCopies; for the others after the barrier behind that. */
template <int BYTES>
__device__ __forceinline__ void copyAsync(void* shared, void const* global)
{
    static_assert(BYTES == 4 || BYTES == 8 || BYTES == 16, "sizes that cp.async knows");
    auto const target = static_cast<unsigned>(__cvta_generic_to_shared(shared));
    if constexpr (BYTES == 16)
    {
        asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(target), "l"(global) : "memory");
    }
    else
    {
        asm volatile("cp.async.ca.shared.global [%0], [%1], %2;" ::"r"(target), "l"(global), "n"(BYTES) : "memory");
    }
}

//! Ends a group of copies.
__device__ __forceinline__ void commitCopies()
{
    asm volatile("cp.async.commit_group;" ::: "memory");
}

//! Waits until at most the N youngest groups are under way.
template <int N>
__device__ __forceinline__ void waitCopies()
{
    asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory");
}

//! 2^x with a relative error of 2e-7; results below the normal range are 0.
__device__ __forceinline__ float exp2Approx(float x)
{
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

//! Puts a kernel with a row of blocks on the stream.
template <class... P>
cudaError_t launch(void (*kernel)(P...), unsigned blocks, unsigned threads, size_t sharedBytes, cudaStream_t stream,
    std::common_type_t<P>... arguments)
{
    void* pointers[] = {static_cast<void*>(&arguments)...};
    return cudaLaunchKernel(
        reinterpret_cast<void const*>(kernel), dim3(blocks), dim3(threads), pointers, sharedBytes, stream);
}

} // namespace mambapose

#else
#include "tests/cuda_shim.h"

#define MAMBAPOSE_UNROLL
#define MAMBAPOSE_UNROLL_BY(count)
#define MAMBAPOSE_ROLLED
#endif
#endif
