// One SelectiveScan node on ONNX Runtime's CUDA provider. The kernels come from libmambapose_cuda.so,
// loaded at run time, so this compiles and runs without the CUDA toolkit.
//
// Sessions on the CPU with the library beside, and this kernel on a host build of the CUDA kernels,
// run in the tests; on the CUDA provider itself it is run on a machine with a GPU.
#ifndef MAMBAPOSE_ORT_CUDA_H
#define MAMBAPOSE_ORT_CUDA_H

#include "cuda/scan_cuda.h"
#include "ort/ort_kernel.h"

#include <mutex>

// The tests name the CPU provider here, to run this kernel on the host build of the CUDA kernels.
#ifdef MAMBAPOSE_CUDA_ON_PROVIDER
#define MAMBAPOSE_CPU_OPERATORS false
#else
#define MAMBAPOSE_CUDA_ON_PROVIDER "CUDAExecutionProvider"
#define MAMBAPOSE_CPU_OPERATORS true
#endif

namespace mambapose
{

constexpr char const* kCUDA_PROVIDER = MAMBAPOSE_CUDA_ON_PROVIDER;
constexpr bool kCPU_OPERATORS = MAMBAPOSE_CPU_OPERATORS;

struct CudaKernels
{
    decltype(&mambapose_scan_cuda_plan) plan;
    decltype(&mambapose_scan_cuda) launch;
    decltype(&mambapose_scan_cuda_device) device;
};

// The kernels of the library that MAMBAPOSE_CUDA_LIBRARY names or that lies beside this one; null
// where there is none. Throws std::runtime_error for a file that is not the library of the kernels.
CudaKernels const* cudaKernels();

// Puts the kernels on the stream of the node. Calls may overlap. An order lies on the device and is
// trusted: reading it back would stop the stream.
class CudaKernel
{
public:
    CudaKernel(OrtApi const& api, OrtKernelInfo const* info);

    OrtApi const& api() const
    {
        return mApi;
    }

    void compute(OrtKernelContext* context) const;

private:
    using Allocator = std::unique_ptr<OrtAllocator, decltype(OrtApi::ReleaseAllocator)>;

    void launch(OrtKernelContext* context, MambaposeScanParams const& params) const;
    MambaposeCudaPlan planFor(MambaposeScanParams const& params) const;

    OrtApi const& mApi;
    Attributes mAttributes;
    Allocator mAllocator; // of device memory
    // A plan takes some 20 us of the host, so the last one is kept, with the sizes it is for.
    mutable std::mutex mMutex;
    mutable MambaposeScanParams mPlannedFor{};
    mutable MambaposeCudaPlan mPlan{};
};

} // namespace mambapose

#endif
