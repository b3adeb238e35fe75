// What the plugin says when it refuses: one sentence, through TensorRT's logger where it has handed one over.
#ifndef MAMBAPOSE_TRT_LOG_H
#define MAMBAPOSE_TRT_LOG_H

#include <NvInferRuntime.h>

#include <exception>
#include <string>

namespace mambapose
{

//! Keeps TensorRT's finder of loggers; null forgets it.
void keepLoggerFinder(nvinfer1::ILoggerFinder* finder) noexcept;

//! Logs "mambapose SelectiveScan, <where>: <what>" as an error; to standard error when there is no logger.
void logError(char const* where, char const* what) noexcept;

//! Throws std::invalid_argument: what was wanted of an argument, what was found, and what to do if that is known.
[[noreturn]] void refuse(
    std::string const& argument, std::string const& wanted, std::string const& found, std::string const& advice = "");

//! What body() returns, or `failure` after logging what it threw: TensorRT's callbacks must not throw.
template <typename Result, typename Body>
Result guarded(char const* where, Result failure, Body const& body) noexcept
{
    try
    {
        return body();
    }
    catch (std::exception const& problem)
    {
        logError(where, problem.what());
    }
    catch (...)
    {
        logError(where, "an exception of unknown type");
    }
    return failure;
}

} // namespace mambapose

#endif
