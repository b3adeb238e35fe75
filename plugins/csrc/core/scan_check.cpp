#include "core/scan_check.h"

#include <algorithm>
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
    want(p.structSize == sizeof(MambaposeScanParams), "structSize", "sizeof(MambaposeScanParams)", p.structSize);
    want(p.batch >= 0 && p.batch <= INT32_MAX, "batch", "0 to 2^31 - 1", p.batch);
    want(p.length >= 0 && p.length <= INT32_MAX, "length", "0 to 2^31 - 1", p.length);
    want(p.channels >= 1 && p.channels <= INT32_MAX, "channels", "1 to 2^31 - 1", p.channels);
    want(p.states >= 1 && p.states <= 256, "states", "1 to 256", p.states);
    want(p.directions >= 1 && p.directions <= 64, "directions", "1 to 64", p.directions);
    want(p.groups >= 1 && p.channels % p.groups == 0, "groups", "a divisor of the channels", p.groups);
    want(p.segment >= 0, "segment", "0 or a number of steps", p.segment);
    want(p.segment == 0 || p.initialState == nullptr, "initialState", "segment 0 with it", p.segment);
    want(p.orderRows == 1 || p.orderRows == p.directions, "orderRows", "1 or the directions", p.orderRows);
    want(p.numThreads >= 0, "numThreads", "0 or more", p.numThreads);
    // Products of sizes are computed in 64 bits all over the core; a double holds any of them here.
    double updates = static_cast<double>(p.channels) * static_cast<double>(p.directions * (p.states + 4));
    for (int64_t const size : {p.batch, p.length})
    {
        updates *= static_cast<double>(std::max<int64_t>(size, 1));
    }
    want(updates < 0x1p62, "batch", "fewer than 2^62 state updates in one call", p.batch);
}

//! Addresses from the first byte of a tensor to the one after its last; empty for an absent tensor.
struct Span
{
    char const* name;
    uintptr_t begin, end;
};

Span denseSpan(char const* name, void const* data, int64_t elements, int64_t elementSize = sizeof(float))
{
    auto const begin = reinterpret_cast<uintptr_t>(data);
    return {name, begin, data == nullptr ? begin : begin + static_cast<uintptr_t>(elements * elementSize)};
}

//! Strides may be negative, so the first row may lie behind the last.
Span rowsSpan(char const* name, MambaposeScanParams const& p, MambaposeRows const& rows, int64_t columns)
{
    if (rows.data == nullptr || p.batch * p.length == 0)
    {
        return {name, 0, 0};
    }
    int64_t const size = p.dtype == MAMBAPOSE_FP32 ? 4 : 2;
    int64_t const overBatch = (p.batch - 1) * rows.batchStride, overLength = (p.length - 1) * rows.rowStride;
    int64_t const first = std::min<int64_t>(overBatch, 0) + std::min<int64_t>(overLength, 0);
    int64_t const last = std::max<int64_t>(overBatch, 0) + std::max<int64_t>(overLength, 0) + columns;
    auto const data = reinterpret_cast<uintptr_t>(rows.data);
    return {name, data + static_cast<uintptr_t>(first * size), data + static_cast<uintptr_t>(last * size)};
}

Span matrixSpan(char const* name, MambaposeScanParams const& p, MambaposeRows const& rows, int32_t constant)
{
    int64_t const columns = p.directions * p.groups * p.states;
    int64_t const elements = (p.directions * p.channels - 1) * rows.rowStride + p.states;
    return constant ? denseSpan(name, rows.data, elements) : rowsSpan(name, p, rows, columns);
}

void wantApart(Span const& output, Span const& other)
{
    if (std::max(output.begin, other.begin) < std::min(output.end, other.end))
    {
        throw std::invalid_argument(
            std::string(output.name) + ": memory of its own was wanted, found it shared with " + other.name);
    }
}

//! A scan in place would read its own results in the second direction. A state may be updated in place.
void checkOutputs(MambaposeScanParams const& p)
{
    int64_t const wide = p.directions * p.channels;
    Span const y = rowsSpan("y", p, p.y, p.mergeSum ? p.channels : wide);
    Span const finalState = denseSpan("finalState", p.finalState, p.batch * wide * p.states);
    Span const inputs[] = {
        rowsSpan("u", p, p.u, p.uShared ? p.channels : wide),
        rowsSpan("dt", p, p.dt, wide),
        denseSpan("A", p.A, wide * p.states),
        matrixSpan("B", p, p.B, p.bConstant),
        matrixSpan("C", p, p.C, p.cConstant),
        denseSpan("D", p.D, wide),
        rowsSpan("z", p, p.z, p.channels),
        denseSpan("dtBias", p.dtBias, wide),
        denseSpan("order", p.order, p.orderRows * p.length, sizeof(int32_t)),
    };
    for (Span const& input : inputs)
    {
        wantApart(y, input);
        wantApart(finalState, input);
    }
    Span const initialState = denseSpan("initialState", p.initialState, p.batch * wide * p.states);
    wantApart(y, initialState);
    wantApart(y, finalState);
    if (p.finalState != p.initialState)
    {
        wantApart(finalState, initialState);
    }
}

void checkTensors(MambaposeScanParams const& p, bool forward)
{
    int64_t const rows = p.batch * p.length;
    wantPointer(p.u.data, "u", rows);
    wantPointer(p.dt.data, "dt", rows);
    wantPointer(p.A, "A", 1);
    wantPointer(p.B.data, "B", p.bConstant ? 1 : rows);
    wantPointer(p.C.data, "C", p.cConstant ? 1 : rows);
    if (forward)
    {
        wantPointer(p.y.data, "y", rows);
        checkOutputs(p);
    }
}

} // namespace

void checkOrder(int32_t const* order, int64_t rows, int64_t length)
{
    constexpr int64_t kBITS = 64;
    std::vector<uint64_t> seen(static_cast<size_t>((length + kBITS - 1) / kBITS));
    for (int64_t row = 0; row < rows; ++row)
    {
        std::fill(seen.begin(), seen.end(), 0U);
        for (int64_t step = 0; step < length; ++step)
        {
            int64_t const token = order[row * length + step];
            if (token < 0 || token >= length)
            {
                refuse("order", "a token from 0 to " + std::to_string(length - 1), token);
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

void checkParams(MambaposeScanParams const& p, bool forward)
{
    checkSizes(p);
    want(p.dtype == MAMBAPOSE_FP32 || p.dtype == MAMBAPOSE_FP16, "dtype", "0 (fp32) or 1 (fp16)", p.dtype);
    checkTensors(p, forward);
    if (p.order != nullptr)
    {
        // It indexes memory, and any caller may compute it anew, so it is checked in every call: 3 us at L 4131.
        checkOrder(p.order, p.orderRows, p.length);
    }
}

void checkDeviceSizes(MambaposeScanParams const& p)
{
    checkSizes(p);
    want(p.dtype >= MAMBAPOSE_FP32 && p.dtype <= MAMBAPOSE_BF16, "dtype", "0 (fp32), 1 (fp16) or 2 (bf16)", p.dtype);
}

void checkDeviceParams(MambaposeScanParams const& p, bool forward)
{
    checkDeviceSizes(p);
    checkTensors(p, forward);
}

void checkGrads(MambaposeScanParams const* params, MambaposeScanGrads const* grads)
{
    if (params == nullptr || grads == nullptr)
    {
        throw std::invalid_argument("params, grads: two structures were wanted, found none");
    }
    want(grads->structSize == sizeof(MambaposeScanGrads), "grads.structSize", "sizeof(MambaposeScanGrads)",
        grads->structSize);
    checkSizes(*params);
    if (params->dtype != MAMBAPOSE_FP32)
    {
        throw std::invalid_argument("dtype: gradients need 0 (fp32), found " + std::to_string(params->dtype));
    }
}

void checkOutputGrad(MambaposeScanParams const& params, MambaposeScanGrads const& grads)
{
    wantPointer(grads.dY, "dY", params.batch * params.length);
}

} // namespace mambapose
