/* What TensorRT lends a plugin: a logger and its finder, the context's resources. And what the
 * driver needs to say where a plugin failed: complaints and the name of the call under way. */
#ifndef MAMBAPOSE_TRT_DRIVER_HOST_H
#define MAMBAPOSE_TRT_DRIVER_HOST_H

#include "NvInferRuntime.h"

#include <cstdarg>
#include <cstdio>
#include <mutex>
#include <stdexcept>
#include <string>
#include <vector>

namespace mambapose
{
namespace driver
{

//! The plugin broke the protocol, or its results are wrong.
class Complaint : public std::runtime_error
{
public:
    using std::runtime_error::runtime_error;
};

#if defined(__GNUC__)
__attribute__((format(printf, 1, 2)))
#endif
inline std::string text(char const* format, ...)
{
    char line[512];
    va_list arguments;
    va_start(arguments, format);
    std::vsnprintf(line, sizeof line, format, arguments);
    va_end(arguments);
    return line;
}

inline void require(bool holds, std::string const& complaint)
{
    if (!holds)
    {
        throw Complaint(complaint);
    }
}

//! The plugin's function that is running, for handlers that cannot be told otherwise.
inline char const*& runningCall()
{
    static char const* call = "no function of the plugin";
    return call;
}

//! Calls a function of the plugin by name: CALL(plugin, clone()).
#define MAMBAPOSE_CALL(object, function) \
    (::mambapose::driver::runningCall() = #function, (object).function)

struct LogLine
{
    nvinfer1::ILogger::Severity severity;
    std::string text;
};

//! Keeps what the plugin logs, so that a refusal without a sentence can be told from one with it.
class Log final : public nvinfer1::ILogger
{
public:
    void log(Severity severity, nvinfer1::AsciiChar const* message) noexcept override
    {
        std::lock_guard<std::mutex> const guard(mMutex);
        mLines.push_back({severity, message == nullptr ? "(null)" : message});
        if (mVerbose)
        {
            std::printf("    log %d: %s\n", static_cast<int>(severity), mLines.back().text.c_str());
        }
    }
    //! The lines since the last call.
    std::vector<LogLine> take()
    {
        std::lock_guard<std::mutex> const guard(mMutex);
        std::vector<LogLine> lines;
        lines.swap(mLines);
        return lines;
    }
    //! The errors since the last call of take(), which stay.
    std::string errors()
    {
        std::lock_guard<std::mutex> const guard(mMutex);
        std::string all;
        for (LogLine const& line : mLines)
        {
            all += line.severity <= Severity::kERROR ? (all.empty() ? "" : "; ") + line.text : "";
        }
        return all.empty() ? "it logged no error" : "it logged: " + all;
    }
    void setVerbose(bool verbose)
    {
        mVerbose = verbose;
    }

private:
    std::mutex mMutex;
    std::vector<LogLine> mLines;
    bool mVerbose = false;
};

class Finder final : public nvinfer1::ILoggerFinder
{
public:
    explicit Finder(Log& log)
        : mLog(log)
    {
    }
    nvinfer1::ILogger* findLogger() override
    {
        return &mLog;
    }

private:
    Log& mLog;
};

//! One per execution context. A plugin that needs no allocator and no recorder asks for neither.
class Resources final : public nvinfer1::IPluginResourceContext
{
public:
    nvinfer1::IGpuAllocator* getGpuAllocator() const noexcept override
    {
        return nullptr;
    }
    nvinfer1::IErrorRecorder* getErrorRecorder() const noexcept override
    {
        return nullptr;
    }
};

} // namespace driver
} // namespace mambapose
#endif
