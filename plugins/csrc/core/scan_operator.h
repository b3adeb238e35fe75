/* The tensors of a `mambapose::SelectiveScan` node, for the runtimes that call it: docs/operator.md. */
#ifndef MAMBAPOSE_SCAN_OPERATOR_H
#define MAMBAPOSE_SCAN_OPERATOR_H

#include <stdint.h>

namespace mambapose
{

enum Input : int32_t
{
    kU,
    kDT,
    kA,
    kB,
    kC,
    kD,
    kZ,
    kDT_BIAS,
    kORDER,
    kINITIAL_STATE,
    kINPUT_COUNT,
};

enum Output : int32_t
{
    kY,
    kFINAL_STATE,
    kOUTPUT_COUNT,
};

} // namespace mambapose
#endif
