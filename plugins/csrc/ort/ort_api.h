// What the ONNX Runtime files of the selective scan share: names of the operator's inputs and
// outputs, error handling and shapes. Only the C API of ONNX Runtime is used, and only what its
// version 20 has, so one build runs on every later ONNX Runtime.
#ifndef MAMBAPOSE_ORT_API_H
#define MAMBAPOSE_ORT_API_H

#include "core/mambapose_scan.h"
#include "core/scan_operator.h"

#include <onnxruntime_c_api.h>

#include <array>
#include <cstdio>
#include <exception>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

static_assert(ORT_API_VERSION >= 20, "the headers of ONNX Runtime 1.20 or newer are needed");

namespace mambapose
{

constexpr uint32_t kORT_API = 20;

constexpr std::array<char const*, kINPUT_COUNT> kINPUT_NAMES{
    "u", "dt", "A", "B", "C", "D", "z", "dt_bias", "order", "initial_state"};

[[noreturn]] inline void reject(std::string const& argument, std::string const& wanted, std::string const& found)
{
    throw std::invalid_argument(argument + ": " + wanted + " was wanted, found " + found);
}

inline void check(OrtApi const& api, OrtStatus* status)
{
    if (status != nullptr)
    {
        std::string const message = api.GetErrorMessage(status);
        api.ReleaseStatus(status);
        throw std::runtime_error(message);
    }
}

inline OrtStatusPtr statusOf(OrtApi const& api, OrtErrorCode code, std::exception const& problem) noexcept
{
    std::array<char, 512> sentence{};
    std::snprintf(sentence.data(), sentence.size(), "SelectiveScan: %s", problem.what());
    return api.CreateStatus(code, sentence.data());
}

// Runs body and returns its failure, if any, as a status: nothing may be thrown into ONNX Runtime.
template <typename Body>
OrtStatusPtr guarded(OrtApi const& api, Body const& body) noexcept
{
    try
    {
        body();
        return nullptr;
    }
    catch (std::invalid_argument const& problem)
    {
        return statusOf(api, ORT_INVALID_ARGUMENT, problem);
    }
    catch (std::exception const& problem)
    {
        return statusOf(api, ORT_FAIL, problem);
    }
}

using Shape = std::vector<int64_t>;

inline std::string text(Shape const& shape)
{
    std::string joined;
    for (int64_t const size : shape)
    {
        joined += (joined.empty() ? "" : ", ") + std::to_string(size);
    }
    return "(" + joined + ")";
}

using OwnedInfo = std::unique_ptr<OrtTensorTypeAndShapeInfo, decltype(OrtApi::ReleaseTensorTypeAndShapeInfo)>;

inline OwnedInfo ownedInfo(OrtApi const& api, OrtTensorTypeAndShapeInfo* info)
{
    return {info, api.ReleaseTensorTypeAndShapeInfo};
}

} // namespace mambapose

#endif
