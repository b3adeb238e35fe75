// What a floor is computed from, measured: the clock of the multiprocessors while they work, and how
// many exponentials per second the whole GPU gives when it does nothing else.
#include <cstddef>
#include <cstdio>
#include <cuda_runtime.h>

namespace
{

constexpr int kTHREADS = 256;
constexpr int kBLOCKS_PER_MULTIPROCESSOR = 4; // resident on every GPU since sm_80
constexpr int kROUNDS = 20000;
constexpr int kCHAINS = 8; // independent, so that the unit and not its latency is measured

__global__ void exponentials(long long* cycles, float* sink, float scale)
{
    float value[kCHAINS];
    for (int chain = 0; chain < kCHAINS; ++chain)
    {
        value[chain] = scale * static_cast<float>(threadIdx.x + chain);
    }
    long long const begin = clock64();
    for (int round = 0; round < kROUNDS; ++round)
    {
#pragma unroll
        for (int chain = 0; chain < kCHAINS; ++chain)
        {
            asm volatile("ex2.approx.ftz.f32 %0, %0;" : "+f"(value[chain]));
        }
    }
    long long const end = clock64();
    float sum = 0.0F;
    for (int chain = 0; chain < kCHAINS; ++chain)
    {
        sum += value[chain];
    }
    sink[blockIdx.x * blockDim.x + threadIdx.x] = sum;
    if (threadIdx.x == 0)
    {
        cycles[blockIdx.x] = end - begin;
    }
}

struct Buffers
{
    ~Buffers()
    {
        cudaFree(cycles);
        cudaFree(sink);
        if (begin != nullptr)
        {
            cudaEventDestroy(begin);
        }
        if (end != nullptr)
        {
            cudaEventDestroy(end);
        }
    }

    long long* cycles{nullptr};
    float* sink{nullptr};
    cudaEvent_t begin{nullptr};
    cudaEvent_t end{nullptr};
};

cudaError_t measure(int blocks, Buffers& buffers, long long* cycles, float* milliseconds)
{
    cudaError_t status = cudaMalloc(&buffers.cycles, sizeof(long long) * static_cast<size_t>(blocks));
    if (status == cudaSuccess)
    {
        status = cudaMalloc(&buffers.sink, sizeof(float) * static_cast<size_t>(blocks) * kTHREADS);
    }
    if (status == cudaSuccess)
    {
        status = cudaEventCreate(&buffers.begin);
    }
    if (status == cudaSuccess)
    {
        status = cudaEventCreate(&buffers.end);
    }
    // The second run counts: the first one raises the clock.
    for (int run = 0; run < 2 && status == cudaSuccess; ++run)
    {
        cudaEventRecord(buffers.begin);
        exponentials<<<static_cast<unsigned>(blocks), kTHREADS>>>(buffers.cycles, buffers.sink, -1e-3F);
        cudaEventRecord(buffers.end);
        status = cudaEventSynchronize(buffers.end);
    }
    if (status == cudaSuccess)
    {
        status = cudaEventElapsedTime(milliseconds, buffers.begin, buffers.end);
    }
    if (status == cudaSuccess)
    {
        status = cudaMemcpy(cycles, buffers.cycles, sizeof(long long), cudaMemcpyDeviceToHost);
    }
    return status;
}

} // namespace

// All blocks run at once, so the cycles of one are those of the whole run.
extern "C" __attribute__((visibility("default"))) int mambapose_gpu_probe(
    double* clockHz, double* exponentialsPerSecond, char* error, size_t errorSize)
{
    int device = 0;
    int multiprocessors = 0;
    long long cycles = 0;
    float milliseconds = 0.0F;
    Buffers buffers;
    cudaError_t status = cudaGetDevice(&device);
    if (status == cudaSuccess)
    {
        status = cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount, device);
    }
    int const blocks = multiprocessors * kBLOCKS_PER_MULTIPROCESSOR;
    if (status == cudaSuccess)
    {
        status = measure(blocks, buffers, &cycles, &milliseconds);
    }
    if (status != cudaSuccess)
    {
        std::snprintf(error, errorSize, "%s", cudaGetErrorString(status));
        return -1;
    }
    double const seconds = static_cast<double>(milliseconds) * 1e-3;
    *clockHz = static_cast<double>(cycles) / seconds;
    *exponentialsPerSecond = static_cast<double>(blocks) * kTHREADS * kROUNDS * kCHAINS / seconds;
    return 0;
}
