/* Cases of the selective scan; see trt_driver_scan.h. */
#include "trt/driver/trt_driver_scan.h"

#include <cmath>
#include <random>

namespace mambapose
{
namespace driver
{

using nvinfer1::DataType;

namespace
{

enum Place : size_t
{
    kU,
    kDT,
    kA,
    kB,
    kC,
    kD,
    kZ,
    kBIAS,
    kORDER,
    kINITIAL,
};
constexpr char const* kLETTERS = "....." "Dzboh"; // by place; the first five are always there
constexpr int32_t kTACTICS[] = {1, 2, 3};
constexpr int32_t kCHUNKED = 3;

//! A binary floating-point type: what the driver knows of fp32, fp16 and bf16.
struct FloatType
{
    int exponentBits, mantissaBits;

    explicit FloatType(DataType type)
        : exponentBits(type == DataType::kHALF ? 5 : 8)
        , mantissaBits(type == DataType::kHALF ? 10 : type == DataType::kBF16 ? 7 : 23)
    {
    }
    int bias() const
    {
        return (1 << (exponentBits - 1)) - 1;
    }
    size_t bytes() const
    {
        return mantissaBits == 23 ? 4 : 2;
    }
    //! Of a value that the type holds exactly, and that is zero or normal.
    uint32_t encode(double value) const
    {
        if (value == 0.0)
        {
            return 0;
        }
        int exponent = 0;
        double const scaled = std::ldexp(std::frexp(std::fabs(value), &exponent), mantissaBits + 1);
        auto const mantissa = static_cast<uint32_t>(scaled);
        if (static_cast<double>(mantissa) != scaled)
        {
            throw std::logic_error("a value that its type does not hold");
        }
        auto const biased = static_cast<uint32_t>(exponent - 1 + bias());
        uint32_t const sign = value < 0.0 ? 1U << (exponentBits + mantissaBits) : 0U;
        return sign | biased << mantissaBits | (mantissa & ((1U << mantissaBits) - 1U));
    }
    double decode(uint32_t bits) const
    {
        uint32_t const mantissa = bits & ((1U << mantissaBits) - 1U);
        int const biased = static_cast<int>(bits >> mantissaBits & ((1U << exponentBits) - 1U));
        double const sign = bits >> (exponentBits + mantissaBits) & 1U ? -1.0 : 1.0;
        if (biased == (1 << exponentBits) - 1)
        {
            return mantissa == 0 ? sign * HUGE_VAL : NAN;
        }
        double const value = biased == 0 ? static_cast<double>(mantissa)
                                         : static_cast<double>(mantissa | 1U << mantissaBits);
        return sign * std::ldexp(value, (biased == 0 ? 1 : biased) - bias() - mantissaBits);
    }
};

Bytes bytesFrom(naive::Values const& values, DataType type)
{
    FloatType const format(type);
    Bytes bytes;
    for (double const value : values)
    {
        uint32_t const bits = format.encode(value);
        auto const* first = reinterpret_cast<unsigned char const*>(&bits); // little endian
        bytes.insert(bytes.end(), first, first + format.bytes());
    }
    return bytes;
}

naive::Values valuesFrom(Bytes const& bytes, DataType type)
{
    FloatType const format(type);
    naive::Values values;
    for (size_t at = 0; at < bytes.size(); at += format.bytes())
    {
        uint32_t bits = 0;
        std::memcpy(&bits, bytes.data() + at, format.bytes());
        values.push_back(format.decode(bits));
    }
    return values;
}

//! Shapes of the inputs that are there.
Shapes inputShapes(ScanCase const& scan, int64_t batch, int64_t length)
{
    naive::Shape const& shape = scan.shape;
    int64_t const wide = shape.wide(), states = shape.states, columns = shape.directions * shape.groups * states;
    Dimensions const varying{batch, length, columns}, constant{wide, states};
    Shapes const all{{batch, length, shape.uShared ? shape.channels : wide}, {batch, length, wide}, {wide, states},
        shape.bConstant ? constant : varying, shape.cConstant ? constant : varying, {wide},
        {batch, length, shape.channels}, {wide},
        shape.orderRows > 1 ? Dimensions{shape.directions, length} : Dimensions{length}, {batch, wide, states}};
    Shapes there;
    for (size_t place = 0; place < all.size(); ++place)
    {
        if (place < kD || scan.has(kLETTERS[place]))
        {
            there.push_back(all[place]);
        }
    }
    return there;
}

std::vector<DataType> inputTypes(ScanCase const& scan, DataType rows)
{
    DataType const fp32 = DataType::kFLOAT;
    std::vector<DataType> const all{rows, rows, fp32, scan.shape.bConstant ? fp32 : rows,
        scan.shape.cConstant ? fp32 : rows, fp32, rows, fp32, DataType::kINT32, fp32};
    std::vector<DataType> there;
    for (size_t place = 0; place < all.size(); ++place)
    {
        if (place < kD || scan.has(kLETTERS[place]))
        {
            there.push_back(all[place]);
        }
    }
    return there;
}

Fields fieldsFrom(ScanCase const& scan)
{
    naive::Shape const& shape = scan.shape;
    std::vector<int32_t> reverse;
    int32_t presence = 0;
    for (int64_t k = 0; k < shape.directions; ++k)
    {
        reverse.push_back(static_cast<int32_t>(shape.reverseMask >> k & 1U));
    }
    for (size_t place = kD; place <= kINITIAL; ++place)
    {
        presence |= scan.has(kLETTERS[place]) ? 1 << (place - kD) : 0;
    }
    bool const isParser = !scan.hasDefaultFields;
    auto const number = [](int64_t value) { return std::vector<int32_t>{static_cast<int32_t>(value)}; };
    Fields const all{Field::ints("directions", number(shape.directions)), Field::ints("groups", number(shape.groups)),
        Field::ints("reverse", reverse), Field::ints("delta_softplus", number(shape.softplus)),
        Field::ints("segment", number(shape.segment)), Field::chars("merge", shape.mergeSum ? "sum" : "none", isParser),
        Field::chars("gate", scan.has('z') ? "silu" : "none", isParser), Field::ints("presence", {presence})};
    Fields given;
    for (Field const& field : all)
    {
        bool const isDefault = (field.name == "directions" && shape.directions == 1)
            || (field.name == "groups" && shape.groups == 1) || (field.name == "reverse" && shape.reverseMask == 0)
            || (field.name == "delta_softplus" && shape.softplus) || (field.name == "segment" && shape.segment == 0)
            || (field.name == "merge" && !shape.mergeSum) || field.name == "gate";
        if (!isDefault || !scan.hasDefaultFields)
        {
            given.push_back(field);
        }
    }
    return given;
}

//! Values that every row type holds exactly, so that the oracle sees what the plugin sees.
class Values
{
public:
    explicit Values(uint32_t seed)
        : mRandom(seed)
    {
    }
    naive::Values rows(int64_t count, int low = -127, int high = 127, double step = 1.0 / 64.0)
    {
        std::uniform_int_distribution<int> pick(low, high);
        naive::Values values(static_cast<size_t>(count));
        for (double& value : values)
        {
            value = pick(mRandom) * step;
        }
        return values;
    }
    naive::Values floats(int64_t count, float low, float high)
    {
        std::uniform_real_distribution<float> pick(low, high);
        naive::Values values(static_cast<size_t>(count));
        for (double& value : values)
        {
            value = static_cast<double>(pick(mRandom));
        }
        return values;
    }
    std::vector<int32_t> orders(int64_t count, int64_t length)
    {
        std::vector<int32_t> all;
        for (int64_t k = 0; k < count; ++k)
        {
            std::vector<int32_t> order(static_cast<size_t>(length));
            for (size_t t = 0; t < order.size(); ++t)
            {
                order[t] = static_cast<int32_t>(t);
            }
            std::shuffle(order.begin(), order.end(), mRandom);
            all.insert(all.end(), order.begin(), order.end());
        }
        return all;
    }

private:
    std::mt19937 mRandom;
};

naive::Problem problemFrom(ScanCase const& scan, int64_t batch, int64_t length, uint32_t seed)
{
    Values values(seed);
    naive::Problem problem{scan.shape, {}, {}};
    naive::Shape& shape = problem.shape;
    shape.batch = batch;
    shape.length = length;
    int64_t const rows = batch * length, wide = shape.wide(), states = shape.states;
    int64_t const columns = shape.directions * shape.groups * states;
    naive::Tensors& in = problem.in;
    in.u = values.rows(rows * (shape.uShared ? shape.channels : wide));
    in.dt = values.rows(rows * wide, -127, 32, 1.0 / 32.0);
    in.A = values.floats(wide * states, -8.0F, -0.05F);
    if (!shape.softplus) // then dt is the step itself, which is not negative
    {
        for (double& step : in.dt)
        {
            step = std::fabs(step);
        }
    }
    in.B = shape.bConstant ? values.floats(wide * states, -1.0F, 1.0F) : values.rows(rows * columns);
    in.C = shape.cConstant ? values.floats(wide * states, -1.0F, 1.0F) : values.rows(rows * columns);
    in.D = values.floats(scan.has('D') ? wide : 0, -1.0F, 1.0F);
    in.z = values.rows(scan.has('z') ? rows * shape.channels : 0);
    in.bias = values.floats(scan.has('b') ? wide : 0, 0.0F, 1.0F);
    in.initial = values.floats(scan.has('h') ? batch * wide * states : 0, -1.0F, 1.0F);
    problem.order = values.orders(scan.has('o') ? std::max<int64_t>(shape.orderRows, 1) : 0, length);
    return problem;
}

void requireClose(naive::Values const& found, naive::Values const& wanted, double limit, char const* name)
{
    require(found.size() == wanted.size(), text("%s: %zu values, %zu wanted", name, found.size(), wanted.size()));
    double largest = 1e-30, error = 0.0;
    size_t at = 0;
    for (size_t i = 0; i < wanted.size(); ++i)
    {
        largest = std::max(largest, std::fabs(wanted[i]));
        double const own = std::isfinite(found[i]) ? std::fabs(found[i] - wanted[i]) : HUGE_VAL;
        at = own > error ? i : at;
        error = std::max(error, own);
    }
    require(error <= limit * largest,
        text("%s: value %zu is %g, %g was wanted; error %.2e of the largest value, limit %.0e", name, at, found[at],
            wanted[at], error / largest, limit));
}

Execution executionFrom(ScanCase const& scan, int64_t batch, int64_t length, uint32_t seed)
{
    naive::Problem const problem = problemFrom(scan, batch, length, seed);
    naive::Tensors const& in = problem.in;
    std::vector<DataType> const types = inputTypes(scan, scan.rows);
    Execution execution;
    execution.name = text("batch %lld, length %lld", static_cast<long long>(batch), static_cast<long long>(length));
    execution.shapes = inputShapes(scan, batch, length);
    for (size_t place = 0; place <= kINITIAL; ++place)
    {
        if (place >= kD && !scan.has(kLETTERS[place]))
        {
            continue;
        }
        if (place == kORDER)
        {
            auto const* bytes = reinterpret_cast<unsigned char const*>(problem.order.data());
            execution.inputs.emplace_back(bytes, bytes + problem.order.size() * sizeof(int32_t));
            continue;
        }
        naive::Values const* const all[] = {
            &in.u, &in.dt, &in.A, &in.B, &in.C, &in.D, &in.z, &in.bias, nullptr, &in.initial};
        execution.inputs.push_back(bytesFrom(*all[place], types[execution.inputs.size()]));
    }
    double const limit = scan.limit > 0.0 ? scan.limit
        : scan.rows == DataType::kHALF    ? 1.5e-3
        : scan.rows == DataType::kBF16    ? 1.2e-2
                                          : 2e-6;
    naive::Result const wanted = naive::forward(problem);
    DataType const rows = scan.rows;
    execution.check = [wanted, limit, rows](std::vector<Bytes> const& outputs)
    {
        constexpr double kSTATE_LIMIT = 5e-6; // the state is fp32 whatever the rows are
        requireClose(valuesFrom(outputs[0], rows), wanted.y, limit, "y");
        requireClose(valuesFrom(outputs[1], DataType::kFLOAT), wanted.finalState, kSTATE_LIMIT, "final_state");
    };
    return execution;
}

//! NaNs everywhere and orders that name no token: nothing may be written outside, nothing else is said.
Execution hostileExecution(ScanCase const& scan, Execution const& like)
{
    Execution hostile = like;
    hostile.name = "NaN and no order";
    std::vector<DataType> const types = inputTypes(scan, scan.rows);
    for (size_t i = 0; i < types.size(); ++i)
    {
        std::fill(hostile.inputs[i].begin(), hostile.inputs[i].end(), kPOISON);
    }
    hostile.check = [](std::vector<Bytes> const&) {};
    return hostile;
}

} // namespace

Subject subjectFrom(ScanCase const& scan, uint32_t seed)
{
    Subject subject;
    subject.plugin = "SelectiveScan";
    subject.version = "1";
    subject.fields = fieldsFrom(scan);
    subject.tactics.assign(std::begin(kTACTICS), std::end(kTACTICS));
    auto const extremes = [](Dimensions const& all) { return std::minmax_element(all.begin(), all.end()); };
    auto const [fewest, most] = extremes(scan.batches);
    auto const [shortest, longest] = extremes(scan.lengths);
    Shapes const smallest = inputShapes(scan, *fewest, *shortest), largest = inputShapes(scan, *most, *longest);
    Shapes const typical = inputShapes(scan, scan.batches[0], scan.lengths[0]);
    std::vector<DataType> const types = inputTypes(scan, scan.rows);
    for (size_t i = 0; i < types.size(); ++i)
    {
        subject.inputs.push_back({types[i], smallest[i], typical[i], largest[i]});
    }
    subject.outputs = {scan.rows, DataType::kFLOAT};
    naive::Shape const shape = scan.shape;
    subject.outputShapes = [shape](Shapes const& inputs)
    {
        int64_t const columns = shape.mergeSum ? shape.channels : shape.wide();
        Dimensions const& dt = inputs[kDT];
        return Shapes{{dt[0], dt[1], columns}, {dt[0], shape.wide(), shape.states}};
    };
    subject.allows = [scan](std::vector<DataType> const& before, DataType type)
    {
        if (before.empty())
        {
            return type == DataType::kFLOAT || type == DataType::kHALF || type == DataType::kBF16;
        }
        std::vector<DataType> wanted = inputTypes(scan, before[0]);
        wanted.push_back(before[0]);
        wanted.push_back(DataType::kFLOAT);
        return type == wanted[before.size()];
    };
    size_t const runs = std::max(scan.batches.size(), scan.lengths.size());
    for (size_t i = 0; i < runs; ++i)
    {
        int64_t const batch = scan.batches[i % scan.batches.size()], length = scan.lengths[i % scan.lengths.size()];
        subject.executions.push_back(executionFrom(scan, batch, length, seed + static_cast<uint32_t>(i)));
    }
    if (scan.showsTactic)
    {
        subject.usesWorkspace = [](int32_t tactic, Execution const&) { return tactic == kCHUNKED; };
    }
    else
    {
        subject.executions.push_back(hostileExecution(scan, subject.executions.back()));
    }
    return subject;
}

} // namespace driver
} // namespace mambapose
