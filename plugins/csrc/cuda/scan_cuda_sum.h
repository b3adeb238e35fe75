/* Third kernel of the backward pass: adds the parts that several blocks computed of one gradient, always in
 * the same order. One launch serves all gradients. */
#ifndef MAMBAPOSE_SCAN_CUDA_SUM_H
#define MAMBAPOSE_SCAN_CUDA_SUM_H

#include "cuda/scan_cuda_backward.h"

namespace mambapose
{
namespace backward
{

constexpr int kSUM_THREADS = 128;
constexpr int kMOST_SUMS = 9;

//! target[i] = sum over j < count of parts[j * size + i]; zero without parts.
struct Sum
{
    float const* parts;
    float* target;
    int64_t size, count;
    int64_t rows, columns; //!< Parts are (..., rows, columns), the target is (..., columns, rows).
    int64_t slices;        //!< Threads that share the parts of one element; a divisor of kSUM_THREADS.
    int64_t firstBlock;
};

struct Sums
{
    Sum sums[kMOST_SUMS];
    int32_t count;
};

__device__ inline float sumOfParts(Sum const& sum, int64_t element, int64_t slice)
{
    float total = 0.0F;
    int64_t const end = (slice + 1) * sum.count / sum.slices;
    MAMBAPOSE_UNROLL_BY(8)
    for (int64_t j = slice * sum.count / sum.slices; j < end; ++j)
    {
        total += sum.parts[j * sum.size + element];
    }
    return total;
}

__global__ void __launch_bounds__(kSUM_THREADS) sumParts(Sums const all)
{
    auto* const shares = reinterpret_cast<float*>(sharedMemory());
    int mine = 0;
    while (mine + 1 < all.count && static_cast<int64_t>(blockIdx.x) >= all.sums[mine + 1].firstBlock)
    {
        ++mine;
    }
    Sum const& sum = all.sums[mine];
    int64_t const width = kSUM_THREADS / sum.slices; // Elements of a block.
    int64_t const slice = threadIdx.x / width;
    int64_t const element = (blockIdx.x - sum.firstBlock) * width + threadIdx.x % width;
    shares[threadIdx.x] = element < sum.size ? sumOfParts(sum, element, slice) : 0.0F;
    __syncthreads();
    if (slice != 0 || element >= sum.size)
    {
        return;
    }
    float total = 0.0F;
    for (int64_t i = 0; i < sum.slices; ++i)
    {
        total += shares[i * width + threadIdx.x];
    }
    int64_t const row = element / sum.columns % sum.rows, column = element % sum.columns;
    sum.target[element - (row * sum.columns + column) + column * sum.rows + row] = total;
}

} // namespace backward
} // namespace mambapose
#endif
