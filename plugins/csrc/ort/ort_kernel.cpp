#include "ort/ort_kernel.h"
#include "core/scan_check.h"

#include <optional>

namespace mambapose
{
namespace
{

// The value of an integer attribute, or `otherwise` when the node does not carry it.
int64_t integer(OrtApi const& api, OrtKernelInfo const* info, char const* name, int64_t otherwise)
{
    int64_t value = otherwise;
    if (OrtStatus* const absent = api.KernelInfoGetAttribute_int64(info, name, &value))
    {
        api.ReleaseStatus(absent);
        return otherwise;
    }
    return value;
}

std::string word(OrtApi const& api, OrtKernelInfo const* info, char const* name, std::string const& otherwise)
{
    size_t size = 0;
    if (OrtStatus* const absent = api.KernelInfoGetAttribute_string(info, name, nullptr, &size))
    {
        api.ReleaseStatus(absent);
        return otherwise;
    }
    std::string value(size, '\0');
    check(api, api.KernelInfoGetAttribute_string(info, name, value.data(), &size));
    value.resize(size > 0 ? size - 1 : 0); // the size counts the terminator
    return value;
}

std::vector<int64_t> integers(OrtApi const& api, OrtKernelInfo const* info, char const* name)
{
    size_t count = 0;
    if (OrtStatus* const absent = api.KernelInfoGetAttributeArray_int64(info, name, nullptr, &count))
    {
        api.ReleaseStatus(absent);
        return {};
    }
    std::vector<int64_t> values(count);
    check(api, api.KernelInfoGetAttributeArray_int64(info, name, values.data(), &count));
    return values;
}

} // namespace

Attributes attributesFrom(OrtApi const& api, OrtKernelInfo const* info)
{
    Attributes found;
    found.directions = integer(api, info, "directions", found.directions);
    found.groups = integer(api, info, "groups", found.groups);
    found.segment = integer(api, info, "segment", found.segment);
    found.deltaSoftplus = integer(api, info, "delta_softplus", 1) != 0;
    if (found.directions < 1 || found.directions > 64)
    {
        reject("directions", "1 to 64", std::to_string(found.directions));
    }
    if (found.groups < 1)
    {
        reject("groups", "1 or more", std::to_string(found.groups));
    }
    if (found.segment < 0)
    {
        reject("segment", "0 or a number of steps", std::to_string(found.segment));
    }
    std::vector<int64_t> const reverse = integers(api, info, "reverse");
    if (reverse.empty() && integer(api, info, "reverse", -1) != -1)
    {
        reject("reverse", "a list of flags", "one integer");
    }
    if (!reverse.empty() && static_cast<int64_t>(reverse.size()) != found.directions)
    {
        reject("reverse", std::to_string(found.directions) + " flags", text(reverse));
    }
    for (size_t k = 0; k < reverse.size(); ++k)
    {
        if (reverse[k] != 0 && reverse[k] != 1)
        {
            reject("reverse", "flags of 0 or 1", text(reverse));
        }
        found.reverseMask |= static_cast<uint64_t>(reverse[k]) << k;
    }
    std::string const merge = word(api, info, "merge", "none");
    if (merge != "none" && merge != "sum")
    {
        reject("merge", "'none' or 'sum'", "'" + merge + "'");
    }
    std::string const gate = word(api, info, "gate", "silu");
    if (gate != "silu" && gate != "none")
    {
        reject("gate", "'silu' or 'none'", "'" + gate + "'");
    }
    found.mergeSum = merge == "sum";
    found.gateSilu = gate == "silu";
    return found;
}

namespace
{

struct Tensor
{
    void* data;
    Shape shape;
    ONNXTensorElementDataType type;

    bool isConstant() const
    {
        return shape.size() == 2;
    }
};

Tensor tensorFrom(OrtApi const& api, OrtValue const* value)
{
    OrtTensorTypeAndShapeInfo* info = nullptr;
    check(api, api.GetTensorTypeAndShape(value, &info));
    OwnedInfo const owned = ownedInfo(api, info);
    Tensor found{};
    size_t rank = 0;
    check(api, api.GetDimensionsCount(info, &rank));
    found.shape.resize(rank);
    check(api, api.GetDimensions(info, found.shape.data(), rank));
    check(api, api.GetTensorElementType(info, &found.type));
    // The C API has no getter for constant data; nothing is written through an input.
    check(api, api.GetTensorMutableData(const_cast<OrtValue*>(value), &found.data));
    return found;
}

using Inputs = std::array<std::optional<Tensor>, kINPUT_COUNT>;

Inputs inputsOf(OrtApi const& api, OrtKernelContext* context)
{
    size_t count = 0;
    check(api, api.KernelContext_GetInputCount(context, &count));
    Inputs inputs;
    for (size_t index = 0; index < count && index < kINPUT_COUNT; ++index)
    {
        OrtValue const* value = nullptr;
        check(api, api.KernelContext_GetInput(context, index, &value));
        if (value != nullptr)
        {
            inputs[index] = tensorFrom(api, value);
        }
    }
    return inputs;
}

void checkShape(Inputs const& inputs, Input index, Shape const& wanted, Shape const& alternative)
{
    if (inputs[index] && inputs[index]->shape != wanted && inputs[index]->shape != alternative)
    {
        std::string const either = wanted == alternative ? text(wanted) : text(wanted) + " or " + text(alternative);
        reject(kINPUT_NAMES[index], "shape " + either, text(inputs[index]->shape));
    }
}

// ONNX Runtime knows types, not ranks: beside float16 rows it lets B and C be of either type.
void checkMatrixType(Inputs const& inputs, Input index)
{
    bool const isConstant = inputs[index]->isConstant();
    auto const wanted = isConstant ? ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT : inputs[kU]->type;
    if (inputs[index]->type != wanted)
    {
        reject(kINPUT_NAMES[index], isConstant ? "a constant in float32" : "rows of the type of u", "another type");
    }
}

// Fills in the sizes of the call after comparing every shape with the specification.
void sizesFrom(Inputs const& inputs, Attributes const& attributes, MambaposeScanParams& params)
{
    Shape const& dt = inputs[kDT]->shape;
    Shape const& decay = inputs[kA]->shape;
    int64_t const directions = attributes.directions;
    if (dt.size() != 3 || dt[2] < 1 || dt[2] % directions != 0)
    {
        reject("dt", "shape (B, L, " + std::to_string(directions) + "*D)", text(dt));
    }
    int64_t const wide = dt[2];
    int64_t const width = wide / directions;
    if (decay.size() != 2 || decay[0] != wide || decay[1] < 1)
    {
        reject("A", "shape (" + std::to_string(wide) + ", N)", text(decay));
    }
    if (width % attributes.groups != 0)
    {
        reject("groups", "a divisor of the " + std::to_string(width) + " channels", std::to_string(attributes.groups));
    }
    int64_t const states = decay[1];
    Shape const rows{dt[0], dt[1], directions * attributes.groups * states};
    Shape const shared{dt[0], dt[1], width};
    checkShape(inputs, kU, shared, dt);
    checkShape(inputs, kB, rows, {wide, states});
    checkShape(inputs, kC, rows, {wide, states});
    checkMatrixType(inputs, kB);
    checkMatrixType(inputs, kC);
    checkShape(inputs, kD, {wide}, {wide});
    checkShape(inputs, kZ, shared, shared);
    checkShape(inputs, kDT_BIAS, {wide}, {wide});
    checkShape(inputs, kORDER, {dt[1]}, {directions, dt[1]});
    checkShape(inputs, kINITIAL_STATE, {dt[0], wide, states}, {dt[0], wide, states});
    if (inputs[kINITIAL_STATE] && attributes.segment > 0)
    {
        reject("initial_state", "segment 0 with it", std::to_string(attributes.segment));
    }
    if (inputs[kZ] && !attributes.gateSilu)
    {
        reject("z", "no gate input with gate 'none'", "one");
    }
    params.batch = dt[0];
    params.length = dt[1];
    params.channels = width;
    params.states = states;
    params.directions = directions;
    params.groups = attributes.groups;
    params.uShared = inputs[kU]->shape == shared ? 1 : 0;
    params.bConstant = inputs[kB]->isConstant() ? 1 : 0;
    params.cConstant = inputs[kC]->isConstant() ? 1 : 0;
    bool const perDirection = inputs[kORDER] && inputs[kORDER]->shape.size() == 2;
    params.orderRows = perDirection ? static_cast<int32_t>(directions) : 1;
}

MambaposeRows rowsOf(Tensor const& tensor)
{
    if (tensor.isConstant())
    {
        return {tensor.data, 0, tensor.shape[1]};
    }
    return {tensor.data, tensor.shape[1] * tensor.shape[2], tensor.shape[2]};
}

int32_t dtypeOf(ONNXTensorElementDataType type)
{
    switch (type)
    {
    case ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16: return MAMBAPOSE_FP16;
    case ONNX_TENSOR_ELEMENT_DATA_TYPE_BFLOAT16: return MAMBAPOSE_BF16;
    default: return MAMBAPOSE_FP32;
    }
}

template <typename T>
T const* dataOf(std::optional<Tensor> const& tensor)
{
    return tensor ? static_cast<T const*>(tensor->data) : nullptr;
}

struct Pool
{
    OrtApi const* api;
    OrtKernelContext* context;
    std::string failure;
};

void runOnPool(void* poolContext, MambaposeTask body, void* bodyContext, size_t count)
{
    auto* const pool = static_cast<Pool*>(poolContext);
    OrtStatus* const status = pool->api->KernelContext_ParallelFor(pool->context, body, count, 0, bodyContext);
    if (status != nullptr)
    {
        pool->failure = pool->api->GetErrorMessage(status);
        pool->api->ReleaseStatus(status);
    }
}

void* outputData(OrtApi const& api, OrtKernelContext* context, Output index, Shape const& shape)
{
    OrtValue* value = nullptr;
    check(api, api.KernelContext_GetOutput(context, index, shape.data(), shape.size(), &value));
    if (value == nullptr)
    {
        return nullptr; // the node does not name this output
    }
    void* data = nullptr;
    check(api, api.GetTensorMutableData(value, &data));
    return data;
}

} // namespace

MambaposeScanParams paramsFrom(OrtApi const& api, OrtKernelContext* context, Attributes const& attributes)
{
    Inputs const inputs = inputsOf(api, context);
    for (size_t const index : {kU, kDT, kA, kB, kC})
    {
        if (!inputs[index])
        {
            reject(kINPUT_NAMES[index], "an input", "none");
        }
    }
    MambaposeScanParams params{};
    params.structSize = sizeof(params);
    sizesFrom(inputs, attributes, params);
    params.dtype = dtypeOf(inputs[kU]->type);
    params.segment = attributes.segment;
    params.reverseMask = attributes.reverseMask;
    params.deltaSoftplus = attributes.deltaSoftplus ? 1 : 0;
    params.mergeSum = attributes.mergeSum ? 1 : 0;
    params.u = rowsOf(*inputs[kU]);
    params.dt = rowsOf(*inputs[kDT]);
    params.B = rowsOf(*inputs[kB]);
    params.C = rowsOf(*inputs[kC]);
    params.z = inputs[kZ] ? rowsOf(*inputs[kZ]) : MambaposeRows{};
    params.A = dataOf<float>(inputs[kA]);
    params.D = dataOf<float>(inputs[kD]);
    params.dtBias = dataOf<float>(inputs[kDT_BIAS]);
    params.order = dataOf<int32_t>(inputs[kORDER]);
    params.initialState = dataOf<float>(inputs[kINITIAL_STATE]);
    return params;
}

void makeOutputs(OrtApi const& api, OrtKernelContext* context, MambaposeScanParams& params)
{
    int64_t const wide = params.directions * params.channels;
    int64_t const rowSize = params.mergeSum != 0 ? params.channels : wide;
    void* const y = outputData(api, context, kY, {params.batch, params.length, rowSize});
    params.y = {y, params.length * rowSize, rowSize};
    params.finalState
        = static_cast<float*>(outputData(api, context, kFINAL_STATE, {params.batch, wide, params.states}));
}

Kernel::Kernel(OrtApi const& api, OrtKernelInfo const* info)
    : mApi(api)
    , mAttributes(attributesFrom(api, info))
{
    // Every call checks its order; a constant one is refused here already, when the model is loaded.
    int isConstant = 0;
    OrtValue const* order = nullptr;
    size_t count = 0;
    check(api, api.KernelInfo_GetInputCount(info, &count));
    if (count > kORDER)
    {
        check(api, api.KernelInfoGetConstantInput_tensor(info, kORDER, &isConstant, &order));
    }
    if (isConstant != 0 && order != nullptr)
    {
        Tensor const found = tensorFrom(api, order);
        if (found.shape.size() == 1 || found.shape.size() == 2)
        {
            int64_t const rows = found.shape.size() == 2 ? found.shape[0] : 1;
            checkOrder(static_cast<int32_t const*>(found.data), rows, found.shape.back());
        }
    }
}

void Kernel::compute(OrtKernelContext* context) const
{
    MambaposeScanParams params = paramsFrom(mApi, context, mAttributes);
    makeOutputs(mApi, context, params);
    Pool pool{&mApi, context, {}};
    params.parallelFor = runOnPool;
    params.poolContext = &pool;
    std::array<char, 256> error{};
    if (mambapose_scan_cpu(&params, error.data(), error.size()) != 0)
    {
        throw std::invalid_argument(error.data());
    }
    if (!pool.failure.empty())
    {
        throw std::runtime_error(pool.failure);
    }
}

} // namespace mambapose
