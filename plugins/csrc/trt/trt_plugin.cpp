#include "trt/trt_plugin.h"
#include "trt/trt_log.h"
#include "trt/trt_plan.h"

#include <algorithm>
#include <stdexcept>

namespace mambapose
{

using nvinfer1::DataType;
using nvinfer1::Dims;
using nvinfer1::DynamicPluginTensorDesc;
using nvinfer1::PluginTensorDesc;
using nvinfer1::TensorFormat;

namespace
{

constexpr int32_t kSUCCESS = 0;
constexpr int32_t kFAILURE = -1;
constexpr size_t kERROR_SIZE = 512;

//! Dimensions of each input that is there, each taken from its place among the node's tensors.
template <typename DimsAt>
InputDims inputDims(InputPositions const& positions, DimsAt const& dimsAt)
{
    InputDims dims{};
    for (int32_t position = 0; position < positions.count(); ++position)
    {
        dims[static_cast<size_t>(positions.at(position))] = dimsAt(position);
    }
    return dims;
}

//! Constants of symbolic dimensions, -1 for the others.
Dims constantsOf(nvinfer1::DimsExprs const& symbolic)
{
    Dims dims{};
    dims.nbDims = std::min<int32_t>(symbolic.nbDims, Dims::MAX_DIMS);
    for (int32_t i = 0; i < dims.nbDims; ++i)
    {
        bool const isConstant = symbolic.d[i] != nullptr && symbolic.d[i]->isConstant();
        dims.d[i] = isConstant ? symbolic.d[i]->getConstantValue() : -1;
    }
    return dims;
}

std::string describe(ScanAttributes const& attributes)
{
    std::string text = "directions=" + std::to_string(attributes.directions)
        + " groups=" + std::to_string(attributes.groups) + " reverse=";
    for (int32_t const flag : attributes.reverse)
    {
        text += flag == 0 ? '0' : '1';
    }
    return text + " delta_softplus=" + std::to_string(attributes.deltaSoftplus)
        + " segment=" + std::to_string(attributes.segment) + " merge=" + attributes.merge + " gate=" + attributes.gate
        + " presence=" + std::to_string(attributes.presence);
}

} // namespace

ScanPlugin::ScanPlugin(ScanAttributes attributes)
    : mAttributes(std::move(attributes))
    , mPositions(mAttributes.presence)
    , mMetadata(describe(mAttributes))
    , mTimingCacheId(std::string(mambapose_scan_cuda_version()) + " " + mMetadata)
{
}

ScanPlugin::ScanPlugin(ScanPlugin const& other)
    : ScanPlugin(other.mAttributes)
{
    mTactics = other.mTactics;
    mTactic = other.mTactic;
    mPrepared = other.mPrepared;
}

nvinfer1::IPluginCapability* ScanPlugin::getCapabilityInterface(nvinfer1::PluginCapabilityType type) noexcept
{
    switch (type)
    {
    case nvinfer1::PluginCapabilityType::kCORE: return static_cast<IPluginV3OneCore*>(this);
    case nvinfer1::PluginCapabilityType::kBUILD: return static_cast<IPluginV3OneBuild*>(this);
    case nvinfer1::PluginCapabilityType::kRUNTIME: return static_cast<IPluginV3OneRuntime*>(this);
    }
    return nullptr;
}

nvinfer1::IPluginV3* ScanPlugin::clone() noexcept
{
    return guarded<nvinfer1::IPluginV3*>("clone", nullptr, [&] { return new ScanPlugin(*this); });
}

nvinfer1::AsciiChar const* ScanPlugin::getPluginName() const noexcept
{
    return kPLUGIN_NAME;
}

nvinfer1::AsciiChar const* ScanPlugin::getPluginVersion() const noexcept
{
    return kPLUGIN_VERSION;
}

nvinfer1::AsciiChar const* ScanPlugin::getPluginNamespace() const noexcept
{
    return kPLUGIN_NAMESPACE;
}

void ScanPlugin::wantCounts(int32_t inputs, int32_t outputs) const
{
    if (inputs != mPositions.count())
    {
        std::string const presence = " (presence " + std::to_string(mAttributes.presence) + ")";
        refuse("inputs", std::to_string(mPositions.count()) + presence, std::to_string(inputs),
            "give TensorRT the .trt.onnx file");
    }
    if (outputs != kOUTPUT_COUNT)
    {
        refuse("outputs", "2 (y and final_state)", std::to_string(outputs));
    }
}

void ScanPlugin::checkTypes(DynamicPluginTensorDesc const* in) const
{
    DataType const rows = in[mPositions[kU]].desc.type;
    if (!isRowsType(rows))
    {
        refuse("u", "fp32, fp16 or bf16", nameOf(rows));
    }
    for (int32_t position = 0; position < mPositions.count(); ++position)
    {
        Input const input = mPositions.at(position);
        PluginTensorDesc const& desc = in[position].desc;
        DataType const wanted = typeBeside(rows, input, desc.dims.nbDims);
        if (desc.type != wanted)
        {
            refuse(nameOf(input), nameOf(wanted) + " beside " + nameOf(rows) + " u", nameOf(desc.type));
        }
    }
}

int32_t ScanPlugin::multiprocessors() const
{
    if (mAttributes.multiprocessors > 0)
    {
        return mAttributes.multiprocessors;
    }
    int32_t found = 0, capability = 0;
    char error[kERROR_SIZE] = "";
    if (mambapose_scan_cuda_device(&found, &capability, error, sizeof(error)) != 0)
    {
        throw std::runtime_error(error);
    }
    return found;
}

int32_t ScanPlugin::configurePlugin(
    DynamicPluginTensorDesc const* in, int32_t nbInputs, DynamicPluginTensorDesc const*, int32_t nbOutputs) noexcept
{
    return guarded("configurePlugin", kFAILURE, [&] {
        wantCounts(nbInputs, nbOutputs);
        DataType const rows = in[mPositions[kU]].desc.type;
        auto const sizesOf = [&](auto const& dimsAt)
        { return sizesFromDims(mAttributes, inputDims(mPositions, dimsAt)); };
        sizesOf([&](int32_t position) { return &in[position].desc.dims; });
        checkTypes(in);
        ScanSizes const least = sizesOf([&](int32_t position) { return &in[position].min; });
        ScanSizes const most = sizesOf([&](int32_t position) { return &in[position].max; });
        ScanSizes const best = sizesOf([&](int32_t position) { return &in[position].opt; });
        mAttributes.multiprocessors = multiprocessors();
        for (ScanSizes const& sizes : {least, most})
        {
            if (sizes.areKnown())
            {
                planFrom(paramsFromSizes(mAttributes, sizes, rows), MAMBAPOSE_CUDA_AUTO, mAttributes.multiprocessors);
            }
        }
        mTactics = best.areKnown()
            ? distinctTactics(paramsFromSizes(mAttributes, best, rows), mAttributes.multiprocessors)
            : std::vector<int32_t>{};
        return kSUCCESS;
    });
}

int32_t ScanPlugin::getOutputDataTypes(
    DataType* outputTypes, int32_t nbOutputs, DataType const* inputTypes, int32_t nbInputs) const noexcept
{
    return guarded("getOutputDataTypes", kFAILURE, [&] {
        wantCounts(nbInputs, nbOutputs);
        outputTypes[kY] = inputTypes[mPositions[kU]];
        outputTypes[kFINAL_STATE] = DataType::kFLOAT;
        return kSUCCESS;
    });
}

int32_t ScanPlugin::getOutputShapes(nvinfer1::DimsExprs const* inputs, int32_t nbInputs, nvinfer1::DimsExprs const*,
    int32_t, nvinfer1::DimsExprs* outputs, int32_t nbOutputs, nvinfer1::IExprBuilder& exprBuilder) noexcept
{
    return guarded("getOutputShapes", kFAILURE, [&] {
        wantCounts(nbInputs, nbOutputs);
        std::array<Dims, kINPUT_COUNT> constants{};
        auto const constantsAt = [&](int32_t position)
        {
            Dims& dims = constants[static_cast<size_t>(position)];
            dims = constantsOf(inputs[position]);
            return &dims;
        };
        sizesFromDims(mAttributes, inputDims(mPositions, constantsAt)); // a misfit is best said while parsing

        nvinfer1::DimsExprs const& dt = inputs[mPositions[kDT]];
        nvinfer1::DimsExprs const& decay = inputs[mPositions[kA]];
        outputs[kY] = dt;
        if (mAttributes.mergesBySum() && mAttributes.directions > 1)
        {
            outputs[kY].d[2] = exprBuilder.operation(nvinfer1::DimensionOperation::kFLOOR_DIV, *dt.d[2],
                *exprBuilder.constant(mAttributes.directions));
        }
        outputs[kFINAL_STATE].nbDims = 3;
        outputs[kFINAL_STATE].d[0] = dt.d[0];
        outputs[kFINAL_STATE].d[1] = decay.d[0];
        outputs[kFINAL_STATE].d[2] = decay.d[1];
        return kSUCCESS;
    });
}

bool ScanPlugin::supportsFormatCombination(
    int32_t pos, DynamicPluginTensorDesc const* inOut, int32_t nbInputs, int32_t nbOutputs) noexcept
{
    return guarded("supportsFormatCombination", false, [&] {
        wantCounts(nbInputs, nbOutputs);
        if (pos < 0 || pos >= nbInputs + nbOutputs || inOut[pos].desc.format != TensorFormat::kLINEAR)
        {
            return false;
        }
        PluginTensorDesc const& desc = inOut[pos].desc;
        DataType const rows = inOut[mPositions[kU]].desc.type; // position 0, so decided whatever pos is
        if (pos >= nbInputs)
        {
            return desc.type == (pos - nbInputs == kY ? rows : DataType::kFLOAT);
        }
        return isRowsType(rows) && desc.type == typeBeside(rows, mPositions.at(pos), desc.dims.nbDims);
    });
}

int32_t ScanPlugin::getNbOutputs() const noexcept
{
    return kOUTPUT_COUNT;
}

size_t ScanPlugin::getWorkspaceSize(
    DynamicPluginTensorDesc const* inputs, int32_t nbInputs, DynamicPluginTensorDesc const*, int32_t nbOutputs)
    const noexcept
{
    return guarded<size_t>("getWorkspaceSize", 0, [&]() -> size_t {
        wantCounts(nbInputs, nbOutputs);
        auto const mostAt = [&](int32_t position) { return &inputs[position].max; };
        ScanSizes const most = sizesFromDims(mAttributes, inputDims(mPositions, mostAt));
        if (!most.areKnown())
        {
            refuse("getWorkspaceSize", "the largest size of every dimension", "one that is not known");
        }
        DataType const rows = inputs[mPositions[kU]].desc.type;
        return static_cast<size_t>(workspaceBound(paramsFromSizes(mAttributes, most, rows), multiprocessors()));
    });
}

int32_t ScanPlugin::getValidTactics(int32_t* tactics, int32_t nbTactics) noexcept
{
    if (nbTactics != getNbTactics())
    {
        logError("getValidTactics", "the number of tactics does not match getNbTactics()");
        return kFAILURE;
    }
    std::copy(mTactics.begin(), mTactics.end(), tactics);
    return kSUCCESS;
}

int32_t ScanPlugin::getNbTactics() noexcept
{
    return static_cast<int32_t>(mTactics.size());
}

char const* ScanPlugin::getTimingCacheID() noexcept
{
    return mTimingCacheId.c_str();
}

int32_t ScanPlugin::getFormatCombinationLimit() noexcept
{
    constexpr int32_t kROWS_TYPES = 3; // fp32, fp16, bf16; everything else follows
    return kROWS_TYPES;
}

char const* ScanPlugin::getMetadataString() noexcept
{
    return mMetadata.c_str();
}

int32_t ScanPlugin::setTactic(int32_t tactic) noexcept
{
    return guarded("setTactic", kFAILURE, [&] {
        if (tactic < MAMBAPOSE_CUDA_AUTO || tactic > MAMBAPOSE_CUDA_CHUNKED)
        {
            refuse("tactic", "0 to 3", std::to_string(tactic), "build the engine again with this library");
        }
        if (tactic != mTactic)
        {
            mTactic = tactic;
            mPrepared.reset();
        }
        return kSUCCESS;
    });
}

//! Plans for these shapes, unless that is what was planned last: then only sizes are compared.
ScanPlugin::Prepared& ScanPlugin::prepare(PluginTensorDesc const* in)
{
    auto const dimsAt = [&](int32_t position) { return &in[position].dims; };
    ScanSizes const sizes = sizesFromDims(mAttributes, inputDims(mPositions, dimsAt));
    DataType const rows = in[mPositions[kU]].type;
    if (!mPrepared || !(mPrepared->sizes == sizes) || mPrepared->rows != rows)
    {
        mPrepared.reset();
        if (!sizes.areKnown() || !isRowsType(rows))
        {
            refuse("shapes", "the sizes of all tensors and rows of fp32, fp16 or bf16", "others");
        }
        mAttributes.multiprocessors = multiprocessors();
        MambaposeScanParams const params = paramsFromSizes(mAttributes, sizes, rows);
        mPrepared = Prepared{sizes, rows, params, planFrom(params, mTactic, mAttributes.multiprocessors)};
    }
    return *mPrepared;
}

int32_t ScanPlugin::onShapeChange(
    PluginTensorDesc const* in, int32_t nbInputs, PluginTensorDesc const*, int32_t nbOutputs) noexcept
{
    return guarded("onShapeChange", kFAILURE, [&] {
        wantCounts(nbInputs, nbOutputs);
        prepare(in);
        return kSUCCESS;
    });
}

int32_t ScanPlugin::enqueue(PluginTensorDesc const* inputDesc, PluginTensorDesc const*, void const* const* inputs,
    void* const* outputs, void* workspace, cudaStream_t stream) noexcept
{
    return guarded("enqueue", kFAILURE, [&] {
        Prepared& call = prepare(inputDesc); // planned before, unless the tactic was set after the shapes
        bindTensors(call.params, mPositions, inputs, outputs);
        size_t const workspaceBytes = workspace == nullptr ? 0 : static_cast<size_t>(call.plan.workspaceBytes);
        char error[kERROR_SIZE] = "";
        if (mambapose_scan_cuda(&call.params, &call.plan, workspace, workspaceBytes, stream, error, sizeof(error)) != 0)
        {
            throw std::runtime_error(error);
        }
        return kSUCCESS;
    });
}

nvinfer1::IPluginV3* ScanPlugin::attachToContext(nvinfer1::IPluginResourceContext*) noexcept
{
    return guarded<nvinfer1::IPluginV3*>("attachToContext", nullptr, [&] { return new ScanPlugin(*this); });
}

nvinfer1::PluginFieldCollection const* ScanPlugin::getFieldsToSerialize() noexcept
{
    return guarded<nvinfer1::PluginFieldCollection const*>("getFieldsToSerialize", nullptr, [&] {
        mSerialized = std::make_unique<SerializedFields>(mAttributes);
        return mSerialized->collection();
    });
}

} // namespace mambapose
