#include "ort/ort_cuda.h"

#include <cstdlib>
#include <dlfcn.h>
#include <sys/stat.h>
#include <tuple>

namespace mambapose
{
namespace
{

constexpr char const* kVARIABLE = "MAMBAPOSE_CUDA_LIBRARY";
constexpr char const* kLIBRARY = "libmambapose_cuda.so";

bool isFile(std::string const& path)
{
    struct stat found{};
    return stat(path.c_str(), &found) == 0 && S_ISREG(found.st_mode);
}

//! The path of the library of the kernels, empty where there is none.
std::string libraryPath()
{
    char const* const named = std::getenv(kVARIABLE);
    if (named != nullptr && *named != '\0')
    {
        if (!isFile(named))
        {
            reject(kVARIABLE, "the path of " + std::string(kLIBRARY), named);
        }
        return named;
    }
    Dl_info self{};
    if (dladdr(reinterpret_cast<void const*>(&mambapose_scan_spec), &self) == 0 || self.dli_fname == nullptr)
    {
        return {};
    }
    std::string const file = self.dli_fname;
    size_t const slash = file.rfind('/');
    std::string const path = (slash == std::string::npos ? "" : file.substr(0, slash + 1)) + kLIBRARY;
    return isFile(path) ? path : std::string{};
}

template <typename Function>
void resolve(void* library, char const* name, Function& function)
{
    function = reinterpret_cast<Function>(dlsym(library, name));
    if (function == nullptr)
    {
        throw std::runtime_error(std::string("the CUDA kernels beside this library lack ") + name + "; build both anew");
    }
}

//! Never unloaded: the operators point to it as long as the process may run them.
CudaKernels const* loadKernels()
{
    std::string const path = libraryPath();
    if (path.empty())
    {
        return nullptr;
    }
    void* const library = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
    if (library == nullptr)
    {
        throw std::runtime_error("the CUDA kernels cannot be loaded, build them anew or remove the file: "
            + std::string(dlerror()));
    }
    static CudaKernels kernels;
    resolve(library, "mambapose_scan_cuda_plan", kernels.plan);
    resolve(library, "mambapose_scan_cuda", kernels.launch);
    resolve(library, "mambapose_scan_cuda_device", kernels.device);
    return &kernels;
}

//! Device memory for one launch. Memory that was asked for on a stream is not given to another one
//! before that stream is done with it, so it may be handed back while the kernels still run.
class Workspace
{
public:
    Workspace(OrtApi const& api, OrtKernelContext* context, OrtAllocator* allocator, void* stream, size_t size)
        : mApi(api)
        , mAllocator(allocator)
    {
        if (size == 0)
        {
            return;
        }
        if (stream == nullptr)
        {
            check(api, api.AllocatorAlloc(allocator, size + kALIGNMENT, &mData));
            return;
        }
        OrtMemoryInfo const* memory = nullptr;
        check(api, api.AllocatorGetInfo(allocator, &memory));
        check(api, api.KernelContext_GetScratchBuffer(context, memory, size + kALIGNMENT, &mData));
    }

    ~Workspace()
    {
        OrtStatus* const status = mData == nullptr ? nullptr : mApi.AllocatorFree(mAllocator, mData);
        if (status != nullptr)
        {
            mApi.ReleaseStatus(status);
        }
    }

    Workspace(Workspace const&) = delete;
    Workspace& operator=(Workspace const&) = delete;

    void* data() const
    {
        auto const address = reinterpret_cast<uintptr_t>(mData);
        return reinterpret_cast<void*>((address + kALIGNMENT - 1) / kALIGNMENT * kALIGNMENT);
    }

private:
    static constexpr size_t kALIGNMENT = 256;

    OrtApi const& mApi;
    OrtAllocator* mAllocator;
    void* mData{nullptr};
};

OrtAllocator* deviceAllocator(OrtApi const& api, OrtKernelInfo const* info)
{
    OrtAllocator* allocator = nullptr;
    check(api, api.KernelInfoGetAllocator(info, OrtMemTypeDefault, &allocator));
    return allocator;
}

//! Whether a plan for one serves the other; what attributes and types decide is the same for a node.
bool hasSameSizes(MambaposeScanParams const& a, MambaposeScanParams const& b)
{
    auto const form = [](MambaposeScanParams const& p)
    {
        return std::make_tuple(p.structSize, p.batch, p.length, p.channels, p.states, p.uShared, p.bConstant,
            p.cConstant, p.orderRows, p.D != nullptr, p.z.data != nullptr, p.dtBias != nullptr, p.order != nullptr,
            p.initialState != nullptr, p.finalState != nullptr, p.u.data != nullptr);
    };
    return form(a) == form(b);
}

} // namespace

CudaKernels const* cudaKernels()
{
    static CudaKernels const* const kFOUND = loadKernels();
    return kFOUND;
}

CudaKernel::CudaKernel(OrtApi const& api, OrtKernelInfo const* info)
    : mApi(api)
    , mAttributes(attributesFrom(api, info))
    , mAllocator(deviceAllocator(api, info), api.ReleaseAllocator)
{
}

void CudaKernel::compute(OrtKernelContext* context) const
{
    MambaposeScanParams params = paramsFrom(mApi, context, mAttributes);
    makeOutputs(mApi, context, params);
    launch(context, params);
}

void CudaKernel::launch(OrtKernelContext* context, MambaposeScanParams const& params) const
{
    void* stream = nullptr;
    check(mApi, mApi.KernelContext_GetGPUComputeStream(context, &stream));
    MambaposeCudaPlan const plan = planFor(params);
    auto const size = static_cast<size_t>(plan.workspaceBytes);
    Workspace const workspace(mApi, context, mAllocator.get(), stream, size);
    std::array<char, 256> error{};
    if (cudaKernels()->launch(&params, &plan, workspace.data(), size, stream, error.data(), error.size()) != 0)
    {
        throw std::runtime_error(error.data());
    }
}

MambaposeCudaPlan CudaKernel::planFor(MambaposeScanParams const& params) const
{
    std::lock_guard<std::mutex> const lock(mMutex);
    if (hasSameSizes(params, mPlannedFor))
    {
        return mPlan;
    }
    std::array<char, 256> error{};
    int32_t multiprocessors = 0;
    int32_t capability = 0;
    if (cudaKernels()->device(&multiprocessors, &capability, error.data(), error.size()) != 0)
    {
        throw std::runtime_error(error.data());
    }
    MambaposeCudaPlan plan{};
    plan.structSize = sizeof(plan);
    if (cudaKernels()->plan(&params, MAMBAPOSE_CUDA_AUTO, multiprocessors, &plan, error.data(), error.size()) != 0)
    {
        throw std::invalid_argument(error.data());
    }
    mPlan = plan;
    mPlannedFor = params;
    return plan;
}

} // namespace mambapose
