// One SelectiveScan node as ONNX Runtime runs it, and what its CPU and CUDA forms share.
#ifndef MAMBAPOSE_ORT_KERNEL_H
#define MAMBAPOSE_ORT_KERNEL_H

#include "ort/ort_api.h"

namespace mambapose
{

struct Attributes
{
    int64_t directions{1};
    int64_t groups{1};
    int64_t segment{0};
    bool deltaSoftplus{true};
    bool mergeSum{false};
    bool gateSilu{true};
    uint64_t reverseMask{0};
};

// Throws std::invalid_argument that names the attribute.
Attributes attributesFrom(OrtApi const& api, OrtKernelInfo const* info);

// The call as the kernels read it, without outputs, after every shape and type was compared with the
// specification. Only addresses are taken, so the tensors may lie on a device. Throws
// std::invalid_argument that names the input.
MambaposeScanParams paramsFrom(OrtApi const& api, OrtKernelContext* context, Attributes const& attributes);

// Makes the outputs that the node names and lets params point to them.
void makeOutputs(OrtApi const& api, OrtKernelContext* context, MambaposeScanParams& params);

// Runs the kernels on ONNX Runtime's threads. Nothing changes after construction, so calls may
// overlap. Throws; std::invalid_argument names the input.
class Kernel
{
public:
    Kernel(OrtApi const& api, OrtKernelInfo const* info);

    OrtApi const& api() const
    {
        return mApi;
    }

    void compute(OrtKernelContext* context) const;

private:
    OrtApi const& mApi;
    Attributes mAttributes;
};

} // namespace mambapose

#endif
