#include "trt/trt_log.h"

#include <atomic>
#include <cstdio>
#include <stdexcept>

namespace mambapose
{
namespace
{

std::atomic<nvinfer1::ILoggerFinder*> gFinder{nullptr};

nvinfer1::ILogger* findLogger() noexcept
{
    try
    {
        nvinfer1::ILoggerFinder* const finder = gFinder.load();
        if (finder != nullptr)
        {
            return finder->findLogger();
        }
#if defined(MAMBAPOSE_TRT_STATIC_REGISTRATION)
        return getLogger(); // the library is linked with TensorRT
#else
        return nullptr;
#endif
    }
    catch (...)
    {
        return nullptr;
    }
}

} // namespace

void keepLoggerFinder(nvinfer1::ILoggerFinder* finder) noexcept
{
    gFinder.store(finder);
}

void logError(char const* where, char const* what) noexcept
{
    constexpr size_t kLONGEST = 1024; // no allocation: the reason may be that memory ran out
    char message[kLONGEST];
    std::snprintf(message, sizeof(message), "mambapose SelectiveScan, %.200s: %s", where, what);
    if (nvinfer1::ILogger* const logger = findLogger())
    {
        logger->log(nvinfer1::ILogger::Severity::kERROR, message);
    }
    else
    {
        std::fprintf(stderr, "%s\n", message);
    }
}

void refuse(std::string const& argument, std::string const& wanted, std::string const& found, std::string const& advice)
{
    throw std::invalid_argument(
        argument + ": " + wanted + " was wanted, found " + found + (advice.empty() ? "" : "; " + advice));
}

} // namespace mambapose
