// ONNX Runtime's face of the selective scan: `mambapose::SelectiveScan` version 1 as a custom
// operator on the CPU and, where the CUDA kernels lie beside this library, on the GPU. Exceptions
// stay inside: each callback turns them into an OrtStatus.

#include "ort/ort_cuda.h"
#include "ort/ort_kernel.h"

#include <cstdio>

namespace mambapose
{
namespace
{

constexpr char const* kDOMAIN = "mambapose";
constexpr char const* kOPERATOR = "SelectiveScan";

// Up to 1.23, ONNX Runtime crashes when it infers shapes of a node that leaves out an input between
// two others (microsoft/onnxruntime#26199); there the shapes stay open until the node runs.
constexpr int kSAFE_INFERENCE_MINOR = 24;

// One registration per combination of types: ONNX Runtime merges those of the same name. Constant
// B and C are float32 whatever the type of the rows.
struct Operator : OrtCustomOp
{
    Operator(OrtApi const& ortApi, bool infersShapes, ONNXTensorElementDataType rows, ONNXTensorElementDataType rowsB,
        ONNXTensorElementDataType rowsC);

    void runOnCuda();

    OrtApi const& api;
    std::array<ONNXTensorElementDataType, kINPUT_COUNT> types;
};

Operator const& self(OrtCustomOp const* op)
{
    return *static_cast<Operator const*>(op);
}

int64_t inferredAttribute(OrtApi const& api, OrtShapeInferContext const* context, char const* name, int64_t otherwise)
{
    OrtOpAttr const* attribute = nullptr;
    OrtStatus* status = api.ShapeInferContext_GetAttribute(context, name, &attribute);
    int64_t value = otherwise;
    size_t size = 0;
    if (status == nullptr)
    {
        status = api.ReadOpAttr(attribute, ORT_OP_ATTR_INT, &value, sizeof(value), &size);
    }
    if (status != nullptr)
    {
        api.ReleaseStatus(status);
        return otherwise;
    }
    return value;
}

bool mergesBySum(OrtApi const& api, OrtShapeInferContext const* context)
{
    OrtOpAttr const* attribute = nullptr;
    OrtStatus* status = api.ShapeInferContext_GetAttribute(context, "merge", &attribute);
    std::array<char, 8> word{};
    size_t size = 0;
    if (status == nullptr)
    {
        status = api.ReadOpAttr(attribute, ORT_OP_ATTR_STRING, word.data(), word.size() - 1, &size);
    }
    if (status != nullptr)
    {
        api.ReleaseStatus(status);
        return false;
    }
    return std::string(word.data()) == "sum";
}

struct InferredShape
{
    ONNXTensorElementDataType type;
    Shape sizes;                    // -1: not known
    std::vector<std::string> names; // of the symbolic dimensions, "" elsewhere
};

InferredShape inferredInput(OrtApi const& api, OrtShapeInferContext const* context, Input index)
{
    OrtTensorTypeAndShapeInfo* info = nullptr; // owned by the context
    check(api, api.ShapeInferContext_GetInputTypeShape(context, index, &info));
    size_t rank = 0;
    check(api, api.GetDimensionsCount(info, &rank));
    InferredShape found{ONNX_TENSOR_ELEMENT_DATA_TYPE_UNDEFINED, Shape(rank), std::vector<std::string>(rank)};
    check(api, api.GetTensorElementType(info, &found.type));
    check(api, api.GetDimensions(info, found.sizes.data(), rank));
    std::vector<char const*> names(rank);
    check(api, api.GetSymbolicDimensions(info, names.data(), rank));
    for (size_t axis = 0; axis < rank; ++axis)
    {
        found.names[axis] = names[axis] == nullptr ? "" : names[axis];
    }
    return found;
}

void setOutput(OrtApi const& api, OrtShapeInferContext* context, Output index, InferredShape const& shape)
{
    OrtTensorTypeAndShapeInfo* info = nullptr;
    check(api, api.CreateTensorTypeAndShapeInfo(&info));
    OwnedInfo const owned = ownedInfo(api, info);
    check(api, api.SetTensorElementType(info, shape.type));
    check(api, api.SetDimensions(info, shape.sizes.data(), shape.sizes.size()));
    std::vector<char const*> names;
    for (std::string const& name : shape.names)
    {
        names.push_back(name.c_str());
    }
    check(api, api.SetSymbolicDimensions(info, names.data(), names.size()));
    check(api, api.ShapeInferContext_SetOutputTypeShape(context, index, info));
}

// Types and shapes of both outputs from dt and A; silent where those are not known yet. ONNX Runtime
// asks one of the registrations on behalf of all, so the type comes from dt, not from the operator.
void inferShapes(OrtApi const& api, OrtShapeInferContext* context)
{
    InferredShape const dt = inferredInput(api, context, kDT);
    InferredShape const decay = inferredInput(api, context, kA);
    if (dt.sizes.size() != 3 || decay.sizes.size() != 2)
    {
        return;
    }
    int64_t const directions = inferredAttribute(api, context, "directions", 1);
    InferredShape y = dt;
    if (mergesBySum(api, context) && directions > 1)
    {
        int64_t const wide = dt.sizes[2] > 0 ? dt.sizes[2] : decay.sizes[0];
        y.sizes[2] = wide > 0 ? wide / directions : -1;
        y.names[2].clear();
    }
    setOutput(api, context, kY, y);
    InferredShape const state{ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT, {dt.sizes[0], decay.sizes[0], decay.sizes[1]},
        {dt.names[0], decay.names[0], decay.names[1]}};
    setOutput(api, context, kFINAL_STATE, state);
}

template <typename AnyKernel>
OrtStatusPtr ORT_API_CALL createKernel(
    OrtCustomOp const*, OrtApi const* api, OrtKernelInfo const* info, void** kernel) noexcept
{
    return guarded(*api, [&] { *kernel = new AnyKernel(*api, info); });
}

template <typename AnyKernel>
OrtStatusPtr ORT_API_CALL computeKernel(void* kernel, OrtKernelContext* context) noexcept
{
    auto const* const scan = static_cast<AnyKernel const*>(kernel);
    return guarded(scan->api(), [&] { scan->compute(context); });
}

template <typename AnyKernel>
void ORT_API_CALL destroyKernel(void* kernel) noexcept
{
    delete static_cast<AnyKernel*>(kernel);
}

OrtStatusPtr ORT_API_CALL inferOutputShapes(OrtCustomOp const* op, OrtShapeInferContext* context) noexcept
{
    return guarded(self(op).api, [&] { inferShapes(self(op).api, context); });
}

OrtCustomOpInputOutputCharacteristic ORT_API_CALL inputCharacteristic(OrtCustomOp const*, size_t index) noexcept
{
    return index <= kC ? INPUT_OUTPUT_REQUIRED : INPUT_OUTPUT_OPTIONAL;
}

OrtCustomOpInputOutputCharacteristic ORT_API_CALL outputCharacteristic(OrtCustomOp const*, size_t index) noexcept
{
    return index == kY ? INPUT_OUTPUT_REQUIRED : INPUT_OUTPUT_OPTIONAL;
}

Operator::Operator(OrtApi const& ortApi, bool infersShapes, ONNXTensorElementDataType rows,
    ONNXTensorElementDataType rowsB, ONNXTensorElementDataType rowsC)
    : OrtCustomOp{}
    , api(ortApi)
{
    constexpr auto kFLOAT = ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT;
    types = {rows, rows, kFLOAT, rowsB, rowsC, kFLOAT, rows, kFLOAT, ONNX_TENSOR_ELEMENT_DATA_TYPE_INT32, kFLOAT};
    version = kORT_API;
    GetName = [](OrtCustomOp const*) { return kOPERATOR; };
    GetExecutionProviderType = [](OrtCustomOp const*) -> char const* { return nullptr; };
    GetInputTypeCount = [](OrtCustomOp const*) -> size_t { return kINPUT_COUNT; };
    GetInputType = [](OrtCustomOp const* op, size_t index) { return self(op).types[index]; };
    GetOutputTypeCount = [](OrtCustomOp const*) -> size_t { return kOUTPUT_COUNT; };
    GetOutputType = [](OrtCustomOp const* op, size_t index)
    { return index == kY ? self(op).types[kU] : ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT; };
    GetInputCharacteristic = inputCharacteristic;
    GetOutputCharacteristic = outputCharacteristic;
    GetInputMemoryType = [](OrtCustomOp const*, size_t) { return OrtMemTypeDefault; };
    GetVariadicInputMinArity = [](OrtCustomOp const*) { return 0; };
    GetVariadicInputHomogeneity = [](OrtCustomOp const*) { return 0; };
    GetVariadicOutputMinArity = [](OrtCustomOp const*) { return 0; };
    GetVariadicOutputHomogeneity = [](OrtCustomOp const*) { return 0; };
    CreateKernelV2 = createKernel<Kernel>;
    KernelComputeV2 = computeKernel<Kernel>;
    KernelDestroy = destroyKernel<Kernel>;
    InferOutputShapeFn = infersShapes ? inferOutputShapes : nullptr;
    GetStartVersion = [](OrtCustomOp const*) { return MAMBAPOSE_SCAN_SPEC; };
    GetEndVersion = [](OrtCustomOp const*) { return MAMBAPOSE_SCAN_SPEC; };
}

// All inputs and outputs lie on the device, the default of the provider.
void Operator::runOnCuda()
{
    GetExecutionProviderType = [](OrtCustomOp const*) { return kCUDA_PROVIDER; };
    CreateKernelV2 = createKernel<CudaKernel>;
    KernelComputeV2 = computeKernel<CudaKernel>;
    KernelDestroy = destroyKernel<CudaKernel>;
}

using Operators = std::vector<std::unique_ptr<Operator>>;

// Every combination of types of u, B and C whose rows are of this type.
void addOperators(
    Operators& all, OrtApi const& api, bool infersShapes, ONNXTensorElementDataType rows, bool onCuda)
{
    constexpr auto kFLOAT = ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT;
    std::vector<ONNXTensorElementDataType> matrices{rows};
    if (rows != kFLOAT)
    {
        matrices.push_back(kFLOAT);
    }
    for (auto const rowsB : matrices)
    {
        for (auto const rowsC : matrices)
        {
            all.push_back(std::make_unique<Operator>(api, infersShapes, rows, rowsB, rowsC));
            if (onCuda)
            {
                all.back()->runOnCuda();
            }
        }
    }
}

// ONNX Runtime keeps pointers to the operators, so they live as long as the library.
Operators const& operators(OrtApi const& api, bool infersShapes)
{
    static Operators const kALL = [&api, infersShapes]
    {
        Operators all;
        for (auto const rows : {ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT, ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16})
        {
            if (kCPU_OPERATORS)
            {
                addOperators(all, api, infersShapes, rows, false);
            }
            if (cudaKernels() != nullptr)
            {
                addOperators(all, api, infersShapes, rows, true);
            }
        }
        if (cudaKernels() != nullptr)
        {
            addOperators(all, api, infersShapes, ONNX_TENSOR_ELEMENT_DATA_TYPE_BFLOAT16, true);
        }
        return all;
    }();
    return kALL;
}

// The custom-op domain, made once; released when the library is unloaded.
OrtCustomOpDomain* domain(OrtApi const& api, bool infersShapes)
{
    using Owned = std::unique_ptr<OrtCustomOpDomain, decltype(OrtApi::ReleaseCustomOpDomain)>;
    static Owned const kOWNED = [&api, infersShapes]
    {
        OrtCustomOpDomain* created = nullptr;
        check(api, api.CreateCustomOpDomain(kDOMAIN, &created));
        for (auto const& op : operators(api, infersShapes))
        {
            check(api, api.CustomOpDomain_Add(created, op.get()));
        }
        return Owned{created, api.ReleaseCustomOpDomain};
    }();
    return kOWNED.get();
}

} // namespace
} // namespace mambapose

extern "C" MAMBAPOSE_API OrtStatus* ORT_API_CALL RegisterCustomOps(
    OrtSessionOptions* options, OrtApiBase const* base) noexcept
{
    OrtApi const* const api = base->GetApi(mambapose::kORT_API);
    if (api == nullptr)
    {
        OrtApi const* const oldest = base->GetApi(1);
        return oldest->CreateStatus(ORT_FAIL, "mambapose: ONNX Runtime 1.20 or newer is needed");
    }
    int major = 0;
    int minor = 0;
    bool const isKnown = std::sscanf(base->GetVersionString(), "%d.%d", &major, &minor) == 2;
    bool const infersShapes = isKnown && (major > 1 || minor >= mambapose::kSAFE_INFERENCE_MINOR);
    return mambapose::guarded(*api,
        [&] { mambapose::check(*api, api->AddCustomOpDomain(options, mambapose::domain(*api, infersShapes))); });
}
