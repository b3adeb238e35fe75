/* The runtime phase; see trt_driver_protocol.h. */
#include "trt/driver/trt_driver_protocol.h"

namespace mambapose
{
namespace driver
{

using nvinfer1::DataType;
using nvinfer1::DynamicPluginTensorDesc;
using nvinfer1::PluginTensorDesc;
using nvinfer1::TensorRTPhase;

namespace
{

size_t byteCount(PluginTensorDesc const& desc)
{
    size_t elements = 1;
    for (int32_t axis = 0; axis < desc.dims.nbDims; ++axis)
    {
        elements *= static_cast<size_t>(desc.dims.d[axis]);
    }
    return elements * sizeOf(desc.type);
}

DynamicPluginTensorDesc describeRange(TensorRange const& range)
{
    return {describe(range.type, range.declared()), dimsFrom(range.smallest), dimsFrom(range.largest),
        dimsFrom(range.typical)};
}

} // namespace

size_t sizeOf(DataType type)
{
    switch (type)
    {
    case DataType::kINT64: return 8;
    case DataType::kFLOAT:
    case DataType::kINT32: return 4;
    case DataType::kHALF:
    case DataType::kBF16: return 2;
    case DataType::kINT8:
    case DataType::kBOOL:
    case DataType::kUINT8: return 1;
    default: throw Complaint(text("type %d has no buffers in the driver", static_cast<int>(type)));
    }
}

Dimensions TensorRange::declared() const
{
    Dimensions dimensions = smallest;
    for (size_t axis = 0; axis < dimensions.size(); ++axis)
    {
        dimensions[axis] = smallest[axis] == largest[axis] ? smallest[axis] : -1;
    }
    return dimensions;
}

PluginTensorDesc describe(DataType type, Dimensions const& dimensions)
{
    return {dimsFrom(dimensions), type, nvinfer1::TensorFormat::kLINEAR, -1.0F};
}

std::vector<DynamicPluginTensorDesc> describeInputs(Subject const& subject)
{
    std::vector<DynamicPluginTensorDesc> descs;
    for (TensorRange const& input : subject.inputs)
    {
        descs.push_back(describeRange(input));
    }
    return descs;
}

std::vector<DynamicPluginTensorDesc> describeOutputs(Subject const& subject)
{
    Shapes smallest, typical, largest;
    for (TensorRange const& input : subject.inputs)
    {
        smallest.push_back(input.smallest);
        typical.push_back(input.typical);
        largest.push_back(input.largest);
    }
    smallest = subject.outputShapes(smallest);
    typical = subject.outputShapes(typical);
    largest = subject.outputShapes(largest);
    std::vector<DynamicPluginTensorDesc> descs;
    for (size_t i = 0; i < subject.outputs.size(); ++i)
    {
        descs.push_back(describeRange({subject.outputs[i], smallest[i], typical[i], largest[i]}));
    }
    return descs;
}

Context::Context(Plugin plugin, Subject const& subject, Built const& built, std::optional<int32_t> tactic)
    : mPlugin(std::move(plugin))
    , mSubject(subject)
    , mWorkspace(built.workspaceBytes)
{
    if (tactic.has_value())
    {
        int32_t const status = MAMBAPOSE_CALL(mPlugin.runtime(), setTactic(*tactic));
        require(status == 0, text("setTactic(%d) failed with %d", *tactic, status));
    }
}

void Context::prepare(Execution const& execution)
{
    mName = execution.name;
    mInputDescs.clear();
    mOutputDescs.clear();
    mInputs.clear();
    mOutputs.clear();
    Shapes const outputShapes = mSubject.outputShapes(execution.shapes);
    for (size_t i = 0; i < mSubject.inputs.size(); ++i)
    {
        mInputDescs.push_back(describe(mSubject.inputs[i].type, execution.shapes[i]));
        if (execution.inputs[i].size() != byteCount(mInputDescs.back()))
        {
            throw std::logic_error(text("%s: input %zu has the wrong size", mName.c_str(), i));
        }
        mInputs.emplace_back(execution.inputs[i]);
    }
    for (size_t i = 0; i < mSubject.outputs.size(); ++i)
    {
        mOutputDescs.push_back(describe(mSubject.outputs[i], outputShapes[i]));
        mOutputs.emplace_back(byteCount(mOutputDescs.back()));
    }
    mInputBytes = execution.inputs;
    int32_t const status = MAMBAPOSE_CALL(mPlugin.runtime(),
        onShapeChange(mInputDescs.data(), static_cast<int32_t>(mInputDescs.size()), mOutputDescs.data(),
            static_cast<int32_t>(mOutputDescs.size())));
    require(status == 0, text("onShapeChange failed with %d", status));
}

int32_t Context::launch()
{
    std::vector<void const*> inputs;
    std::vector<void*> outputs;
    for (Memory const& memory : mInputs)
    {
        inputs.push_back(memory.data());
    }
    for (Memory const& memory : mOutputs)
    {
        outputs.push_back(memory.data());
    }
    void* const workspace = mWorkspace.size() > 0 ? mWorkspace.data() : nullptr;
    // The arrays of descriptions and addresses are this call's, not those of onShapeChange.
    std::vector<PluginTensorDesc> const in = mInputDescs, out = mOutputDescs;
    return MAMBAPOSE_CALL(mPlugin.runtime(),
        enqueue(in.data(), out.data(), inputs.data(), outputs.data(), workspace, mStream.get()));
}

std::vector<Bytes> Context::enqueue()
{
    auto const once = [&]
    {
        int32_t const status = launch();
        require(status == 0, text("enqueue failed with %d", status));
    };
    mWorkspace.poison();
    for (Memory& memory : mOutputs)
    {
        memory.poison();
    }
#ifdef WITH_CUDA
    mStream.replay(2, once);
    Bytes const replayed = mOutputs[0].read();
#endif
    once();
    mStream.wait();
    std::vector<Bytes> results;
    for (size_t i = 0; i < mOutputs.size(); ++i)
    {
        mOutputs[i].requireGuards(text("output %zu", i));
        results.push_back(mOutputs[i].read());
    }
#ifdef WITH_CUDA
    require(replayed == results[0], "a captured graph gives other bits than enqueue");
#endif
    mWorkspace.requireGuards("the workspace");
    for (size_t i = 0; i < mInputs.size(); ++i)
    {
        mInputs[i].requireGuards(text("input %zu", i));
        require(mInputs[i].read() == mInputBytes[i], text("enqueue wrote into input %zu", i));
    }
    return results;
}

bool Context::usedWorkspace() const
{
    return !mWorkspace.isPoison();
}

Plugin load(Library const& library, Subject const& subject, Built const& built)
{
    return Plugin(create(library, subject, built.fields, TensorRTPhase::kRUNTIME), TensorRTPhase::kRUNTIME,
        library.log(), "createPlugin in the runtime phase");
}

namespace
{

//! A context and the tactic that it must launch.
struct Lane
{
    Context context;
    int32_t tactic;
};

void requireTactic(Lane const& lane, Subject const& subject, Execution const& execution)
{
    if (subject.usesWorkspace)
    {
        bool const wanted = subject.usesWorkspace(lane.tactic, execution);
        require(lane.context.usedWorkspace() == wanted,
            text("tactic %d: the workspace was %s written", lane.tactic, wanted ? "not" : "wrongly"));
    }
}

//! Two contexts, used in turn with different executions: neither may see the other's shape or tactic.
void runPair(Subject const& subject, Lane& one, Lane& other, Execution const& first, Execution const& second)
{
    one.context.prepare(first);
    other.context.prepare(second);
    std::vector<Bytes> const results = one.context.enqueue();
    first.check(results);
    requireTactic(one, subject, first);
    second.check(other.context.enqueue());
    requireTactic(other, subject, second);
    require(one.context.enqueue() == results, "the same enqueue gave other bits the second time");
}

void runTactic(Library const& library, Subject const& subject, Built const& built, size_t at)
{
    std::vector<int32_t> const tactics = built.tactics.empty() ? std::vector<int32_t>{0} : built.tactics;
    int32_t const tactic = tactics[at], next = tactics[(at + 1) % tactics.size()];
    // TensorRT does not say whether it sets the tactic before or after it attaches: both must do.
    std::optional<Lane> one, other;
    {
        Plugin const engine = load(library, subject, built);
        requireAlike(subject, built.fields, engine.serialise(), "a loaded plugin serialises other fields");
        Plugin const copy = engine.clone();
        int32_t const status = MAMBAPOSE_CALL(copy.runtime(), setTactic(tactic));
        require(status == 0, text("setTactic(%d) failed with %d", tactic, status));
        one.emplace(Lane{Context(copy.attach(), subject, built, std::nullopt), tactic});
        other.emplace(Lane{Context(copy.attach(), subject, built, next), next});
    } // the contexts' plugins stand on their own
    for (size_t i = 0; i < subject.executions.size(); ++i)
    {
        Execution const &first = subject.executions[i],
                        &second = subject.executions[(i + 1) % subject.executions.size()];
        try
        {
            runPair(subject, *one, *other, first, second);
        }
        catch (Complaint const& complaint)
        {
            throw Complaint(text("tactics %d and %d, %s and %s: %s", tactic, next, first.name.c_str(),
                second.name.c_str(), complaint.what()));
        }
    }
}

} // namespace

Built drive(Library const& library, Subject const& subject)
{
    library.log().take();
    Built built;
    try
    {
        built = buildPhase(library, subject);
        for (size_t at = 0; at < std::max<size_t>(built.tactics.size(), 1); ++at)
        {
            runTactic(library, subject, built, at);
        }
    }
    catch (Complaint const& complaint)
    {
        throw Complaint(std::string(complaint.what()) + "; " + library.log().errors());
    }
    for (LogLine const& line : library.log().take())
    {
        require(line.severity > nvinfer1::ILogger::Severity::kERROR, "an error was logged: " + line.text);
    }
    return built;
}

} // namespace driver
} // namespace mambapose
