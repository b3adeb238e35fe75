/* Fields, libraries and plugin objects; see trt_driver_protocol.h. */
#include "trt/driver/trt_driver_protocol.h"

#include <csignal>
#include <dlfcn.h>
#include <exception>
#include <set>
#include <unistd.h>

namespace mambapose
{
namespace driver
{

using nvinfer1::PluginCapabilityType;
using nvinfer1::PluginFieldType;
using nvinfer1::TensorRTPhase;

namespace
{

constexpr size_t kNAME_LIMIT = 1024; // with the terminator

size_t elementSize(PluginFieldType type)
{
    switch (type)
    {
    case PluginFieldType::kFLOAT64:
    case PluginFieldType::kINT64: return 8;
    case PluginFieldType::kFLOAT32:
    case PluginFieldType::kINT32: return 4;
    case PluginFieldType::kFLOAT16:
    case PluginFieldType::kBF16:
    case PluginFieldType::kINT16: return 2;
    case PluginFieldType::kINT8:
    case PluginFieldType::kCHAR:
    case PluginFieldType::kUNKNOWN: return 1; // kUNKNOWN: a length in bytes
    case PluginFieldType::kDIMS: return sizeof(nvinfer1::Dims);
    default: throw Complaint(text("a field has type %d, which the driver does not carry", static_cast<int>(type)));
    }
}

template <typename T>
Field makeField(std::string name, PluginFieldType type, T const* values, size_t count)
{
    auto const* bytes = reinterpret_cast<unsigned char const*>(values);
    return {std::move(name), type, static_cast<int32_t>(count), Bytes(bytes, bytes + count * sizeof(T))};
}

void requireName(char const* found, char const* what)
{
    require(found != nullptr, text("%s is null", what));
    require(strnlen(found, kNAME_LIMIT) < kNAME_LIMIT, text("%s is longer than %zu bytes", what, kNAME_LIMIT));
}

void requireKind(nvinfer1::IVersionedInterface const& object, char const* kind, int32_t newest)
{
    nvinfer1::InterfaceInfo const info = MAMBAPOSE_CALL(object, getInterfaceInfo());
    require(std::string(info.kind) == kind && info.major >= 1 && info.major <= newest,
        text("interface %s was wanted, found %s %d.%d", kind, info.kind, info.major, info.minor));
}

[[noreturn]] void onTerminate()
{
    std::printf("complaint: an exception left the plugin in %s\n", runningCall());
    std::fflush(stdout);
    _exit(3);
}

void onSignal(int number)
{
    char line[256];
    int const length = std::snprintf(
        line, sizeof line, "complaint: signal %d while the plugin was in %s\n", number, runningCall());
    ssize_t const written = write(STDOUT_FILENO, line, static_cast<size_t>(length));
    _exit(written > 0 ? 4 : 5);
}

} // namespace

void installHandlers()
{
    std::set_terminate(onTerminate);
#if !defined(__SANITIZE_ADDRESS__)
    for (int const number : {SIGSEGV, SIGBUS, SIGFPE, SIGILL})
    {
        std::signal(number, onSignal);
    }
#else
    (void) onSignal;
#endif
}

Field Field::ints(std::string name, std::vector<int32_t> const& values)
{
    return makeField(std::move(name), PluginFieldType::kINT32, values.data(), values.size());
}

Field Field::floats(std::string name, std::vector<float> const& values)
{
    return makeField(std::move(name), PluginFieldType::kFLOAT32, values.data(), values.size());
}

Field Field::chars(std::string name, std::string const& value, bool countsTerminator)
{
    size_t const length = value.size() + (countsTerminator ? 1 : 0);
    return makeField(std::move(name), PluginFieldType::kCHAR, value.c_str(), length);
}

void requireAlike(Subject const& subject, Fields const& wanted, Fields const& found, char const* complaint)
{
    require(wanted.size() == found.size(), text("%s: %zu and %zu fields", complaint, wanted.size(), found.size()));
    for (size_t i = 0; i < wanted.size(); ++i)
    {
        Field const &a = wanted[i], &b = found[i];
        bool const isAlike = a.name == b.name && a.type == b.type && a.length == b.length;
        bool const isSame = a.bytes == b.bytes || !subject.hasExactFields;
        require(isAlike && isSame, text("%s: field %s", complaint, a.name.c_str()));
    }
}

LentFields::LentFields(Fields const& fields)
{
    for (Field const& field : fields)
    {
        mMemory.emplace_back(field.name.c_str(), field.name.c_str() + field.name.size() + 1);
        // A string goes on behind its length, so that a reader that looks for a terminator is caught.
        std::vector<char> value(field.bytes.begin(), field.bytes.end());
#if !defined(__SANITIZE_ADDRESS__)
        value.insert(value.end(), {'#', '#', '#', '#', '#', '#', '#', '\0'});
#endif
        mMemory.push_back(std::move(value));
        mFields.emplace_back(
            mMemory[mMemory.size() - 2].data(), mMemory.back().data(), field.type, field.length);
    }
    mCollection.nbFields = static_cast<int32_t>(mFields.size());
    mCollection.fields = mFields.data();
}

LentFields::~LentFields()
{
    for (std::vector<char>& memory : mMemory)
    {
        std::fill(memory.begin(), memory.end(), '#');
    }
    std::fill(mFields.begin(), mFields.end(), nvinfer1::PluginField());
}

Library::Library(std::string const& path, Log& log)
    : mHandle(dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL))
    , mLog(log)
    , mFinder(log)
{
    if (mHandle == nullptr)
    {
        throw std::runtime_error(text("a plugin library was wanted, found %s", dlerror()));
    }
    using SetLoggerFinder = void (*)(nvinfer1::ILoggerFinder*);
    using GetCreators = nvinfer1::IPluginCreatorInterface* const* (*) (int32_t&);
    auto const setLoggerFinder = reinterpret_cast<SetLoggerFinder>(dlsym(mHandle, "setLoggerFinder"));
    auto const getCreators = reinterpret_cast<GetCreators>(dlsym(mHandle, "getCreators"));
    require(setLoggerFinder != nullptr, "the library exports no setLoggerFinder");
    require(getCreators != nullptr, "the library exports no getCreators");
    runningCall() = "setLoggerFinder";
    setLoggerFinder(&mFinder);
    int32_t count = -1;
    runningCall() = "getCreators";
    nvinfer1::IPluginCreatorInterface* const* creators = getCreators(count);
    require(creators != nullptr && count > 0, text("getCreators gave %d creators", count));
    mCreators.assign(creators, creators + count);
    int32_t again = -1;
    require(getCreators(again) == creators && again == count, "getCreators gave other creators the second time");
}

Library::~Library()
{
    dlclose(mHandle);
}

nvinfer1::IPluginCreatorV3One& Library::creator(std::string const& name, std::string const& version) const
{
    for (nvinfer1::IPluginCreatorInterface* each : mCreators)
    {
        require(each != nullptr, "getCreators gave a null creator");
        requireKind(*each, "PLUGIN CREATOR_V3ONE", 1);
        auto& creator = static_cast<nvinfer1::IPluginCreatorV3One&>(*each);
        requireName(MAMBAPOSE_CALL(creator, getPluginName()), "the creator's plugin name");
        requireName(MAMBAPOSE_CALL(creator, getPluginVersion()), "the creator's plugin version");
        requireName(MAMBAPOSE_CALL(creator, getPluginNamespace()), "the creator's namespace");
        if (name == creator.getPluginName() && version == creator.getPluginVersion())
        {
            return creator;
        }
    }
    throw Complaint(text("no creator of %s version %s in the library", name.c_str(), version.c_str()));
}

nvinfer1::IPluginV3* create(
    Library const& library, Subject const& subject, Fields const& fields, TensorRTPhase phase)
{
    LentFields const lent(fields);
    auto& creator = library.creator(subject.plugin, subject.version);
    return MAMBAPOSE_CALL(creator, createPlugin(subject.plugin.c_str(), lent.get(), phase));
}

Plugin::Plugin(nvinfer1::IPluginV3* object, TensorRTPhase phase, Log& log, char const* origin)
    : mObject(object)
    , mPhase(phase)
    , mLog(&log)
{
    require(object != nullptr, text("%s gave no plugin; %s", origin, log.errors().c_str()));
    requireKind(*object, "PLUGIN", 1);
    auto* core = MAMBAPOSE_CALL(*object, getCapabilityInterface(PluginCapabilityType::kCORE));
    auto* runtime = MAMBAPOSE_CALL(*object, getCapabilityInterface(PluginCapabilityType::kRUNTIME));
    require(core != nullptr && runtime != nullptr, text("%s: a core or runtime interface is missing", origin));
    requireKind(*core, "PLUGIN_V3ONE_CORE", 1);
    requireKind(*runtime, "PLUGIN_V3ONE_RUNTIME", 1);
    mCore = static_cast<nvinfer1::IPluginV3OneCore*>(core);
    mRuntime = static_cast<nvinfer1::IPluginV3OneRuntime*>(runtime);
    if (phase == TensorRTPhase::kBUILD)
    {
        auto* build = MAMBAPOSE_CALL(*object, getCapabilityInterface(PluginCapabilityType::kBUILD));
        require(build != nullptr, text("%s: the build interface is missing", origin));
        requireKind(*build, "PLUGIN_V3ONE_BUILD", 2);
        mBuild = static_cast<nvinfer1::IPluginV3OneBuild*>(build);
    }
    requireName(MAMBAPOSE_CALL(*mCore, getPluginName()), "the plugin's name");
    requireName(MAMBAPOSE_CALL(*mCore, getPluginVersion()), "the plugin's version");
    requireName(MAMBAPOSE_CALL(*mCore, getPluginNamespace()), "the plugin's namespace");
}

Plugin Plugin::clone() const
{
    nvinfer1::IPluginV3* const made = MAMBAPOSE_CALL(*mObject, clone());
    require(made != mObject.get(), "clone gave the object itself");
    return Plugin(made, mPhase, *mLog, "clone");
}

Plugin Plugin::attach() const
{
    auto resources = std::make_unique<Resources>();
    nvinfer1::IPluginV3* const made = MAMBAPOSE_CALL(*mRuntime, attachToContext(resources.get()));
    require(made != mObject.get(), "attachToContext gave the object itself");
    Plugin attached(made, mPhase, *mLog, "attachToContext");
    attached.mResources = std::move(resources);
    return attached;
}

Fields Plugin::serialise() const
{
    nvinfer1::PluginFieldCollection const* found = MAMBAPOSE_CALL(*mRuntime, getFieldsToSerialize());
    require(found != nullptr, "getFieldsToSerialize gave nothing");
    require(found->nbFields == 0 || (found->nbFields > 0 && found->fields != nullptr),
        text("getFieldsToSerialize gave %d fields", found->nbFields));
    Fields fields;
    std::set<std::string> names;
    for (int32_t i = 0; i < found->nbFields; ++i)
    {
        nvinfer1::PluginField const& field = found->fields[i];
        requireName(field.name, "the name of a serialised field");
        require(names.insert(field.name).second, text("field %s is serialised twice", field.name));
        require(field.length >= 0 && (field.length == 0 || field.data != nullptr),
            text("field %s: length %d, data %p", field.name, field.length, field.data));
        auto const* bytes = static_cast<unsigned char const*>(field.data);
        size_t const size = elementSize(field.type) * static_cast<size_t>(field.length);
        fields.push_back({field.name, field.type, field.length, Bytes(bytes, bytes + size)});
    }
    return fields;
}

std::string Plugin::metadata() const
{
    char const* found = MAMBAPOSE_CALL(build(), getMetadataString());
    return found == nullptr ? "" : found;
}

} // namespace driver
} // namespace mambapose
