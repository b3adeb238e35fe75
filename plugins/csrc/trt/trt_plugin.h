// TensorRT's face of the selective scan: `SelectiveScan` version 1 as an IPluginV3, for TensorRT 10.3 to 11.
//
// The node is that of the `.trt.onnx` form (docs/operator.md): positional inputs, those of the field `presence` only.
// Kernels are behind the C interface of scan_cuda.h. Exceptions stay inside: every callback logs them and fails.
#ifndef MAMBAPOSE_TRT_PLUGIN_H
#define MAMBAPOSE_TRT_PLUGIN_H

#include "cuda/scan_cuda.h"
#include "trt/trt_shapes.h"

#include <memory>
#include <optional>

namespace mambapose
{

constexpr char const* kPLUGIN_NAME = "SelectiveScan";
constexpr char const* kPLUGIN_VERSION = "1";
constexpr char const* kPLUGIN_NAMESPACE = "";

class ScanPlugin final : public nvinfer1::IPluginV3,
                         public nvinfer1::IPluginV3OneCore,
                         public nvinfer1::IPluginV3OneBuild,
                         public nvinfer1::IPluginV3OneRuntime
{
public:
    explicit ScanPlugin(ScanAttributes attributes);
    ScanPlugin(ScanPlugin const& other);
    ScanPlugin& operator=(ScanPlugin const&) = delete;
    ~ScanPlugin() override = default;

    nvinfer1::IPluginCapability* getCapabilityInterface(nvinfer1::PluginCapabilityType type) noexcept override;
    nvinfer1::IPluginV3* clone() noexcept override;

    // Core
    nvinfer1::AsciiChar const* getPluginName() const noexcept override;
    nvinfer1::AsciiChar const* getPluginVersion() const noexcept override;
    nvinfer1::AsciiChar const* getPluginNamespace() const noexcept override;

    // Build
    int32_t configurePlugin(nvinfer1::DynamicPluginTensorDesc const* in, int32_t nbInputs,
        nvinfer1::DynamicPluginTensorDesc const* out, int32_t nbOutputs) noexcept override;
    int32_t getOutputDataTypes(nvinfer1::DataType* outputTypes, int32_t nbOutputs,
        nvinfer1::DataType const* inputTypes, int32_t nbInputs) const noexcept override;
    int32_t getOutputShapes(nvinfer1::DimsExprs const* inputs, int32_t nbInputs,
        nvinfer1::DimsExprs const* shapeInputs, int32_t nbShapeInputs, nvinfer1::DimsExprs* outputs, int32_t nbOutputs,
        nvinfer1::IExprBuilder& exprBuilder) noexcept override;
    bool supportsFormatCombination(int32_t pos, nvinfer1::DynamicPluginTensorDesc const* inOut, int32_t nbInputs,
        int32_t nbOutputs) noexcept override;
    int32_t getNbOutputs() const noexcept override;
    size_t getWorkspaceSize(nvinfer1::DynamicPluginTensorDesc const* inputs, int32_t nbInputs,
        nvinfer1::DynamicPluginTensorDesc const* outputs, int32_t nbOutputs) const noexcept override;
    int32_t getValidTactics(int32_t* tactics, int32_t nbTactics) noexcept override;
    int32_t getNbTactics() noexcept override;
    char const* getTimingCacheID() noexcept override;
    int32_t getFormatCombinationLimit() noexcept override;
    char const* getMetadataString() noexcept override;

    // Runtime
    int32_t setTactic(int32_t tactic) noexcept override;
    int32_t onShapeChange(nvinfer1::PluginTensorDesc const* in, int32_t nbInputs,
        nvinfer1::PluginTensorDesc const* out, int32_t nbOutputs) noexcept override;
    int32_t enqueue(nvinfer1::PluginTensorDesc const* inputDesc, nvinfer1::PluginTensorDesc const* outputDesc,
        void const* const* inputs, void* const* outputs, void* workspace, cudaStream_t stream) noexcept override;
    nvinfer1::IPluginV3* attachToContext(nvinfer1::IPluginResourceContext* context) noexcept override;
    nvinfer1::PluginFieldCollection const* getFieldsToSerialize() noexcept override;

private:
    //! What enqueue() launches for one set of shapes.
    struct Prepared
    {
        ScanSizes sizes;
        nvinfer1::DataType rows;
        MambaposeScanParams params;
        MambaposeCudaPlan plan;
    };

    void wantCounts(int32_t inputs, int32_t outputs) const;
    void checkTypes(nvinfer1::DynamicPluginTensorDesc const* in) const;
    int32_t multiprocessors() const;
    Prepared& prepare(nvinfer1::PluginTensorDesc const* in);

    ScanAttributes mAttributes;
    InputPositions mPositions;
    std::string mMetadata;
    std::string mTimingCacheId;
    std::vector<int32_t> mTactics; // those worth timing for the shapes it is configured for
    int32_t mTactic{MAMBAPOSE_CUDA_AUTO};
    std::optional<Prepared> mPrepared; // of the last shapes and tactic
    std::unique_ptr<SerializedFields> mSerialized; // keeps alive what getFieldsToSerialize() returned
};

} // namespace mambapose

#endif
