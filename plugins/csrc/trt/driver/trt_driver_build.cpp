/* The build phase; see trt_driver_protocol.h. */
#include "trt/driver/trt_driver_protocol.h"

#include <set>

namespace mambapose
{
namespace driver
{

using nvinfer1::DataType;
using nvinfer1::DynamicPluginTensorDesc;
using nvinfer1::TensorFormat;
using nvinfer1::TensorRTPhase;

namespace
{

constexpr int32_t kTYPES = static_cast<int32_t>(DataType::kINT64) + 1; // those every release knows
constexpr int32_t kFORMATS = static_cast<int32_t>(TensorFormat::kDHWC) + 1;

int32_t count(size_t size)
{
    return static_cast<int32_t>(size);
}

std::vector<DataType> inputTypes(Subject const& subject)
{
    std::vector<DataType> types;
    for (TensorRange const& input : subject.inputs)
    {
        types.push_back(input.type);
    }
    return types;
}

void checkOutputTypes(Plugin const& plugin, Subject const& subject)
{
    std::vector<DataType> const given = inputTypes(subject);
    int32_t const outputs = MAMBAPOSE_CALL(plugin.build(), getNbOutputs());
    require(outputs == count(subject.outputs.size()),
        text("%zu outputs were wanted, found %d", subject.outputs.size(), outputs));
    auto const unset = static_cast<DataType>(-1);
    std::vector<DataType> found(subject.outputs.size() + 1, unset);
    int32_t const status = MAMBAPOSE_CALL(
        plugin.build(), getOutputDataTypes(found.data(), outputs, given.data(), count(given.size())));
    require(status == 0, text("getOutputDataTypes failed with %d", status));
    require(found.back() == unset, "getOutputDataTypes wrote past its array");
    for (size_t i = 0; i < subject.outputs.size(); ++i)
    {
        require(found[i] == subject.outputs[i],
            text("output %zu: type %d was wanted, found %d", i, static_cast<int>(subject.outputs[i]),
                static_cast<int>(found[i])));
    }
}

//! Sizes that tell dimensions apart, and the corners of the profile.
std::vector<Shapes> concreteShapes(Subject const& subject)
{
    std::vector<Shapes> all(3);
    for (TensorRange const& input : subject.inputs)
    {
        all[0].push_back(input.smallest);
        all[1].push_back(input.typical);
        all[2].push_back(input.largest);
    }
    for (Execution const& execution : subject.executions)
    {
        all.push_back(execution.shapes);
    }
    return all;
}

void checkOutputShapes(Plugin const& plugin, Subject const& subject)
{
    Expressions builder;
    std::vector<nvinfer1::DimsExprs> inputs(subject.inputs.size());
    for (size_t i = 0; i < inputs.size(); ++i)
    {
        Dimensions const declared = subject.inputs[i].declared();
        inputs[i].nbDims = count(declared.size());
        for (size_t axis = 0; axis < declared.size(); ++axis)
        {
            inputs[i].d[axis] = &builder.inputDimension(i, axis, declared[axis]);
        }
    }
    std::vector<nvinfer1::DimsExprs> outputs(subject.outputs.size() + 1);
    for (nvinfer1::DimsExprs& output : outputs)
    {
        output = {-1, {}};
    }
    int32_t const status = MAMBAPOSE_CALL(plugin.build(),
        getOutputShapes(inputs.data(), count(inputs.size()), nullptr, 0, outputs.data(),
            count(subject.outputs.size()), builder));
    require(status == 0, text("getOutputShapes failed with %d", status));
    require(builder.complaint().empty(), builder.complaint());
    require(outputs.back().nbDims == -1, "getOutputShapes wrote past its array");
    for (Shapes const& shapes : concreteShapes(subject))
    {
        Shapes const wanted = subject.outputShapes(shapes);
        for (size_t i = 0; i < wanted.size(); ++i)
        {
            require(outputs[i].nbDims >= 0 && outputs[i].nbDims <= nvinfer1::Dims::MAX_DIMS,
                text("output %zu: rank %d", i, outputs[i].nbDims));
            Dimensions found;
            for (int32_t axis = 0; axis < outputs[i].nbDims; ++axis)
            {
                found.push_back(builder.own(outputs[i].d[axis]).evaluate(shapes));
            }
            require(found == wanted[i],
                text("output %zu: shape %s was wanted, found %s", i, text(wanted[i]).c_str(), text(found).c_str()));
        }
    }
}

//! Asks for every type and format at every place that a supported beginning leads to.
class FormatSearch
{
public:
    FormatSearch(Plugin const& plugin, Subject const& subject)
        : mPlugin(plugin)
        , mSubject(subject)
        , mDescs(describeInputs(subject))
    {
        std::vector<DynamicPluginTensorDesc> const outputs = describeOutputs(subject);
        mDescs.insert(mDescs.end(), outputs.begin(), outputs.end());
    }
    void run()
    {
        extend(0);
        require(mWanted, "the types of the network are not among the supported combinations");
        int32_t const limit = MAMBAPOSE_CALL(mPlugin.build(), getFormatCombinationLimit());
        require(mFound <= limit, text("%d combinations of formats are supported, the limit is %d", mFound, limit));
    }
    size_t queries() const
    {
        return mQueries;
    }

private:
    //! What lies behind the place asked for is invalid; TensorRT promises nothing about it.
    bool ask(size_t position, int garbage)
    {
        std::vector<DynamicPluginTensorDesc> descs = mDescs;
        for (size_t i = position + 1; i < descs.size(); ++i)
        {
            std::memset(static_cast<void*>(&descs[i]), garbage, sizeof descs[i]);
        }
        ++mQueries;
        return MAMBAPOSE_CALL(mPlugin.build(),
            supportsFormatCombination(count(position), descs.data(), count(mSubject.inputs.size()),
                count(mSubject.outputs.size())));
    }
    void extend(size_t position)
    {
        if (position == mDescs.size())
        {
            ++mFound;
            std::vector<DataType> network = inputTypes(mSubject);
            network.insert(network.end(), mSubject.outputs.begin(), mSubject.outputs.end());
            mWanted = mWanted || mTypes == network;
            return;
        }
        DynamicPluginTensorDesc const network = mDescs[position];
        for (int32_t type = 0; type < kTYPES; ++type)
        {
            for (int32_t format = 0; format < kFORMATS; ++format)
            {
                mDescs[position].desc.type = static_cast<DataType>(type);
                mDescs[position].desc.format = static_cast<TensorFormat>(format);
                bool const wanted = format == 0 && mSubject.allows(mTypes, static_cast<DataType>(type));
                bool const found = ask(position, 0);
                require(found == ask(position, 0xcd),
                    text("the answer for tensor %zu depends on the tensors behind it", position));
                require(found == wanted,
                    text("tensor %zu, type %d, format %d: %s was wanted", position, type, format,
                        wanted ? "support" : "refusal"));
                if (found)
                {
                    mTypes.push_back(static_cast<DataType>(type));
                    extend(position + 1);
                    mTypes.pop_back();
                }
            }
        }
        mDescs[position] = network;
    }

    Plugin const& mPlugin;
    Subject const& mSubject;
    std::vector<DynamicPluginTensorDesc> mDescs;
    std::vector<DataType> mTypes;
    int32_t mFound = 0;
    size_t mQueries = 0;
    bool mWanted = false;
};

std::vector<int32_t> validTactics(Plugin const& plugin)
{
    int32_t const wanted = MAMBAPOSE_CALL(plugin.build(), getNbTactics());
    require(wanted >= 0, text("getNbTactics gave %d", wanted));
    constexpr int32_t kUNSET = -77;
    std::vector<int32_t> tactics(static_cast<size_t>(wanted) + 1, kUNSET);
    int32_t const status = MAMBAPOSE_CALL(plugin.build(), getValidTactics(tactics.data(), wanted));
    require(status == 0, text("getValidTactics failed with %d", status));
    require(tactics.back() == kUNSET, "getValidTactics wrote past its array");
    tactics.pop_back();
    std::set<int32_t> const different(tactics.begin(), tactics.end());
    require(different.size() == tactics.size() && different.count(0) == 0 && different.count(kUNSET) == 0,
        "getValidTactics: tactics must differ and not be 0");
    return tactics;
}

void configure(Plugin const& plugin, Subject const& subject)
{
    std::vector<DynamicPluginTensorDesc> const in = describeInputs(subject), out = describeOutputs(subject);
    int32_t const status = MAMBAPOSE_CALL(
        plugin.build(), configurePlugin(in.data(), count(in.size()), out.data(), count(out.size())));
    require(status == 0, text("configurePlugin failed with %d", status));
}

//! For the profile's largest sizes; the size for any smaller problem may not be larger.
size_t workspaceSize(Plugin const& plugin, Subject const& subject)
{
    std::vector<DynamicPluginTensorDesc> const in = describeInputs(subject), out = describeOutputs(subject);
    size_t const largest = MAMBAPOSE_CALL(
        plugin.build(), getWorkspaceSize(in.data(), count(in.size()), out.data(), count(out.size())));
    for (Shapes const& shapes : concreteShapes(subject))
    {
        Subject concrete = subject;
        for (size_t i = 0; i < shapes.size(); ++i)
        {
            concrete.inputs[i] = TensorRange::fixed(subject.inputs[i].type, shapes[i]);
        }
        auto const smallIn = describeInputs(concrete), smallOut = describeOutputs(concrete);
        size_t const size = MAMBAPOSE_CALL(plugin.build(),
            getWorkspaceSize(smallIn.data(), count(smallIn.size()), smallOut.data(), count(smallOut.size())));
        require(size <= largest,
            text("the workspace for %s is %zu bytes, that for the largest sizes only %zu", text(shapes[0]).c_str(),
                size, largest));
    }
    return largest;
}

//! TensorRT times each tactic on a plugin attached to a context, at the typical sizes.
void time(Plugin const& plugin, Subject const& subject, Built const& built)
{
    Execution typical;
    typical.name = "timing";
    for (TensorRange const& input : subject.inputs)
    {
        typical.shapes.push_back(input.typical);
        size_t elements = 1;
        for (int64_t const size : input.typical)
        {
            elements *= static_cast<size_t>(size);
        }
        typical.inputs.emplace_back(elements * sizeOf(input.type), static_cast<unsigned char>(0));
    }
    for (int32_t const tactic : built.tactics.empty() ? std::vector<int32_t>{0} : built.tactics)
    {
        Context context(plugin.attach(), subject, built, tactic);
        context.prepare(typical);
        context.enqueue();
        context.enqueue();
    }
}

} // namespace

Built buildPhase(Library const& library, Subject const& subject)
{
    auto& creator = library.creator(subject.plugin, subject.version);
    auto const* names = MAMBAPOSE_CALL(creator, getFieldNames());
    require(names != nullptr && names->nbFields >= 0, "getFieldNames gave nothing");
    for (int32_t i = 0; i < names->nbFields; ++i)
    {
        require(names->fields[i].name != nullptr, text("getFieldNames: field %d has no name", i));
    }
    // addPluginV3 takes a clone, and the parser deletes what it created.
    auto const plugin = [&]
    {
        Plugin const made(create(library, subject, subject.fields, TensorRTPhase::kBUILD), TensorRTPhase::kBUILD,
            library.log(), "createPlugin in the build phase");
        return made.clone();
    }();
    require(subject.plugin == plugin.core().getPluginName() && subject.version == plugin.core().getPluginVersion()
            && subject.nameSpace == plugin.core().getPluginNamespace(),
        "the plugin has another name, version or namespace than its creator");

    Built built;
    checkOutputTypes(plugin, subject);
    checkOutputShapes(plugin, subject);
    FormatSearch search(plugin, subject);
    search.run();
    built.formatQueries = search.queries();
    configure(plugin, subject);
    configure(plugin, subject);
    built.tactics = validTactics(plugin);
    require(built.tactics.empty() == subject.tactics.empty(), "tactics were wanted where none are, or the reverse");
    for (int32_t const tactic : built.tactics)
    {
        bool const known = std::count(subject.tactics.begin(), subject.tactics.end(), tactic) == 1;
        require(known, text("tactic %d is offered, which is not known", tactic));
    }
    built.workspaceBytes = workspaceSize(plugin, subject);

    char const* const id = MAMBAPOSE_CALL(plugin.build(), getTimingCacheID());
    require((id != nullptr) == subject.hasTimingCache, "getTimingCacheID: null where text was wanted, or the reverse");
    built.timingCacheId = id == nullptr ? "" : id;
    built.metadata = plugin.metadata();
    require(built.metadata.empty() != subject.hasMetadata, "getMetadataString: empty where a text was wanted");
    Plugin const copy = plugin.clone();
    char const* const copiedId = MAMBAPOSE_CALL(copy.build(), getTimingCacheID());
    require(built.timingCacheId == (copiedId == nullptr ? "" : copiedId), "a clone has another timing cache id");
    require(copy.metadata() == built.metadata, "a clone has another metadata string");

    time(plugin, subject, built);
    built.fields = plugin.serialise();
    requireAlike(subject, built.fields, plugin.serialise(), "getFieldsToSerialize changed its answer");
    requireAlike(subject, built.fields, copy.serialise(), "a clone serialises other fields than its origin");
    return built;
}

} // namespace driver
} // namespace mambapose
