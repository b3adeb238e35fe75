// What the TensorRT plugin refuses and what it says, without TensorRT and without a GPU: every wrong field of a node
// and of an engine, every misfit of shapes and types. Kernels are replaced by plans that can be told apart.
//
// Prints one line per case, "<case>: <sentence>", and fails when something was accepted or thrown.
#include "trt/trt_creator.h"
#include "trt/trt_plan.h"
#include "trt/trt_plugin.h"

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>

using namespace mambapose;
using nvinfer1::DataType;
using nvinfer1::Dims;
using nvinfer1::DynamicPluginTensorDesc;
using nvinfer1::PluginField;
using nvinfer1::PluginFieldCollection;
using nvinfer1::PluginFieldType;
using nvinfer1::TensorRTPhase;

namespace
{

constexpr int64_t kMANY_PIECES = 1000000;
bool gHasDevice = true;
bool gWantsTooMuch = false;
int32_t gCanTactics = 3;

} // namespace

// Stand-ins for the kernels: tactics 1 and 2 launch alike, 3 does not.
extern "C" int mambapose_scan_cuda_plan(MambaposeScanParams const* params, int32_t tactic, int32_t multiprocessors,
    MambaposeCudaPlan* plan, char* error, size_t errorSize)
{
    if (params->states > 256 || multiprocessors < 1 || tactic > gCanTactics)
    {
        std::snprintf(error, errorSize, "states: 1 to 256 was wanted, found %d", static_cast<int>(params->states));
        return -1;
    }
    plan->tactic = tactic == MAMBAPOSE_CUDA_AUTO ? MAMBAPOSE_CUDA_SEQUENTIAL : tactic;
    plan->chunks = tactic == MAMBAPOSE_CUDA_CHUNKED ? 2 : 1;
    plan->workspaceBytes = plan->chunks > 1 && gWantsTooMuch ? kMANY_PIECES * 4096 : 0;
    return 0;
}

extern "C" int mambapose_scan_cuda(
    MambaposeScanParams const*, MambaposeCudaPlan const*, void*, size_t, void*, char* error, size_t errorSize)
{
    std::snprintf(error, errorSize, "no kernels here");
    return -1;
}

extern "C" int mambapose_scan_cuda_device(int32_t* multiprocessors, int32_t* capability, char* error, size_t errorSize)
{
    *multiprocessors = 8;
    *capability = 87;
    std::snprintf(error, errorSize, "a GPU was wanted, found none");
    return gHasDevice ? 0 : -1;
}

extern "C" char const* mambapose_scan_cuda_version(void)
{
    return "stub-1";
}

namespace
{

struct Recorder final : nvinfer1::ILogger
{
    void log(Severity severity, nvinfer1::AsciiChar const* message) noexcept override
    {
        isError = severity == Severity::kERROR;
        last = message;
    }
    bool isError{false};
    std::string last;
};

struct Finder final : nvinfer1::ILoggerFinder
{
    nvinfer1::ILogger* findLogger() override
    {
        if (throws)
        {
            throw 1;
        }
        return &recorder;
    }
    Recorder recorder;
    bool throws{false};
};

Finder gFinder;
int gFailures = 0;

void expect(bool condition, char const* what)
{
    if (!condition)
    {
        std::printf("FAILED: %s\n", what);
        ++gFailures;
    }
}

//! Prints what was logged; fails when nothing was.
void report(std::string const& name, bool wasRefused)
{
    expect(wasRefused && !gFinder.recorder.last.empty() && gFinder.recorder.isError, name.c_str());
    std::printf("%s: %s\n", name.c_str(), gFinder.recorder.last.c_str());
    gFinder.recorder.last.clear();
}

nvinfer1::IPluginCreatorV3One& creator()
{
    int32_t count = 0;
    return *static_cast<nvinfer1::IPluginCreatorV3One*>(getCreators(count)[0]);
}

using Owned = std::unique_ptr<nvinfer1::IPluginV3>;

Owned create(std::vector<PluginField> const& fields, TensorRTPhase phase)
{
    PluginFieldCollection const collection{static_cast<int32_t>(fields.size()), fields.data()};
    return Owned(creator().createPlugin("node", &collection, phase));
}

PluginField integers(char const* name, std::vector<int32_t> const& values)
{
    return {name, values.data(), PluginFieldType::kINT32, static_cast<int32_t>(values.size())};
}

PluginField word(char const* name, std::string const& value)
{
    return {name, value.data(), PluginFieldType::kCHAR, static_cast<int32_t>(value.size())};
}

std::vector<int32_t> const kZERO{0}, kONE{1}, kTWO{2}, kFIVE{5}, kMINUS{-1}, kSEVENTY{70}, kPAIR{0, 1}, kBAD_PAIR{0, 2},
    kTRIPLE{0, 1, 0}, kALL{31}, kMORE{32}, kZ_BIT{2}, kSTATE_BIT{16};
std::string const kNONE = "none", kSUM = "sum", kMEAN = "mean", kEMPTY, kSUM_0("sum\0", 4), kSUM_00("sum\0\0", 5),
    kRUDE(100, '\n');
int64_t const kHUGE = int64_t{1} << 32, kWIDE_TWO = 2;

void nodeRefusals()
{
    auto const refused = [](char const* name, std::vector<PluginField> const& fields)
    { report(std::string("node, ") + name, create(fields, TensorRTPhase::kBUILD) == nullptr); };
    refused("unknown field", {integers("direction", kTWO)});
    refused("serialised field", {integers("serialization_version", kONE)});
    refused("two of a name", {integers("groups", kONE), integers("groups", kONE)});
    refused("no name", {{nullptr, kONE.data(), PluginFieldType::kINT32, 1}});
    refused("no data", {{"groups", nullptr, PluginFieldType::kINT32, 1}});
    refused("type", {{"groups", kONE.data(), PluginFieldType::kFLOAT32, 1}});
    refused("type of a word", {{"merge", kONE.data(), PluginFieldType::kINT32, 1}});
    refused("word as number", {word("groups", kSUM)});
    refused("two numbers", {integers("groups", kPAIR)});
    refused("negative length", {{"groups", kONE.data(), PluginFieldType::kINT32, -1}});
    refused("64 bits", {{"groups", &kHUGE, PluginFieldType::kINT64, 1}});
    refused("directions", {integers("directions", kSEVENTY)});
    refused("groups", {integers("groups", kZERO)});
    refused("reverse too long", {integers("directions", kTWO), integers("reverse", kTRIPLE)});
    refused("reverse too short", {integers("directions", kTWO), integers("reverse", kONE)});
    refused("reverse of two", {integers("directions", kTWO), integers("reverse", kBAD_PAIR)});
    refused("softplus", {integers("delta_softplus", kTWO)});
    refused("segment", {integers("segment", kMINUS)});
    refused("merge", {word("merge", kMEAN)});
    refused("merge empty", {word("merge", kEMPTY)});
    refused("merge with two terminators", {word("merge", kSUM_00)});
    refused("merge past its length", {{"merge", kSUM.data(), PluginFieldType::kCHAR, 2}});
    refused("merge of line ends", {word("merge", kRUDE)});
    refused("merge of negative length", {{"merge", kSUM.data(), PluginFieldType::kCHAR, -3}});
    refused("gate", {word("gate", kSUM)});
    refused("gate none with z", {word("gate", kNONE), integers("presence", kZ_BIT)});
    refused("state with segment", {integers("segment", kFIVE), integers("presence", kSTATE_BIT)});
    refused("presence", {integers("presence", kMORE)});
    report("node, no collection", creator().createPlugin("node", nullptr, TensorRTPhase::kBUILD) == nullptr);
    PluginFieldCollection const broken{2, nullptr};
    report("node, no fields", creator().createPlugin(nullptr, &broken, TensorRTPhase::kBUILD) == nullptr);
}

std::vector<PluginField> const kNODE{integers("directions", kTWO), {"groups", &kWIDE_TWO, PluginFieldType::kINT64, 1},
    integers("reverse", kPAIR), integers("presence", kALL), word("merge", kSUM_0), word("plugin_version", kNONE),
    word("plugin_namespace", kEMPTY)};

nvinfer1::IPluginV3OneRuntime& runtimeOf(Owned const& plugin)
{
    return *static_cast<nvinfer1::IPluginV3OneRuntime*>(
        plugin->getCapabilityInterface(nvinfer1::PluginCapabilityType::kRUNTIME));
}

nvinfer1::IPluginV3OneBuild& buildOf(Owned const& plugin)
{
    return *static_cast<nvinfer1::IPluginV3OneBuild*>(
        plugin->getCapabilityInterface(nvinfer1::PluginCapabilityType::kBUILD));
}

std::vector<PluginField> serialised(Owned const& plugin)
{
    PluginFieldCollection const* const found = runtimeOf(plugin).getFieldsToSerialize();
    return {found->fields, found->fields + found->nbFields};
}

void engineRefusals()
{
    Owned const node = create(kNODE, TensorRTPhase::kBUILD);
    expect(node != nullptr, "a good node");
    std::vector<PluginField> const good = serialised(node);
    expect(create(good, TensorRTPhase::kRUNTIME) != nullptr, "a good engine");
    expect(gFinder.recorder.last.empty(), "nothing logged for good fields");
    for (size_t i = 0; i < good.size(); ++i)
    {
        std::vector<PluginField> fields = good;
        fields.erase(fields.begin() + static_cast<std::ptrdiff_t>(i));
        report(std::string("engine without ") + good[i].name, create(fields, TensorRTPhase::kRUNTIME) == nullptr);
    }
    std::vector<PluginField> fields = good;
    fields[0] = integers("serialization_version", kFIVE);
    report("engine, version", create(fields, TensorRTPhase::kRUNTIME) == nullptr);
    fields = good;
    fields.push_back(word("plugin_version", kNONE));
    report("engine, more fields", create(fields, TensorRTPhase::kRUNTIME) == nullptr);

    // The fields outlive neither their plugin's next call nor the plugin; copies are of equal content.
    Owned const copy(node->clone());
    std::vector<PluginField> const again = serialised(copy);
    expect(again.size() == good.size() && again[3].data != good[3].data, "a clone serialises fields of its own");
    expect(std::memcmp(again[3].data, good[3].data, 2 * sizeof(int32_t)) == 0, "a clone serialises the same flags");
}

Dims dimsOf(std::vector<int64_t> const& sizes)
{
    Dims dims{};
    dims.nbDims = static_cast<int32_t>(sizes.size());
    std::copy(sizes.begin(), sizes.end(), dims.d);
    return dims;
}

DynamicPluginTensorDesc tensor(std::vector<int64_t> const& sizes, DataType type = DataType::kHALF)
{
    Dims const dims = dimsOf(sizes);
    return {{dims, type, nvinfer1::TensorFormat::kLINEAR, 1.0F}, dims, dims, dims};
}

// K 2, G 2, B 3, L 7, D 6, N 4, all inputs, fp16.
std::vector<DynamicPluginTensorDesc> goodTensors()
{
    constexpr auto kF = DataType::kFLOAT;
    return {tensor({3, 7, 6}), tensor({3, 7, 12}), tensor({12, 4}, kF), tensor({3, 7, 16}), tensor({12, 4}, kF),
        tensor({12}, kF), tensor({3, 7, 6}), tensor({12}, kF), tensor({2, 7}, DataType::kINT32),
        tensor({3, 12, 4}, kF)};
}

int32_t configure(Owned const& plugin, std::vector<DynamicPluginTensorDesc> const& in, int32_t outputs = 2)
{
    std::vector<DynamicPluginTensorDesc> const out(2);
    return buildOf(plugin).configurePlugin(in.data(), static_cast<int32_t>(in.size()), out.data(), outputs);
}

void shapeRefusals()
{
    Owned const plugin = create(kNODE, TensorRTPhase::kBUILD);
    auto const refused = [&](char const* name, int32_t input, DynamicPluginTensorDesc const& wrong)
    {
        std::vector<DynamicPluginTensorDesc> tensors = goodTensors();
        tensors[static_cast<size_t>(input)] = wrong;
        report(std::string("shape, ") + name, configure(plugin, tensors) != 0);
    };
    constexpr auto kF = DataType::kFLOAT;
    refused("rank of u", kU, tensor({7, 6}));
    refused("columns of u", kU, tensor({3, 7, 5}));
    refused("batch", kDT, tensor({2, 7, 12}));
    refused("length", kDT, tensor({3, 8, 12}));
    refused("odd columns of dt", kDT, tensor({3, 7, 11}));
    refused("rows of A", kA, tensor({14, 4}, kF));
    refused("columns of B", kB, tensor({3, 7, 18}));
    refused("states of B", kB, tensor({3, 7, 20}));
    refused("states of C", kC, tensor({12, 5}, kF));
    refused("rank of C", kC, tensor({4}, kF));
    refused("D", kD, tensor({6}, kF));
    refused("z", kZ, tensor({3, 7, 12}));
    refused("dt_bias", kDT_BIAS, tensor({11}, kF));
    refused("order length", kORDER, tensor({2, 6}, DataType::kINT32));
    refused("order rows", kORDER, tensor({3, 7}, DataType::kINT32));
    refused("state", kINITIAL_STATE, tensor({3, 12, 5}, kF));
    refused("type of u", kU, tensor({3, 7, 6}, DataType::kINT8));
    refused("type of dt", kDT, tensor({3, 7, 12}, kF));
    refused("type of A", kA, tensor({12, 4}));
    refused("type of constant C", kC, tensor({12, 4}));
    refused("type of order", kORDER, tensor({2, 7}, DataType::kINT64));
    DynamicPluginTensorDesc grows = tensor({3, 7, 6});
    grows.desc.dims.d[1] = -1;
    grows.max.d[1] = 9;
    refused("largest length", kU, grows);

    std::vector<DynamicPluginTensorDesc> tensors = goodTensors();
    report("shape, outputs", configure(plugin, tensors, 1) != 0);
    tensors.pop_back();
    report("shape, inputs", configure(plugin, tensors) != 0);

    Owned const grouped = create({integers("groups", kFIVE)}, TensorRTPhase::kBUILD);
    tensors = {tensor({1, 2, 6}), tensor({1, 2, 6}), tensor({6, 4}, kF), tensor({1, 2, 20}), tensor({1, 2, 20})};
    report("shape, groups", configure(grouped, tensors) != 0);
    Owned const plain = create({}, TensorRTPhase::kBUILD);
    tensors[3] = tensors[4] = tensor({6, 300}, kF);
    tensors[2] = tensor({6, 300}, kF);
    report("shape, states", configure(plain, tensors) != 0);
}

void tactics()
{
    Owned const plugin = create(kNODE, TensorRTPhase::kBUILD);
    auto& build = buildOf(plugin);
    expect(build.getNbTactics() == 0, "no tactics before configurePlugin");
    gHasDevice = false;
    report("no GPU", configure(plugin, goodTensors()) != 0);
    gHasDevice = true;
    expect(configure(plugin, goodTensors()) == 0, "good shapes");
    int32_t found[2] = {};
    expect(build.getNbTactics() == 2 && build.getValidTactics(found, 2) == 0, "tactics that launch alike are one");
    expect(found[0] == MAMBAPOSE_CUDA_SEQUENTIAL && found[1] == MAMBAPOSE_CUDA_CHUNKED, "the tactics");
    report("tactics, number", build.getValidTactics(found, 1) != 0);
    gCanTactics = MAMBAPOSE_CUDA_SEQUENTIAL;
    expect(configure(plugin, goodTensors()) == 0 && build.getNbTactics() == 1, "tactics that exist");
    gCanTactics = MAMBAPOSE_CUDA_CHUNKED;
    report("tactic 4", runtimeOf(plugin).setTactic(4) != 0);

    // A plan beyond the workspace gives way to one that fits.
    gWantsTooMuch = true;
    expect(configure(plugin, goodTensors()) == 0 && build.getNbTactics() == 1, "no tactic beyond the workspace");
    MambaposeScanParams params{};
    params.states = 1;
    expect(planFrom(params, MAMBAPOSE_CUDA_CHUNKED, 8).chunks == 1, "no plan beyond the workspace");
    gWantsTooMuch = false;
    expect(planFrom(params, MAMBAPOSE_CUDA_CHUNKED, 8).chunks == 2, "a plan within the workspace");

    std::vector<DynamicPluginTensorDesc> tensors = goodTensors();
    expect(build.getWorkspaceSize(tensors.data(), 10, tensors.data(), 2) > 0, "a workspace");
    tensors[0].max.d[1] = 9;
    report("workspace of a misfit", build.getWorkspaceSize(tensors.data(), 10, tensors.data(), 2) == 0);
    expect(std::strstr(build.getTimingCacheID(), "stub-1") != nullptr, "the kernels' version is in the cache id");
    expect(std::strstr(build.getMetadataString(), "reverse=01") != nullptr, "the flags are in the metadata");
}

void running()
{
    std::vector<nvinfer1::PluginTensorDesc> descs;
    for (DynamicPluginTensorDesc const& each : goodTensors())
    {
        descs.push_back(each.desc);
    }
    Owned const plugin = create(kNODE, TensorRTPhase::kBUILD);
    auto& runtime = runtimeOf(plugin);
    std::vector<void const*> const inputs(10, &descs);
    std::vector<void*> const outputs(2, &descs);
    expect(runtime.onShapeChange(descs.data(), 10, descs.data(), 2) == 0, "good shapes at run time");
    int32_t const status
        = runtime.enqueue(descs.data(), descs.data(), inputs.data(), outputs.data(), nullptr, nullptr);
    report("kernel error", status != 0);
    descs[1].dims.d[1] = 8;
    report("run, length", runtime.onShapeChange(descs.data(), 10, descs.data(), 2) != 0);
    descs[1].dims.d[1] = -1;
    descs[0].type = DataType::kINT32;
    report("run, type", runtime.onShapeChange(descs.data(), 10, descs.data(), 2) != 0);
    report("run, inputs", runtime.onShapeChange(descs.data(), 9, descs.data(), 2) != 0);
    gFinder.throws = true;
    expect(runtime.setTactic(9) != 0, "a logger finder that throws");
    gFinder.throws = false;
}

} // namespace

int main()
{
    setLoggerFinder(&gFinder);
    nodeRefusals();
    engineRefusals();
    shapeRefusals();
    tactics();
    running();
    setLoggerFinder(nullptr);
    expect(create({integers("groups", kZERO)}, TensorRTPhase::kBUILD) == nullptr, "a refusal without a logger");
    return gFailures == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
