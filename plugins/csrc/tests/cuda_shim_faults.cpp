/* Kernels with one fault each, to show that the host shim finds it, and the same kernel without.
 * usage: cuda_shim_faults FAULT SEED. Prints what the launch says and how many results are right; a sanitizer
 * may end the program first. */
#include "tests/cuda_shim.h"

#include <cstdio>
#include <cstdlib>
#include <string>
#include <vector>

extern "C" void mambapose_shim_set_seed(uint64_t seed);

namespace
{

using namespace mambapose;

constexpr unsigned kBLOCKS = 7, kTHREADS = 96, kSTEPS = 3;

enum class Fault
{
    kNONE,
    kNO_BARRIER_BEFORE_READING,
    kNO_BARRIER_BEFORE_WRITING,
    kNO_WARP_BARRIER,
    kNO_WAIT,
    kWAIT_TOO_FEW,
    kSTAGE_USED_TWICE,
    kTILE_TOO_FAR,
    kSHARED_OVERRUN,
    kSHARED_UNDERRUN,
    kCOPY_OVERRUN,
    kCOPY_UNALIGNED,
    kUNWRITTEN,
    kOUTPUT_OVERRUN,
    kRETURNED_EARLY,
    kBARRIER_IN_BRANCH,
    kBARRIERS_OF_BRANCHES,
    kLANE_MISSING,
    kLANE_OUTSIDE_MASK,
    kNOT_IN_MASK,
    kRACE_OF_BLOCKS,
    kCOPIES_LEFT,
    kTOO_MANY_THREADS,
    kNO_BLOCKS,
    kTOO_MUCH_SHARED,
};

char const* const kNAMES[] = {"none", "no_barrier_before_reading", "no_barrier_before_writing", "no_warp_barrier",
    "no_wait", "wait_too_few", "stage_used_twice", "tile_too_far", "shared_overrun", "shared_underrun", "copy_overrun",
    "copy_unaligned", "unwritten", "output_overrun", "returned_early", "barrier_in_branch", "barriers_of_branches",
    "lane_missing", "lane_outside_mask", "not_in_mask", "race_of_blocks", "copies_left", "too_many_threads",
    "no_blocks", "too_much_shared"};

//! Sum over a warp of the values of a neighbour's tile, step after step, through two stages of copies.
__global__ void sumOfTiles(float const* in, float* out, float* scratch, Fault fault)
{
    unsigned const i = threadIdx.x;
    float const* row = in + static_cast<size_t>(blockIdx.x) * kSTEPS * blockDim.x;
    float* tiles = reinterpret_cast<float*>(sharedMemory());
    float total = 0.0F;
    auto const fetch = [&](unsigned step)
    {
        unsigned const stage = fault == Fault::kSTAGE_USED_TWICE ? 0 : step % 2;
        float* target = tiles + stage * blockDim.x + i;
        if (step < kSTEPS)
        {
            target += fault == Fault::kCOPY_OVERRUN && step == 1 && i + 1 == blockDim.x ? 1 : 0;
            bool const unaligned = fault == Fault::kCOPY_UNALIGNED && i == 0;
            copyAsync<4>(reinterpret_cast<unsigned char*>(target) + (unaligned ? 2 : 0), row + step * blockDim.x + i);
        }
        commitCopies();
    };
    fetch(0);
    for (unsigned step = 0; step < kSTEPS; ++step)
    {
        fetch(step + 1);
        if (fault == Fault::kWAIT_TOO_FEW)
        {
            waitCopies<2>();
        }
        else if (fault != Fault::kNO_WAIT)
        {
            waitCopies<1>();
        }
        if (fault != Fault::kNO_BARRIER_BEFORE_READING)
        {
            __syncthreads();
        }
        unsigned const far = fault == Fault::kTILE_TOO_FAR ? blockDim.x : blockDim.x - 1;
        total += tiles[(step % 2) * blockDim.x + far - i];
        if (fault != Fault::kNO_BARRIER_BEFORE_WRITING)
        {
            __syncthreads();
        }
    }
    if (fault == Fault::kCOPIES_LEFT)
    {
        copyAsync<4>(tiles + i, row + i);
    }
    waitCopies<0>();
    if (fault == Fault::kSHARED_OVERRUN && i == 5)
    {
        tiles[2 * blockDim.x] = total;
    }
    if (fault == Fault::kSHARED_UNDERRUN && i == 5)
    {
        *(tiles - 1) = total;
    }
    if (fault == Fault::kRETURNED_EARLY && i >= 64)
    {
        return;
    }
    __syncthreads();
    if (fault == Fault::kBARRIER_IN_BRANCH && i < 32)
    {
        __syncthreads();
    }
    if (fault == Fault::kBARRIERS_OF_BRANCHES && i < 32)
    {
        __syncthreads();
    }
    else if (fault == Fault::kBARRIERS_OF_BRANCHES)
    {
        __syncthreads();
    }
    // Through shared memory to the lane beside, which needs the warp only.
    tiles[i] = total;
    if (fault != Fault::kNO_WARP_BARRIER)
    {
        __syncwarp();
    }
    total = tiles[i ^ 1U];
    if (fault == Fault::kLANE_MISSING && i == 40)
    {
        return;
    }
    unsigned mask = 0xFFFFFFFFU;
    mask = fault == Fault::kLANE_OUTSIDE_MASK ? (i % 32 < 16 ? 0x0000FFFFU : 0xFFFF0000U) : mask;
    mask = fault == Fault::kNOT_IN_MASK ? 0x7FFFFFFFU : mask;
    for (int lanes = 16; lanes > 0; lanes /= 2)
    {
        total += __shfl_xor_sync(mask, total, lanes);
    }
    if (fault == Fault::kRACE_OF_BLOCKS)
    {
        scratch[i] += total;
    }
    if (fault != Fault::kUNWRITTEN || i != 77)
    {
        size_t const late = fault == Fault::kOUTPUT_OVERRUN && blockIdx.x + 1 == gridDim.x ? 1 : 0;
        out[static_cast<size_t>(blockIdx.x) * blockDim.x + i + late] = total;
    }
}

Fault faultOf(std::string const& name)
{
    for (size_t i = 0; i < sizeof kNAMES / sizeof kNAMES[0]; ++i)
    {
        if (name == kNAMES[i])
        {
            return static_cast<Fault>(i);
        }
    }
    std::printf("unknown fault %s\n", name.c_str());
    std::exit(2);
}

//! What the kernel must give: lanes of a warp all have its sum.
float wanted(std::vector<float> const& in, unsigned block, unsigned thread)
{
    float sum = 0.0F;
    for (unsigned lane = 0; lane < 32; ++lane)
    {
        for (unsigned step = 0; step < kSTEPS; ++step)
        {
            sum += in[(block * kSTEPS + step) * kTHREADS + kTHREADS - 1 - (thread / 32 * 32 + lane)];
        }
    }
    return sum;
}

} // namespace

int main(int argc, char** argv)
{
    if (argc != 3)
    {
        std::printf("usage: %s FAULT SEED\n", argv[0]);
        return 2;
    }
    Fault const fault = faultOf(argv[1]);
    mambapose_shim_set_seed(std::strtoull(argv[2], nullptr, 10));
    std::vector<float> in(size_t{kBLOCKS} * kSTEPS * kTHREADS), out(size_t{kBLOCKS} * kTHREADS, NAN), scratch(kTHREADS);
    for (size_t i = 0; i < in.size(); ++i)
    {
        in[i] = static_cast<float>(i % 101); // Sums of few small integers are exact.
    }
    unsigned const blocks = fault == Fault::kNO_BLOCKS ? 0 : kBLOCKS;
    unsigned const threads = fault == Fault::kTOO_MANY_THREADS ? 1025 : kTHREADS;
    size_t const shared = fault == Fault::kTOO_MUCH_SHARED ? (48 << 10) + 1 : 2 * kTHREADS * sizeof(float);
    cudaError_t const error
        = launch(sumOfTiles, blocks, threads, shared, nullptr, in.data(), out.data(), scratch.data(), fault);
    unsigned right = 0;
    for (unsigned i = 0; i < out.size(); ++i)
    {
        right += out[i] == wanted(in, i / kTHREADS, i % kTHREADS) ? 1U : 0U;
    }
    std::printf("%s\n%u of %zu right\n", cudaGetErrorString(error), right, out.size());
    return error == cudaSuccess && right == out.size() ? 0 : 1;
}
