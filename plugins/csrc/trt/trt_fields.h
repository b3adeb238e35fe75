// The attributes of one SelectiveScan node, and their form as TensorRT's plugin fields: from a parser or a
// program when a network is built, from an engine file when it runs.
#ifndef MAMBAPOSE_TRT_FIELDS_H
#define MAMBAPOSE_TRT_FIELDS_H

#include <NvInferRuntime.h>

#include <string>
#include <vector>

namespace mambapose
{

//! Grows when the serialised fields change; an engine with another number is refused.
constexpr int32_t kSERIALIZATION_VERSION = 1;

//! Which optional inputs are there, as bits of the field `presence`.
enum Presence : int32_t
{
    kHAS_D = 1,
    kHAS_Z = 2,
    kHAS_DT_BIAS = 4,
    kHAS_ORDER = 8,
    kHAS_INITIAL_STATE = 16,
};

//! Defaults are those of docs/operator.md.
struct ScanAttributes
{
    int32_t directions{1};
    int32_t groups{1};
    std::vector<int32_t> reverse{0}; // one flag per direction
    int32_t deltaSoftplus{1};
    int32_t segment{0};
    std::string merge{"none"};
    std::string gate{"silu"};
    int32_t presence{0};
    //! Of the GPU the engine is built on, 0 until that is known. Kept in the engine, because the size of the
    //! workspace follows from it and an engine may run on a larger GPU.
    int32_t multiprocessors{0};

    bool mergesBySum() const
    {
        return merge == "sum";
    }
};

//! Attributes from the fields of a node (kBUILD: absent ones have their defaults) or of an engine (kRUNTIME: every
//! serialised field is there). Throws std::invalid_argument with a sentence that names the field.
ScanAttributes attributesFromFields(nvinfer1::PluginFieldCollection const* fields, nvinfer1::TensorRTPhase phase);

//! The fields a parser looks up in a node.
nvinfer1::PluginFieldCollection const& nodeFields();

//! Every attribute as a field, one by one. The fields point into this object, so it is neither copied nor moved.
class SerializedFields
{
public:
    explicit SerializedFields(ScanAttributes const& attributes);
    SerializedFields(SerializedFields const&) = delete;
    SerializedFields& operator=(SerializedFields const&) = delete;

    nvinfer1::PluginFieldCollection const* collection() const
    {
        return &mCollection;
    }

private:
    int32_t mVersion{kSERIALIZATION_VERSION};
    ScanAttributes mAttributes;
    std::vector<nvinfer1::PluginField> mFields;
    nvinfer1::PluginFieldCollection mCollection;
};

} // namespace mambapose

#endif
