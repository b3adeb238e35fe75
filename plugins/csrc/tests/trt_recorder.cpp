/* A plugin library in front of another: hands each call on and writes what createPlugin was given
 * and what came of it to the file MAMBAPOSE_RECORD. MAMBAPOSE_RECORDED names the library behind.
 * For looking at what NVIDIA's parser hands over. */
#include "NvInferRuntime.h"

#include <cstdio>
#include <cstdlib>
#include <dlfcn.h>
#include <vector>

using namespace nvinfer1;

namespace
{

using GetCreators = IPluginCreatorInterface* const* (*) (int32_t&);
using SetLoggerFinder = void (*)(ILoggerFinder*);

//! The library behind; without it there is nothing to record, so the process ends.
template <typename Function>
Function behind(char const* name)
{
    static void* const library = dlopen(std::getenv("MAMBAPOSE_RECORDED"), RTLD_NOW | RTLD_LOCAL);
    void* const found = library == nullptr ? nullptr : dlsym(library, name);
    if (found == nullptr)
    {
        std::fprintf(stderr, "a plugin library with %s was wanted in MAMBAPOSE_RECORDED: %s\n", name, dlerror());
        std::exit(EXIT_FAILURE);
    }
    return reinterpret_cast<Function>(found);
}

void writeField(std::FILE* file, PluginField const& field)
{
    std::fprintf(file, "field\t%s\t%d\t%d\t", field.name, static_cast<int>(field.type), field.length);
    for (int32_t i = 0; field.data != nullptr && i < field.length; ++i)
    {
        if (field.type == PluginFieldType::kINT32)
        {
            std::fprintf(file, "%d ", static_cast<int32_t const*>(field.data)[i]);
        }
        else if (field.type == PluginFieldType::kCHAR)
        {
            std::fprintf(file, "%02x ", static_cast<unsigned char const*>(field.data)[i]);
        }
    }
    std::fprintf(file, "\n");
}

class Recorder final : public IPluginCreatorV3One
{
public:
    explicit Recorder(IPluginCreatorV3One& inner)
        : mInner(inner)
    {
    }
    IPluginV3* createPlugin(
        AsciiChar const* name, PluginFieldCollection const* fc, TensorRTPhase phase) noexcept override
    {
        std::FILE* const file = std::fopen(std::getenv("MAMBAPOSE_RECORD"), "a");
        if (file == nullptr)
        {
            std::exit(EXIT_FAILURE);
        }
        std::fprintf(file, "node\t%s\t%d\n", name, static_cast<int>(phase));
        for (int32_t i = 0; i < fc->nbFields; ++i)
        {
            writeField(file, fc->fields[i]);
        }
        IPluginV3* const made = mInner.createPlugin(name, fc, phase);
        auto* const build = made == nullptr
            ? nullptr
            : static_cast<IPluginV3OneBuild*>(made->getCapabilityInterface(PluginCapabilityType::kBUILD));
        std::fprintf(file, "made\t%s\n", build == nullptr ? "" : build->getMetadataString());
        std::fclose(file); // TensorRT for RTX ends the process soon
        return made;
    }
    PluginFieldCollection const* getFieldNames() noexcept override
    {
        return mInner.getFieldNames();
    }
    AsciiChar const* getPluginName() const noexcept override
    {
        return mInner.getPluginName();
    }
    AsciiChar const* getPluginVersion() const noexcept override
    {
        return mInner.getPluginVersion();
    }
    AsciiChar const* getPluginNamespace() const noexcept override
    {
        return mInner.getPluginNamespace();
    }

private:
    IPluginCreatorV3One& mInner;
};

} // namespace

extern "C" __attribute__((visibility("default"))) void setLoggerFinder(ILoggerFinder* finder)
{
    behind<SetLoggerFinder>("setLoggerFinder")(finder);
}

extern "C" __attribute__((visibility("default"))) IPluginCreatorInterface* const* getCreators(int32_t& count)
{
    int32_t inner = 0;
    IPluginCreatorInterface* const* found = behind<GetCreators>("getCreators")(inner);
    static std::vector<Recorder> recorders;
    static std::vector<IPluginCreatorInterface*> creators;
    for (int32_t i = static_cast<int32_t>(recorders.size()); i < inner; ++i)
    {
        recorders.reserve(static_cast<size_t>(inner));
        recorders.emplace_back(static_cast<IPluginCreatorV3One&>(*found[i]));
        creators.push_back(&recorders.back());
    }
    count = static_cast<int32_t>(creators.size());
    return creators.data();
}
