/* Drives any TensorRT plugin of the V3 generation through the calls that TensorRT makes, in its
 * order: library, creator, build phase, serialised fields, runtime phase, contexts, execution.
 * Knows nothing of the selective scan; a Subject says what is expected of the node at hand. */
#ifndef MAMBAPOSE_TRT_DRIVER_PROTOCOL_H
#define MAMBAPOSE_TRT_DRIVER_PROTOCOL_H

#include "trt/driver/trt_driver_expr.h"
#include "trt/driver/trt_driver_memory.h"

#include <functional>
#include <optional>

namespace mambapose
{
namespace driver
{

//! One attribute as it travels: bytes of exactly `length` elements.
struct Field
{
    std::string name;
    nvinfer1::PluginFieldType type{};
    int32_t length = 0;
    Bytes bytes;

    static Field ints(std::string name, std::vector<int32_t> const& values);
    static Field floats(std::string name, std::vector<float> const& values);
    //! With the terminator counted, as NVIDIA's parser does it (seen in tensorrt-rtx 1.7.1), or without one.
    static Field chars(std::string name, std::string const& value, bool countsTerminator);
};
using Fields = std::vector<Field>;

//! Fields in memory of their own, which is overwritten and freed when this goes: TensorRT's own
//! copies do not outlive createPlugin either.
class LentFields
{
public:
    explicit LentFields(Fields const& fields);
    ~LentFields();
    nvinfer1::PluginFieldCollection const* get() const
    {
        return &mCollection;
    }

private:
    std::vector<std::vector<char>> mMemory;
    std::vector<nvinfer1::PluginField> mFields;
    nvinfer1::PluginFieldCollection mCollection;
};

//! A tensor of the network: -1 in `declared` where the profile ranges from smallest to largest.
struct TensorRange
{
    nvinfer1::DataType type{};
    Dimensions smallest, typical, largest;

    static TensorRange fixed(nvinfer1::DataType type, Dimensions const& dimensions)
    {
        return {type, dimensions, dimensions, dimensions};
    }
    Dimensions declared() const;
};

//! One execution: the inputs' sizes and bytes, and what to say about the outputs' bytes.
struct Execution
{
    std::string name;
    Shapes shapes;
    std::vector<Bytes> inputs;
    std::function<void(std::vector<Bytes> const& outputs)> check;
};

//! What is to be driven, and what is known of it beforehand.
struct Subject
{
    std::string plugin, version, nameSpace;
    Fields fields;
    std::vector<TensorRange> inputs;
    std::vector<nvinfer1::DataType> outputs;
    std::function<Shapes(Shapes const& inputs)> outputShapes;
    //! Whether tensor `position` may have this type (always in linear format), given the types before it.
    std::function<bool(std::vector<nvinfer1::DataType> const& before, nvinfer1::DataType type)> allows;
    std::vector<int32_t> tactics; // those it may offer
    std::vector<Execution> executions;
    //! Where it is known: whether an execution writes into the workspace, which shows the tactic in use.
    std::function<bool(int32_t tactic, Execution const& execution)> usesWorkspace;
    bool hasTimingCache = true, hasMetadata = true;
    //! False for NVIDIA's sampleNonZeroPlugin, whose field of four bytes points to a bool.
    bool hasExactFields = true;
};

//! A loaded plugin library with the driver's logger in it.
class Library
{
public:
    Library(std::string const& path, Log& log);
    ~Library();
    Library(Library const&) = delete;
    nvinfer1::IPluginCreatorV3One& creator(std::string const& name, std::string const& version) const;
    Log& log() const
    {
        return mLog;
    }

private:
    void* mHandle;
    Log& mLog;
    Finder mFinder;
    std::vector<nvinfer1::IPluginCreatorInterface*> mCreators;
};

//! A plugin object with the interfaces of its phase, checked for being there.
class Plugin
{
public:
    Plugin(nvinfer1::IPluginV3* object, nvinfer1::TensorRTPhase phase, Log& log, char const* origin);
    Plugin clone() const;
    Plugin attach() const;

    nvinfer1::IPluginV3OneCore& core() const
    {
        return *mCore;
    }
    nvinfer1::IPluginV3OneBuild& build() const
    {
        require(mBuild != nullptr, "a plugin of the runtime phase was asked for its build interface");
        return *mBuild;
    }
    nvinfer1::IPluginV3OneRuntime& runtime() const
    {
        return *mRuntime;
    }
    Fields serialise() const;
    std::string metadata() const;

private:
    std::unique_ptr<Resources> mResources; // goes after the object that may use it
    std::unique_ptr<nvinfer1::IPluginV3> mObject;
    nvinfer1::TensorRTPhase mPhase;
    Log* mLog;
    nvinfer1::IPluginV3OneCore* mCore = nullptr;
    nvinfer1::IPluginV3OneBuild* mBuild = nullptr;
    nvinfer1::IPluginV3OneRuntime* mRuntime = nullptr;
};

//! Complains when two objects that should be alike serialise other fields.
void requireAlike(Subject const& subject, Fields const& wanted, Fields const& found, char const* complaint);

//! createPlugin with fields that are gone when it returns. Null where it refused.
nvinfer1::IPluginV3* create(Library const& library, Subject const& subject, Fields const& fields,
    nvinfer1::TensorRTPhase phase);

//! What the build phase leaves behind: an engine holds no more of a plugin than this.
struct Built
{
    Fields fields;
    std::vector<int32_t> tactics;
    size_t workspaceBytes = 0;
    std::string metadata, timingCacheId;
    size_t formatQueries = 0;
};
Built buildPhase(Library const& library, Subject const& subject);

//! A plugin attached to a context, with the buffers of one execution.
class Context
{
public:
    //! Without a tactic the one stays that the plugin had where it was attached.
    Context(Plugin plugin, Subject const& subject, Built const& built, std::optional<int32_t> tactic);
    //! onShapeChange with buffers for the execution; `enqueue` may then be called several times.
    void prepare(Execution const& execution);
    std::vector<Bytes> enqueue();
    //! Whether the last enqueue wrote into the workspace.
    bool usedWorkspace() const;
    Plugin const& plugin() const
    {
        return mPlugin;
    }

private:
    int32_t launch();

    Plugin mPlugin;
    Subject const& mSubject;
    std::string mName;
    Stream mStream;
    Memory mWorkspace;
    std::vector<nvinfer1::PluginTensorDesc> mInputDescs, mOutputDescs;
    std::vector<Bytes> mInputBytes;
    std::vector<Memory> mInputs, mOutputs;
};

//! createPlugin in the runtime phase from the serialised fields, in any order.
Plugin load(Library const& library, Subject const& subject, Built const& built);

//! The whole way for one subject, every tactic and execution; throws a Complaint.
Built drive(Library const& library, Subject const& subject);

size_t sizeOf(nvinfer1::DataType type);
nvinfer1::PluginTensorDesc describe(nvinfer1::DataType type, Dimensions const& dimensions);
std::vector<nvinfer1::DynamicPluginTensorDesc> describeInputs(Subject const& subject);
std::vector<nvinfer1::DynamicPluginTensorDesc> describeOutputs(Subject const& subject);

//! Prints the complaint of std::terminate, so that an exception that leaves a plugin is named.
void installHandlers();

} // namespace driver
} // namespace mambapose
#endif
