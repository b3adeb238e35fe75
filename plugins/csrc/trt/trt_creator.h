// Makes SelectiveScan plugins for TensorRT, and the C functions its plugin registry looks for in a library.
#ifndef MAMBAPOSE_TRT_CREATOR_H
#define MAMBAPOSE_TRT_CREATOR_H

#include "core/mambapose_scan.h"

#include <NvInferRuntime.h>

namespace mambapose
{

class ScanPluginCreator final : public nvinfer1::IPluginCreatorV3One
{
public:
    nvinfer1::IPluginV3* createPlugin(nvinfer1::AsciiChar const* name, nvinfer1::PluginFieldCollection const* fc,
        nvinfer1::TensorRTPhase phase) noexcept override;
    nvinfer1::PluginFieldCollection const* getFieldNames() noexcept override;
    nvinfer1::AsciiChar const* getPluginName() const noexcept override;
    nvinfer1::AsciiChar const* getPluginVersion() const noexcept override;
    nvinfer1::AsciiChar const* getPluginNamespace() const noexcept override;
};

} // namespace mambapose

extern "C"
{
//! TensorRT calls this when it loads the library, before getCreators.
MAMBAPOSE_API void setLoggerFinder(nvinfer1::ILoggerFinder* finder) noexcept;

//! The library's creators; none when the TensorRT that loads it is of another major release.
MAMBAPOSE_API nvinfer1::IPluginCreatorInterface* const* getCreators(int32_t& nbCreators) noexcept;
}

#endif
