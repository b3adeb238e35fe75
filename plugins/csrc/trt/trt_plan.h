// How the plugin asks for launch plans: tactics as TensorRT times them, and a workspace that is always enough.
#ifndef MAMBAPOSE_TRT_PLAN_H
#define MAMBAPOSE_TRT_PLAN_H

#include "cuda/scan_cuda.h"

#include <vector>

namespace mambapose
{

//! Plan of a tactic. Where the tactic does not exist for these sizes, or would need more than workspaceBound(), the
//! plan is another one: TensorRT times at one shape of a profile and runs at all of them. Throws with a sentence.
MambaposeCudaPlan planFrom(MambaposeScanParams const& params, int32_t tactic, int32_t multiprocessors);

//! Tactics whose launches differ for these sizes; none where only AUTO has a plan. Throws with a sentence.
std::vector<int32_t> distinctTactics(MambaposeScanParams const& params, int32_t multiprocessors);

//! Bytes that suffice for planFrom() at these sizes, at any smaller batch and length, and for any tactic.
int64_t workspaceBound(MambaposeScanParams const& params, int32_t multiprocessors);

} // namespace mambapose

#endif
