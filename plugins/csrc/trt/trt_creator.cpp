#include "trt/trt_creator.h"
#include "trt/trt_log.h"
#include "trt/trt_plugin.h"
#include "trt/trt_version.h"

#include <atomic>

namespace mambapose
{
namespace
{

//! Whether another major release of TensorRT has called; it must not see our objects.
std::atomic<bool> gIsCallerForeign{false};

} // namespace

nvinfer1::IPluginV3* ScanPluginCreator::createPlugin(nvinfer1::AsciiChar const* name,
    nvinfer1::PluginFieldCollection const* fc, nvinfer1::TensorRTPhase phase) noexcept
{
    char const* const where = name == nullptr || *name == '\0' ? "createPlugin" : name;
    return guarded<nvinfer1::IPluginV3*>(
        where, nullptr, [&] { return new ScanPlugin(attributesFromFields(fc, phase)); });
}

nvinfer1::PluginFieldCollection const* ScanPluginCreator::getFieldNames() noexcept
{
    return &nodeFields();
}

nvinfer1::AsciiChar const* ScanPluginCreator::getPluginName() const noexcept
{
    return kPLUGIN_NAME;
}

nvinfer1::AsciiChar const* ScanPluginCreator::getPluginVersion() const noexcept
{
    return kPLUGIN_VERSION;
}

nvinfer1::AsciiChar const* ScanPluginCreator::getPluginNamespace() const noexcept
{
    return kPLUGIN_NAMESPACE;
}

#if defined(MAMBAPOSE_TRT_STATIC_REGISTRATION)
// For programs that only open the library (Triton, polygraphy, trtexec --staticPlugins): registered as it is loaded.
REGISTER_TENSORRT_PLUGIN(ScanPluginCreator);
#endif

} // namespace mambapose

void setLoggerFinder(nvinfer1::ILoggerFinder* finder) noexcept
{
    bool const isOurs = mambapose::isCallerOfOurMajor(finder);
    mambapose::gIsCallerForeign.store(!isOurs);
    mambapose::keepLoggerFinder(isOurs ? finder : nullptr);
}

nvinfer1::IPluginCreatorInterface* const* getCreators(int32_t& nbCreators) noexcept
{
    static mambapose::ScanPluginCreator sCreator;
    static nvinfer1::IPluginCreatorInterface* const kCREATORS[] = {&sCreator};
    nbCreators = mambapose::gIsCallerForeign.load() ? 0 : 1;
    return kCREATORS;
}
