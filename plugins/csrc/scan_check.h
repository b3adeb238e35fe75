/* What a call must satisfy before a kernel may index memory with it. Reads the order, which therefore
 * lies in host memory; of the other tensors only addresses are looked at. */
#ifndef MAMBAPOSE_SCAN_CHECK_H
#define MAMBAPOSE_SCAN_CHECK_H

#include "mambapose_scan.h"

namespace mambapose
{

//! Throws std::invalid_argument with a sentence that names the argument. forward: y is written.
void checkParams(MambaposeScanParams const& params, bool forward);

//! Throws std::invalid_argument unless each row of order (rows, length) names every token once.
void checkOrder(int32_t const* order, int64_t rows, int64_t length);

} // namespace mambapose
#endif
