/* SelectiveScan version 1 for the driver: cases, what the specification (docs/operator.md) says of
 * each, and the oracle's answers. */
#ifndef MAMBAPOSE_TRT_DRIVER_SCAN_H
#define MAMBAPOSE_TRT_DRIVER_SCAN_H

#include "core/naive_scan.h"
#include "trt/driver/trt_driver_protocol.h"

namespace mambapose
{
namespace driver
{

//! One node and the sizes it is run with.
struct ScanCase
{
    std::string name;
    naive::Shape shape; // batch and length are those of each run
    std::string optional; // letters of the optional inputs that are there: D z b(ias) o(rder) h (initial state)
    nvinfer1::DataType rows = nvinfer1::DataType::kFLOAT;
    Dimensions batches{1, 3, 2}, lengths{7}; // of the runs; the profile spans them
    bool showsTactic = false; // long and merged by nobody: the chunked tactic alone needs the workspace
    //! As a program gives them: only attributes that differ from the specification's defaults, strings without
    //! their terminator. Else as NVIDIA's parser does: all that the exporter writes, terminators counted.
    bool hasDefaultFields = false;
    double limit = 0.0; // of the error relative to the largest value; 0: that of the type

    bool has(char letter) const
    {
        return optional.find(letter) != std::string::npos;
    }
};

std::vector<ScanCase> scanCases();
Subject subjectFrom(ScanCase const& scan, uint32_t seed);

} // namespace driver
} // namespace mambapose
#endif
