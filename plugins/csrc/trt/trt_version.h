// Which TensorRT this library was built for, and which one calls it.
#ifndef MAMBAPOSE_TRT_VERSION_H
#define MAMBAPOSE_TRT_VERSION_H

#include "core/mambapose_scan.h"

//! Version of the headers, as getInferLibVersion() counts it: 10000 * major + 100 * minor + patch.
extern "C" MAMBAPOSE_API int32_t mambapose_trt_built_for(void);

namespace mambapose
{

//! Whether the TensorRT whose code lies behind `object`, an object with virtual functions, is of the major release
//! this library was built for; true when that cannot be told. Says so on standard error when it is not: tables of
//! virtual functions differ between majors, so its logger must not be called.
bool isCallerOfOurMajor(void const* object) noexcept;

} // namespace mambapose

#endif
