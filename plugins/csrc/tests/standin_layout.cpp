/* Prints sizes, offsets, enumerators, virtual slots and interface names of TensorRT's plugin
 * interface. Built once with the stand-in header and once with NVIDIA's, the output must be equal. */
#include "NvInferRuntime.h"

#include <cstddef>
#include <cstdio>
#include <cstring>

using namespace nvinfer1;

namespace
{

//! Place of a virtual function in its table: the Itanium ABI keeps 1 + its offset in the pointer.
template <typename F>
long slot(F function)
{
    long words[sizeof(F) / sizeof(long)];
    std::memcpy(words, &function, sizeof function);
    return (words[0] - 1) / static_cast<long>(sizeof(void*));
}

#if defined(__aarch64__)
#error "pointers to members are laid out differently here; compare on x86-64"
#endif

//! The pointer that IDimensionExpr and IExprBuilder forward to.
template <typename Front>
struct Opened : Front
{
    static size_t offset()
    {
        alignas(Front) static unsigned char memory[sizeof(Opened)];
        auto* front = reinterpret_cast<Opened*>(memory);
        return static_cast<size_t>(reinterpret_cast<unsigned char*>(&front->mImpl) - memory);
    }
};

//! Qualified calls do not go through the table, so no object is needed.
template <typename Interface>
void printKind(char const* name)
{
    alignas(Interface) static unsigned char memory[sizeof(Interface)];
    InterfaceInfo const info = reinterpret_cast<Interface*>(memory)->Interface::getInterfaceInfo();
    std::printf("kind %s %s %d.%d\n", name, info.kind, info.major, info.minor);
}

} // namespace

#define SIZE(type) std::printf("size %s %zu %zu\n", #type, sizeof(type), alignof(type))
#define FIELD(type, field)                                                                                             \
    std::printf("field %s %s %zu %zu\n", #type, #field, offsetof(type, field), sizeof(type::field))
#define VALUE(name) std::printf("value %s %d\n", #name, static_cast<int>(name))
#define KIND(type) printKind<type>(#type)
#define SLOT(type, function) std::printf("slot %s %s %ld\n", #type, #function, slot(&type::function))

int main()
{
    SIZE(Dims);
    FIELD(Dims, nbDims);
    FIELD(Dims, d);
    VALUE(Dims::MAX_DIMS);
    SIZE(PluginTensorDesc);
    FIELD(PluginTensorDesc, dims);
    FIELD(PluginTensorDesc, type);
    FIELD(PluginTensorDesc, format);
    FIELD(PluginTensorDesc, scale);
    SIZE(DynamicPluginTensorDesc);
    FIELD(DynamicPluginTensorDesc, desc);
    FIELD(DynamicPluginTensorDesc, min);
    FIELD(DynamicPluginTensorDesc, max);
    FIELD(DynamicPluginTensorDesc, opt);
    SIZE(PluginField);
    FIELD(PluginField, name);
    FIELD(PluginField, data);
    FIELD(PluginField, type);
    FIELD(PluginField, length);
    SIZE(PluginFieldCollection);
    FIELD(PluginFieldCollection, nbFields);
    FIELD(PluginFieldCollection, fields);
    SIZE(DimsExprs);
    FIELD(DimsExprs, nbDims);
    FIELD(DimsExprs, d);
    SIZE(InterfaceInfo);
    FIELD(InterfaceInfo, kind);
    FIELD(InterfaceInfo, major);
    FIELD(InterfaceInfo, minor);
    SIZE(IPluginV3);
    SIZE(IPluginCreatorV3One);
    SIZE(IDimensionExpr);
    SIZE(IExprBuilder);
    std::printf("offset mImpl %zu %zu\n", Opened<IDimensionExpr>::offset(), Opened<IExprBuilder>::offset());

    VALUE(DataType::kFLOAT);
    VALUE(DataType::kHALF);
    VALUE(DataType::kINT8);
    VALUE(DataType::kINT32);
    VALUE(DataType::kBOOL);
    VALUE(DataType::kUINT8);
    VALUE(DataType::kFP8);
    VALUE(DataType::kBF16);
    VALUE(DataType::kINT64);
    VALUE(DataType::kINT4);
    VALUE(DataType::kFP4);
    VALUE(DataType::kE8M0);
    VALUE(TensorFormat::kLINEAR);
    VALUE(TensorFormat::kCHW2);
    VALUE(TensorFormat::kHWC8);
    VALUE(TensorFormat::kCHW4);
    VALUE(TensorFormat::kCHW16);
    VALUE(TensorFormat::kCHW32);
    VALUE(TensorFormat::kDHWC8);
    VALUE(TensorFormat::kCDHW32);
    VALUE(TensorFormat::kHWC);
    VALUE(TensorFormat::kDLA_LINEAR);
    VALUE(TensorFormat::kDLA_HWC4);
    VALUE(TensorFormat::kHWC16);
    VALUE(TensorFormat::kDHWC);
    VALUE(PluginFieldType::kFLOAT16);
    VALUE(PluginFieldType::kFLOAT32);
    VALUE(PluginFieldType::kFLOAT64);
    VALUE(PluginFieldType::kINT8);
    VALUE(PluginFieldType::kINT16);
    VALUE(PluginFieldType::kINT32);
    VALUE(PluginFieldType::kCHAR);
    VALUE(PluginFieldType::kDIMS);
    VALUE(PluginFieldType::kUNKNOWN);
    VALUE(PluginFieldType::kBF16);
    VALUE(PluginFieldType::kINT64);
    VALUE(PluginFieldType::kFP8);
    VALUE(PluginFieldType::kINT4);
    VALUE(PluginFieldType::kFP4);
    VALUE(TensorRTPhase::kBUILD);
    VALUE(TensorRTPhase::kRUNTIME);
    VALUE(PluginCapabilityType::kCORE);
    VALUE(PluginCapabilityType::kBUILD);
    VALUE(PluginCapabilityType::kRUNTIME);
    VALUE(APILanguage::kCPP);
    VALUE(APILanguage::kPYTHON);
    VALUE(DimensionOperation::kSUM);
    VALUE(DimensionOperation::kPROD);
    VALUE(DimensionOperation::kMAX);
    VALUE(DimensionOperation::kMIN);
    VALUE(DimensionOperation::kSUB);
    VALUE(DimensionOperation::kEQUAL);
    VALUE(DimensionOperation::kLESS);
    VALUE(DimensionOperation::kFLOOR_DIV);
    VALUE(DimensionOperation::kCEIL_DIV);
    VALUE(ILogger::Severity::kINTERNAL_ERROR);
    VALUE(ILogger::Severity::kERROR);
    VALUE(ILogger::Severity::kWARNING);
    VALUE(ILogger::Severity::kINFO);
    VALUE(ILogger::Severity::kVERBOSE);
    VALUE(IPluginV3OneBuild::kDEFAULT_FORMAT_COMBINATION_LIMIT);

    SLOT(IVersionedInterface, getAPILanguage);
    SLOT(IVersionedInterface, getInterfaceInfo);
    SLOT(ILogger, log);
    SLOT(ILoggerFinder, findLogger);
    SLOT(IPluginResourceContext, getGpuAllocator);
    SLOT(IPluginResourceContext, getErrorRecorder);
    SLOT(IPluginV3, getCapabilityInterface);
    SLOT(IPluginV3, clone);
    SLOT(IPluginV3OneCore, getPluginName);
    SLOT(IPluginV3OneCore, getPluginVersion);
    SLOT(IPluginV3OneCore, getPluginNamespace);
    SLOT(IPluginV3OneBuild, configurePlugin);
    SLOT(IPluginV3OneBuild, getOutputDataTypes);
    SLOT(IPluginV3OneBuild, getOutputShapes);
    SLOT(IPluginV3OneBuild, supportsFormatCombination);
    SLOT(IPluginV3OneBuild, getNbOutputs);
    SLOT(IPluginV3OneBuild, getWorkspaceSize);
    SLOT(IPluginV3OneBuild, getValidTactics);
    SLOT(IPluginV3OneBuild, getNbTactics);
    SLOT(IPluginV3OneBuild, getTimingCacheID);
    SLOT(IPluginV3OneBuild, getFormatCombinationLimit);
    SLOT(IPluginV3OneBuild, getMetadataString);
    SLOT(IPluginV3OneRuntime, setTactic);
    SLOT(IPluginV3OneRuntime, onShapeChange);
    SLOT(IPluginV3OneRuntime, enqueue);
    SLOT(IPluginV3OneRuntime, attachToContext);
    SLOT(IPluginV3OneRuntime, getFieldsToSerialize);
    SLOT(IPluginCreatorV3One, createPlugin);
    SLOT(IPluginCreatorV3One, getFieldNames);
    SLOT(IPluginCreatorV3One, getPluginName);
    SLOT(IPluginCreatorV3One, getPluginVersion);
    SLOT(IPluginCreatorV3One, getPluginNamespace);
    SLOT(apiv::VDimensionExpr, isConstant);
    SLOT(apiv::VDimensionExpr, getConstantValue);
    SLOT(apiv::VDimensionExpr, isSizeTensor);
    SLOT(apiv::VExprBuilder, constant);
    SLOT(apiv::VExprBuilder, operation);
    SLOT(apiv::VExprBuilder, declareSizeTensor);
    KIND(ILogger);
    KIND(ILoggerFinder);
    KIND(IPluginV3);
    KIND(IPluginV3OneCore);
    KIND(IPluginV3OneBuild);
    KIND(IPluginV3OneRuntime);
    KIND(IPluginCreatorV3One);
    std::printf("version %d.%d.%d\n", NV_TENSORRT_MAJOR, NV_TENSORRT_MINOR, NV_TENSORRT_PATCH);
}
