/* What a call must satisfy before a kernel may index memory with it. Of the tensors only addresses are
 * looked at, but for the order of a call on the CPU. */
#ifndef MAMBAPOSE_SCAN_CHECK_H
#define MAMBAPOSE_SCAN_CHECK_H

#include "core/mambapose_scan.h"

namespace mambapose
{

//! Throws std::invalid_argument with a sentence that names the argument. forward: y is written.
void checkParams(MambaposeScanParams const& params, bool forward);

//! The same for tensors in device memory: rows may be bf16, and the order is not read.
void checkDeviceParams(MambaposeScanParams const& params, bool forward);

//! The same for sizes and attributes alone; every pointer may be null.
void checkDeviceSizes(MambaposeScanParams const& params);

//! The same for the structures of a gradient call and the type of its rows; pointers to tensors may be null.
void checkGrads(MambaposeScanParams const* params, MambaposeScanGrads const* grads);

//! Throws std::invalid_argument when there are steps but no gradient of y.
void checkOutputGrad(MambaposeScanParams const& params, MambaposeScanGrads const& grads);

//! Throws std::invalid_argument unless each row of order (rows, length) names every token once.
void checkOrder(int32_t const* order, int64_t rows, int64_t length);

} // namespace mambapose
#endif
