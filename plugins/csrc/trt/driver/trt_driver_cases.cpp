/* The list of cases: every flag, order and form of the operator at least once, in the forms the
 * networks use; see trt_driver_scan.h. */
#include "trt/driver/trt_driver_scan.h"

namespace mambapose
{
namespace driver
{

using nvinfer1::DataType;

namespace
{

ScanCase makeCase(char const* name, int64_t directions, int64_t groups, int64_t channels, int64_t states,
    char const* optional)
{
    ScanCase scan;
    scan.name = name;
    scan.shape.directions = directions;
    scan.shape.groups = groups;
    scan.shape.channels = channels;
    scan.shape.states = states;
    scan.optional = optional;
    scan.shape.orderRows = scan.has('o') ? 1 : 0;
    return scan;
}

std::vector<ScanCase> networkCases()
{
    ScanCase vim = makeCase("vim", 2, 1, 24, 16, "Dzb");
    vim.shape.reverseMask = 2;
    vim.shape.uShared = false;
    vim.shape.mergeSum = true;
    vim.lengths = {33, 17};

    ScanCase vmamba = makeCase("vmamba", 4, 1, 16, 1, "Dbo");
    vmamba.shape.reverseMask = 12;
    vmamba.shape.orderRows = 4;
    vmamba.shape.mergeSum = true;
    vmamba.lengths = {36};

    ScanCase posemamba = makeCase("posemamba", 2, 1, 16, 16, "Dbo");
    posemamba.shape.reverseMask = 2;
    posemamba.shape.mergeSum = true;
    posemamba.lengths = {51, 34, 1};

    ScanCase windows = makeCase("windows", 2, 1, 6, 3, "o");
    windows.shape.reverseMask = 2;
    windows.shape.segment = 4;
    windows.lengths = {9, 12, 3};

    ScanCase stateful = makeCase("stateful", 1, 1, 6, 3, "Dzh");
    stateful.lengths = {1, 5};
    return {vim, vmamba, posemamba, windows, stateful};
}

std::vector<ScanCase> formCases()
{
    ScanCase plain = makeCase("plain", 1, 1, 5, 3, "");
    plain.hasDefaultFields = true;

    ScanCase twoWays = makeCase("stateful-two-ways", 2, 3, 6, 8, "h");
    twoWays.shape.reverseMask = 1;

    ScanCase gated = makeCase("gate-per-direction", 2, 1, 4, 2, "z");

    ScanCase rows = makeCase("order-rows-groups", 3, 2, 4, 5, "o");
    rows.shape.reverseMask = 6;
    rows.shape.orderRows = 3;

    ScanCase wide = makeCase("group-per-channel", 1, 6, 6, 2, "b");

    ScanCase constantB = makeCase("constant-b", 1, 1, 6, 3, "D");
    constantB.shape.bConstant = true;

    ScanCase constantBoth = makeCase("constant-both", 2, 1, 3, 17, "");
    constantBoth.shape.bConstant = constantBoth.shape.cConstant = true;
    constantBoth.shape.uShared = false;

    ScanCase constantC = makeCase("constant-c", 2, 2, 4, 3, "D");
    constantC.shape.cConstant = true;
    constantC.shape.mergeSum = true;
    constantC.hasDefaultFields = true;

    ScanCase linear = makeCase("no-softplus", 1, 1, 4, 4, "b");
    linear.shape.softplus = false;

    ScanCase manyStates = makeCase("many-states", 1, 1, 2, 256, "");
    manyStates.batches = {1};
    return {plain, twoWays, gated, rows, wide, constantB, constantBoth, constantC, linear, manyStates};
}

//! Lengths at which a chunked launch has several pieces, so that tactics differ.
std::vector<ScanCase> tacticCases()
{
    ScanCase chunked = makeCase("long", 1, 1, 8, 4, "Dz");
    chunked.batches = {1, 2};
    chunked.lengths = {700, 513};
    chunked.showsTactic = true;

    ScanCase reversed = makeCase("long-reverse-state", 1, 1, 4, 16, "bh");
    reversed.shape.reverseMask = 1;
    reversed.batches = {1};
    reversed.lengths = {600, 512};
    reversed.showsTactic = true;

    ScanCase merged = makeCase("long-merged", 2, 1, 8, 4, "Dzbo");
    merged.shape.reverseMask = 2;
    merged.shape.orderRows = 2;
    merged.shape.mergeSum = true;
    merged.batches = {1, 2};
    merged.lengths = {520, 300};
    return {chunked, reversed, merged};
}

} // namespace

std::vector<ScanCase> scanCases()
{
    std::vector<ScanCase> all;
    for (std::vector<ScanCase> const& part : {networkCases(), formCases(), tacticCases()})
    {
        all.insert(all.end(), part.begin(), part.end());
    }
    size_t const fp32 = all.size();
    for (size_t i = 0; i < fp32; ++i)
    {
        ScanCase const scan = all[i]; // a copy, since the list grows
        for (DataType const rows : {DataType::kHALF, DataType::kBF16})
        {
            // The forms that touch rows in their own way; the others share that code.
            bool const isOther = scan.name == "vim" || scan.name == "posemamba" || scan.name == "constant-b"
                || scan.name == "constant-c" || scan.name == "stateful" || scan.name == "long";
            if (isOther)
            {
                ScanCase other = scan;
                other.rows = rows;
                other.name += rows == DataType::kHALF ? "-fp16" : "-bf16";
                all.push_back(other);
            }
        }
    }
    return all;
}

} // namespace driver
} // namespace mambapose
