#include "trt/trt_shapes.h"
#include "trt/trt_log.h"

#include <utility>

namespace mambapose
{
namespace
{

using nvinfer1::DataType;
using nvinfer1::Dims;

constexpr std::array<char const*, kINPUT_COUNT> kNAMES{
    "u", "dt", "A", "B", "C", "D", "z", "dt_bias", "order", "initial_state"};
constexpr std::array<int32_t, kINPUT_COUNT> kPRESENCE_BITS{
    0, 0, 0, 0, 0, kHAS_D, kHAS_Z, kHAS_DT_BIAS, kHAS_ORDER, kHAS_INITIAL_STATE};

//! Smallest and largest rank of each input.
constexpr std::array<std::pair<int32_t, int32_t>, kINPUT_COUNT> kRANKS{
    {{3, 3}, {3, 3}, {2, 2}, {2, 3}, {2, 3}, {1, 1}, {3, 3}, {1, 1}, {1, 2}, {3, 3}}};

//! One size of the scan and the tensor that told it.
struct Size
{
    char const* name;
    int64_t value{-1};
    char const* source{""};
};

std::string axisOf(Input input, int32_t axis)
{
    return std::string(nameOf(input)) + " axis " + std::to_string(axis);
}

void agree(Size& size, Input input, int32_t axis, int64_t found)
{
    if (found < 0)
    {
        return;
    }
    if (size.value < 0)
    {
        size.value = found;
        size.source = nameOf(input);
    }
    else if (size.value != found)
    {
        refuse(axisOf(input, axis), std::string(size.name) + " " + std::to_string(size.value) + " as in " + size.source,
            std::to_string(found));
    }
}

int64_t quotient(Input input, int32_t axis, int64_t found, int64_t divisor, char const* unit)
{
    if (found >= 0 && found % divisor != 0)
    {
        refuse(axisOf(input, axis), "a multiple of " + std::to_string(divisor) + " (" + unit + ")",
            std::to_string(found));
    }
    return found < 0 ? -1 : found / divisor;
}

void checkRanks(InputDims const& dims)
{
    for (int32_t i = 0; i < kINPUT_COUNT; ++i)
    {
        auto const at = static_cast<size_t>(i);
        auto const [lowest, highest] = kRANKS[at];
        if (dims[at] != nullptr && (dims[at]->nbDims < lowest || dims[at]->nbDims > highest))
        {
            refuse(kNAMES[at],
                "rank " + std::to_string(lowest) + (lowest == highest ? "" : " or " + std::to_string(highest)),
                std::to_string(dims[at]->nbDims));
        }
    }
}

//! Gathers what each tensor says about the sizes, in the order of the inputs, so a refusal names the later one.
class SizeGatherer
{
public:
    SizeGatherer(ScanAttributes const& attributes, InputDims const& dims)
        : mAttributes(attributes)
        , mDims(dims)
    {
    }

    ScanSizes gather()
    {
        checkRanks(mDims);
        rows(kU);
        rows(kDT);
        wide(kDT, 2);
        wide(kA, 0);
        agree(mStates, kA, 1, axis(kA, 1));
        matrix(kB);
        matrix(kC);
        wide(kD, 0);
        rows(kZ);
        agree(mChannels, kZ, 2, axis(kZ, 2));
        wide(kDT_BIAS, 0);
        order();
        state();
        columnsOfU();
        if (mChannels.value >= 0 && mChannels.value % mAttributes.groups != 0)
        {
            refuse("field 'groups'", "a divisor of the " + std::to_string(mChannels.value) + " channels",
                std::to_string(mAttributes.groups));
        }
        mFound.batch = mBatch.value;
        mFound.length = mLength.value;
        mFound.channels = mChannels.value;
        mFound.states = mStates.value;
        mFound.bConstant = mDims[kB]->nbDims == 2;
        mFound.cConstant = mDims[kC]->nbDims == 2;
        return mFound;
    }

private:
    int64_t axis(Input input, int32_t i) const
    {
        Dims const* const dims = mDims[static_cast<size_t>(input)];
        return dims == nullptr ? -1 : static_cast<int64_t>(dims->d[i]);
    }

    void rows(Input input)
    {
        agree(mBatch, input, 0, axis(input, 0));
        agree(mLength, input, 1, axis(input, 1));
    }

    void wide(Input input, int32_t i)
    {
        agree(mWide, input, i, axis(input, i));
        agree(mChannels, input, i, quotient(input, i, axis(input, i), mAttributes.directions, "directions"));
    }

    void matrix(Input input)
    {
        if (mDims[static_cast<size_t>(input)]->nbDims == 2)
        {
            wide(input, 0);
            agree(mStates, input, 1, axis(input, 1));
            return;
        }
        rows(input);
        int64_t const blocks = static_cast<int64_t>(mAttributes.directions) * mAttributes.groups;
        agree(mStates, input, 2, quotient(input, 2, axis(input, 2), blocks, "directions times groups"));
    }

    void order()
    {
        Dims const* const dims = mDims[kORDER];
        if (dims == nullptr)
        {
            return;
        }
        agree(mLength, kORDER, dims->nbDims - 1, axis(kORDER, dims->nbDims - 1));
        if (dims->nbDims == 2)
        {
            Size directions{"directions", mAttributes.directions, "the node"};
            agree(directions, kORDER, 0, axis(kORDER, 0));
            mFound.orderRows = mAttributes.directions;
        }
    }

    void state()
    {
        agree(mBatch, kINITIAL_STATE, 0, axis(kINITIAL_STATE, 0));
        wide(kINITIAL_STATE, 1);
        agree(mStates, kINITIAL_STATE, 2, axis(kINITIAL_STATE, 2));
    }

    void columnsOfU()
    {
        int64_t const columns = axis(kU, 2);
        if (columns < 0 || mChannels.value < 0)
        {
            return;
        }
        mFound.uShared = columns == mChannels.value;
        int64_t const all = mChannels.value * mAttributes.directions;
        if (!mFound.uShared && columns != all)
        {
            refuse(axisOf(kU, 2), std::to_string(mChannels.value) + " or " + std::to_string(all) + " channels",
                std::to_string(columns));
        }
    }

    ScanAttributes const& mAttributes;
    InputDims const& mDims;
    Size mBatch{"batch"}, mLength{"length"}, mWide{"directions times channels"}, mChannels{"channels"},
        mStates{"states"};
    ScanSizes mFound;
};

//! Rows of `columns` values without gaps.
MambaposeRows contiguousRows(int64_t length, int64_t columns)
{
    return {nullptr, length * columns, columns};
}

} // namespace

InputPositions::InputPositions(int32_t presence)
{
    for (size_t i = 0; i < mPositions.size(); ++i)
    {
        bool const isThere = kPRESENCE_BITS[i] == 0 || (presence & kPRESENCE_BITS[i]) != 0;
        mPositions[i] = isThere ? mCount++ : kABSENT;
    }
}

Input InputPositions::at(int32_t position) const
{
    int32_t input = 0;
    while (mPositions[static_cast<size_t>(input)] != position)
    {
        ++input;
    }
    return static_cast<Input>(input);
}

bool ScanSizes::operator==(ScanSizes const& other) const
{
    return batch == other.batch && length == other.length && channels == other.channels && states == other.states
        && uShared == other.uShared && bConstant == other.bConstant && cConstant == other.cConstant
        && orderRows == other.orderRows;
}

ScanSizes sizesFromDims(ScanAttributes const& attributes, InputDims const& dims)
{
    return SizeGatherer(attributes, dims).gather();
}

bool isRowsType(DataType found)
{
    return found == DataType::kFLOAT || found == DataType::kHALF || found == DataType::kBF16;
}

DataType typeBeside(DataType rows, Input input, int32_t rank)
{
    switch (input)
    {
    case kU:
    case kDT:
    case kZ: return rows;
    case kB:
    case kC: return rank == 2 ? DataType::kFLOAT : rows;
    case kORDER: return DataType::kINT32;
    default: return DataType::kFLOAT;
    }
}

MambaposeScanParams paramsFromSizes(ScanAttributes const& attributes, ScanSizes const& sizes, DataType rows)
{
    MambaposeScanParams params{};
    params.structSize = sizeof(params);
    params.dtype = rows == DataType::kHALF ? MAMBAPOSE_FP16 : rows == DataType::kBF16 ? MAMBAPOSE_BF16 : MAMBAPOSE_FP32;
    params.batch = sizes.batch;
    params.length = sizes.length;
    params.channels = sizes.channels;
    params.states = sizes.states;
    params.directions = attributes.directions;
    params.groups = attributes.groups;
    params.segment = attributes.segment;
    for (size_t k = 0; k < attributes.reverse.size(); ++k)
    {
        params.reverseMask |= static_cast<uint64_t>(attributes.reverse[k]) << k;
    }
    params.deltaSoftplus = attributes.deltaSoftplus;
    params.mergeSum = attributes.mergesBySum() ? 1 : 0;
    params.uShared = sizes.uShared ? 1 : 0;
    params.bConstant = sizes.bConstant ? 1 : 0;
    params.cConstant = sizes.cConstant ? 1 : 0;
    params.orderRows = sizes.orderRows;

    int64_t const wide = sizes.channels * attributes.directions;
    int64_t const matrixColumns = sizes.states * attributes.directions * attributes.groups;
    MambaposeRows const constant{nullptr, 0, sizes.states};
    params.u = contiguousRows(sizes.length, sizes.uShared ? sizes.channels : wide);
    params.dt = contiguousRows(sizes.length, wide);
    params.B = sizes.bConstant ? constant : contiguousRows(sizes.length, matrixColumns);
    params.C = sizes.cConstant ? constant : contiguousRows(sizes.length, matrixColumns);
    params.z = contiguousRows(sizes.length, sizes.channels);
    params.y = contiguousRows(sizes.length, attributes.mergesBySum() ? sizes.channels : wide);

    static float sPlaceholder[1] = {0.0F};
    InputPositions const positions(attributes.presence);
    std::array<void const*, kINPUT_COUNT> inputs;
    inputs.fill(sPlaceholder);
    std::array<void*, kOUTPUT_COUNT> outputs;
    outputs.fill(sPlaceholder);
    bindTensors(params, positions, inputs.data(), outputs.data());
    return params;
}

void bindTensors(
    MambaposeScanParams& params, InputPositions const& positions, void const* const* inputs, void* const* outputs)
{
    auto const address = [&](Input input)
    { return positions[input] == kABSENT ? nullptr : inputs[positions[input]]; };
    auto const rows = [&](Input input) { return const_cast<void*>(address(input)); };
    auto const floats = [&](Input input) { return static_cast<float const*>(address(input)); };
    params.u.data = rows(kU);
    params.dt.data = rows(kDT);
    params.A = floats(kA);
    params.B.data = rows(kB);
    params.C.data = rows(kC);
    params.D = floats(kD);
    params.z.data = rows(kZ);
    params.dtBias = floats(kDT_BIAS);
    params.order = static_cast<int32_t const*>(address(kORDER));
    params.initialState = floats(kINITIAL_STATE);
    params.y.data = outputs[kY];
    params.finalState = static_cast<float*>(outputs[kFINAL_STATE]);
}

char const* nameOf(Input input)
{
    return kNAMES[static_cast<size_t>(input)];
}

std::string nameOf(DataType type)
{
    switch (type)
    {
    case DataType::kFLOAT: return "fp32";
    case DataType::kHALF: return "fp16";
    case DataType::kBF16: return "bf16";
    case DataType::kINT8: return "int8";
    case DataType::kINT32: return "int32";
    case DataType::kINT64: return "int64";
    default: return "type " + std::to_string(static_cast<int32_t>(type));
    }
}

} // namespace mambapose
