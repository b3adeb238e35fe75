#include "trt/trt_version.h"

#include <NvInferVersion.h>
#include <dlfcn.h>

#include <cstdio>

static_assert(NV_TENSORRT_MAJOR > 10 || (NV_TENSORRT_MAJOR == 10 && NV_TENSORRT_MINOR >= 3),
    "TensorRT 10.3 or newer is wanted (JetPack 6.1 or newer)");

namespace mambapose
{
namespace
{

//! TensorRT for RTX counts its own releases from 1. Its interfaces are those of TensorRT 11.
constexpr int32_t kRTX_MAJOR = 1;
constexpr int32_t kRTX_INTERFACES = 11;

//! Major release of the library that holds the object's virtual functions; 0 when it is not TensorRT's.
int32_t majorBehind(void const* object) noexcept
{
    void const* const table = *static_cast<void const* const*>(object);
    Dl_info info{};
    if (dladdr(table, &info) == 0 || info.dli_fname == nullptr)
    {
        return 0;
    }
    // The library is there already. It may have been loaded privately, so a search in the whole process can miss it.
    void* const library = dlopen(info.dli_fname, RTLD_LAZY | RTLD_NOLOAD);
    if (library == nullptr)
    {
        return 0;
    }
    void* const symbol = dlsym(library, "getInferLibMajorVersion");
    int32_t const major = symbol == nullptr ? 0 : reinterpret_cast<int32_t (*)()>(symbol)();
    dlclose(library);
    return major;
}

} // namespace

bool isCallerOfOurMajor(void const* object) noexcept
{
    int32_t const found = object == nullptr ? 0 : majorBehind(object);
    int32_t const interfaces = found == kRTX_MAJOR ? kRTX_INTERFACES : found;
    if (found == 0 || interfaces == NV_TENSORRT_MAJOR)
    {
        return true;
    }
    std::fprintf(stderr,
        "mambapose SelectiveScan: TensorRT %d was wanted, found %s%d; build the plugin again with the headers of the "
        "TensorRT that loads it\n",
        NV_TENSORRT_MAJOR, found == kRTX_MAJOR ? "TensorRT for RTX " : "", found);
    return false;
}

} // namespace mambapose

int32_t mambapose_trt_built_for(void)
{
    return NV_TENSORRT_MAJOR * 10000 + NV_TENSORRT_MINOR * 100 + NV_TENSORRT_PATCH;
}
