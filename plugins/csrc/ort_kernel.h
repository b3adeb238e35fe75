// One SelectiveScan node as ONNX Runtime runs it.
#ifndef MAMBAPOSE_ORT_KERNEL_H
#define MAMBAPOSE_ORT_KERNEL_H

#include "ort_api.h"

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

// Reads the attributes; compute() checks every shape and type, then runs the kernels on ONNX Runtime's
// threads. Nothing changes after construction, so calls may overlap. Throws; std::invalid_argument
// names the input.
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
    void run(OrtKernelContext* context, MambaposeScanParams& params) const;

    OrtApi const& mApi;
    Attributes mAttributes;
};

} // namespace mambapose

#endif
