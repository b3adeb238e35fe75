/* Stand-in, see NvInferRuntime.h: the plain types of TensorRT's plugin interface. */
#ifndef MAMBAPOSE_STANDIN_NVINFERTYPES_H
#define MAMBAPOSE_STANDIN_NVINFERTYPES_H

#include <cstdint>

namespace nvinfer1
{

using AsciiChar = char;

enum class DataType : int32_t
{
    kFLOAT,
    kHALF,
    kINT8,
    kINT32,
    kBOOL,
    kUINT8,
    kFP8,
    kBF16,
    kINT64,
    kINT4,
    kFP4,
    kE8M0,
};

enum class TensorFormat : int32_t
{
    kLINEAR,
    kCHW2,
    kHWC8,
    kCHW4,
    kCHW16,
    kCHW32,
    kDHWC8,
    kCDHW32,
    kHWC,
    kDLA_LINEAR,
    kDLA_HWC4,
    kHWC16,
    kDHWC,
};
using PluginFormat = TensorFormat;

enum class PluginFieldType : int32_t
{
    kFLOAT16,
    kFLOAT32,
    kFLOAT64,
    kINT8,
    kINT16,
    kINT32,
    kCHAR,
    kDIMS,
    kUNKNOWN,
    kBF16,
    kINT64,
    kFP8,
    kINT4,
    kFP4,
};

enum class TensorRTPhase : int32_t
{
    kBUILD,
    kRUNTIME,
};

enum class PluginCapabilityType : int32_t
{
    kCORE,
    kBUILD,
    kRUNTIME,
};

enum class DimensionOperation : int32_t
{
    kSUM,
    kPROD,
    kMAX,
    kMIN,
    kSUB,
    kEQUAL,
    kLESS,
    kFLOOR_DIV,
    kCEIL_DIV,
};

enum class APILanguage : int32_t
{
    kCPP,
    kPYTHON,
};

class Dims64
{
public:
    static constexpr int32_t MAX_DIMS{8};
    int32_t nbDims;
    int64_t d[MAX_DIMS];
};
using Dims = Dims64;

struct PluginTensorDesc
{
    Dims dims;
    DataType type;
    TensorFormat format;
    float scale;
};

struct DynamicPluginTensorDesc
{
    PluginTensorDesc desc;
    Dims min;
    Dims max;
    Dims opt;
};

class PluginField
{
public:
    AsciiChar const* name;
    void const* data;
    PluginFieldType type;
    int32_t length;

    PluginField(AsciiChar const* name_ = nullptr, void const* data_ = nullptr,
        PluginFieldType type_ = PluginFieldType::kUNKNOWN, int32_t length_ = 0) noexcept
        : name(name_)
        , data(data_)
        , type(type_)
        , length(length_)
    {
    }
};

struct PluginFieldCollection
{
    int32_t nbFields{};
    PluginField const* fields{};
};

struct InterfaceInfo
{
    char const* kind;
    int32_t major;
    int32_t minor;
};

} // namespace nvinfer1

#endif
