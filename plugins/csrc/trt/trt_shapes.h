// The tensors of a SelectiveScan node as TensorRT describes them, checked and turned into sizes of a scan.
#ifndef MAMBAPOSE_TRT_SHAPES_H
#define MAMBAPOSE_TRT_SHAPES_H

#include "core/mambapose_scan.h"
#include "core/scan_operator.h"
#include "trt/trt_fields.h"

#include <array>

namespace mambapose
{

//! Where an absent input would be.
constexpr int32_t kABSENT = -1;

//! Position of each input among those that are there: TensorRT's plugins take no empty ones.
class InputPositions
{
public:
    explicit InputPositions(int32_t presence);

    int32_t operator[](Input input) const
    {
        return mPositions[static_cast<size_t>(input)];
    }

    int32_t count() const
    {
        return mCount;
    }

    //! The input at a position below count().
    Input at(int32_t position) const;

private:
    std::array<int32_t, kINPUT_COUNT> mPositions;
    int32_t mCount{0};
};

//! Dimensions of each input; null for one that is absent. -1 is a dimension that is not known.
using InputDims = std::array<nvinfer1::Dims const*, kINPUT_COUNT>;

//! Sizes of one scan, -1 while a dimension that tells them is not known.
struct ScanSizes
{
    int64_t batch{-1};
    int64_t length{-1};
    int64_t channels{-1};
    int64_t states{-1};
    bool uShared{true};
    bool bConstant{false};
    bool cConstant{false};
    int32_t orderRows{1};

    bool areKnown() const
    {
        return batch >= 0 && length >= 0 && channels >= 0 && states >= 0;
    }
    bool operator==(ScanSizes const& other) const;
};

//! Throws std::invalid_argument with a sentence when shapes do not fit together; unknown dimensions fit anything.
ScanSizes sizesFromDims(ScanAttributes const& attributes, InputDims const& dims);

//! fp32, fp16 and bf16 are for u, and dt, z and y are like u.
bool isRowsType(nvinfer1::DataType found);

//! The one type an input other than u may have, given the type of u. B and C of rank 2, constants, are fp32.
nvinfer1::DataType typeBeside(nvinfer1::DataType rows, Input input, int32_t rank);

//! Parameters of a call with contiguous tensors. Pointers are placeholders that only tell what is there.
MambaposeScanParams paramsFromSizes(
    ScanAttributes const& attributes, ScanSizes const& sizes, nvinfer1::DataType rows);

//! Puts the addresses of one call into its parameters.
void bindTensors(MambaposeScanParams& params, InputPositions const& positions, void const* const* inputs,
    void* const* outputs);

char const* nameOf(Input input);
std::string nameOf(nvinfer1::DataType type);

} // namespace mambapose

#endif
