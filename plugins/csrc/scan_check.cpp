#include "scan_driver.h"

#include <algorithm>
#include <cstdint>
#include <stdexcept>
#include <string>
#include <vector>

namespace mambapose
{
namespace
{

[[noreturn]] void refuse(char const* argument, std::string const& wanted, int64_t found)
{
    throw std::invalid_argument(std::string(argument) + ": " + wanted + " was wanted, found " + std::to_string(found));
}

void want(bool condition, char const* argument, char const* wanted, int64_t found)
{
    if (!condition)
    {
        refuse(argument, wanted, found);
    }
}

void wantPointer(void const* pointer, char const* argument, int64_t elements)
{
    if (pointer == nullptr && elements > 0)
    {
        throw std::invalid_argument(std::string(argument) + ": a tensor was wanted, found none");
    }
}

void checkSizes(MambaposeScanParams const& p)
{
    want(p.dtype == MAMBAPOSE_FP32 || p.dtype == MAMBAPOSE_FP16, "dtype", "0 (fp32) or 1 (fp16)", p.dtype);
    want(p.batch >= 0, "batch", "0 or more", p.batch);
    want(p.length >= 0 && p.length <= INT32_MAX, "length", "0 to 2^31 - 1", p.length);
    want(p.channels >= 1, "channels", "1 or more", p.channels);
    want(p.states >= 1 && p.states <= 256, "states", "1 to 256", p.states);
    want(p.directions >= 1 && p.directions <= 64, "directions", "1 to 64", p.directions);
    want(p.groups >= 1 && p.channels % p.groups == 0, "groups", "a divisor of the channels", p.groups);
    want(p.segment >= 0, "segment", "0 or a number of steps", p.segment);
    want(p.segment == 0 || p.initialState == nullptr, "initialState", "segment 0 with it", p.segment);
    want(p.orderRows == 1 || p.orderRows == p.directions, "orderRows", "1 or the directions", p.orderRows);
    want(p.numThreads >= 0, "numThreads", "0 or more", p.numThreads);
}

//! The order indexes memory, so it is checked in every call; one bit per token.
void checkOrder(MambaposeScanParams const& p)
{
    constexpr int64_t kBITS = 64;
    std::vector<uint64_t> seen(static_cast<size_t>((p.length + kBITS - 1) / kBITS));
    for (int64_t row = 0; row < p.orderRows; ++row)
    {
        std::fill(seen.begin(), seen.end(), 0U);
        for (int64_t step = 0; step < p.length; ++step)
        {
            int64_t const token = p.order[row * p.length + step];
            if (token < 0 || token >= p.length)
            {
                refuse("order", "a token from 0 to " + std::to_string(p.length - 1), token);
            }
            uint64_t& word = seen[static_cast<size_t>(token / kBITS)];
            uint64_t const bit = uint64_t{1} << (token % kBITS);
            if ((word & bit) != 0)
            {
                refuse("order", "every token once", token);
            }
            word |= bit;
        }
    }
}

} // namespace

void checkParams(MambaposeScanParams const& p, bool wantsOutput)
{
    want(p.structSize == sizeof(MambaposeScanParams), "structSize", "sizeof(MambaposeScanParams)", p.structSize);
    checkSizes(p);
    int64_t const rows = p.batch * p.length;
    wantPointer(p.u.data, "u", rows);
    wantPointer(p.dt.data, "dt", rows);
    wantPointer(p.A, "A", 1);
    wantPointer(p.B.data, "B", p.bConstant ? 1 : rows);
    wantPointer(p.C.data, "C", p.cConstant ? 1 : rows);
    wantPointer(p.y.data, "y", wantsOutput ? rows : 0);
    if (p.order != nullptr)
    {
        checkOrder(p);
    }
}

} // namespace mambapose
