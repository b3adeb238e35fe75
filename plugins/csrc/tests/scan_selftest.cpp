/* Compares every instruction set of the CPU kernels with the naive scan over shapes and flags, through
 * the C interface, and calls on several threads with calls on one: for machines without Python (an
 * emulated aarch64) and for the sanitizers. Buffers are exactly as large as the tensors. Prints one
 * line per instruction set; exit 1 on a difference. */
#include "mambapose_scan.h"
#include "naive_scan.h"

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <functional>
#include <numeric>
#include <random>
#include <string>
#include <thread>

namespace
{

using namespace mambapose::naive;
using Floats = std::vector<float>;

constexpr double kFP32_LIMIT = 2e-6;
constexpr double kFP16_LIMIT = 1.5e-3;
constexpr double kGRADIENT_LIMIT = 1e-5;

struct Case
{
    char const* name;
    Shape shape;
    bool D, z, bias, initial;
};

std::vector<Case> cases()
{
    //   batch length channels states directions groups segment reverse softplus merge shared B const C const orders
    return {
        {"one step", {1, 1, 1, 1, 1, 1, 0, 0, true, false, true, false, false, 0}, false, false, false, false},
        {"empty", {1, 0, 5, 4, 1, 1, 0, 0, true, false, true, false, false, 0}, true, true, true, true},
        {"all", {2, 67, 16, 16, 1, 1, 0, 0, true, false, true, false, false, 0}, true, true, true, true},
        {"odd", {1, 131, 19, 7, 1, 1, 0, 1, true, false, true, false, false, 1}, true, true, true, true},
        {"merge", {2, 65, 33, 16, 2, 1, 0, 2, true, true, true, false, false, 0}, true, true, true, true},
        {"orders", {1, 70, 48, 5, 4, 1, 0, 12, true, true, false, false, false, 4}, true, false, true, false},
        {"groups", {1, 40, 24, 8, 2, 3, 0, 2, true, false, true, false, false, 2}, true, true, false, true},
        {"wide groups", {1, 35, 64, 4, 1, 2, 0, 0, true, false, true, false, false, 0}, true, false, true, false},
        {"own group", {1, 20, 6, 2, 1, 6, 0, 1, true, false, true, false, false, 0}, false, true, true, false},
        {"constant B", {2, 33, 18, 3, 1, 1, 0, 0, true, false, true, true, false, 0}, true, false, true, true},
        {"constant C", {2, 33, 18, 3, 2, 1, 0, 1, true, true, true, false, true, 0}, true, true, true, true},
        {"constant both", {1, 33, 38, 16, 1, 1, 0, 0, true, false, true, true, true, 0}, true, false, false, true},
        {"segments", {1, 100, 20, 4, 2, 1, 7, 2, true, true, true, false, false, 1}, true, true, true, false},
        {"long segments", {1, 150, 9, 16, 1, 1, 70, 1, true, false, true, false, false, 0}, true, true, true, false},
        {"many states", {1, 17, 8, 256, 1, 1, 0, 0, true, false, true, false, false, 0}, true, true, true, true},
        {"no softplus", {1, 30, 12, 2, 1, 1, 0, 0, false, false, true, false, false, 0}, true, true, false, true},
    };
}

class Generator
{
public:
    //! `count` values, rounded to half precision so that both types see the same numbers.
    Values draw(int64_t count, double low, double high)
    {
        std::uniform_real_distribution<double> uniform(low, high);
        Values values;
        for (int64_t i = 0; i < count; ++i)
        {
            values.push_back(std::round(uniform(mEngine) * 256.0) / 256.0);
        }
        return values;
    }

    std::vector<int32_t> permutations(int64_t rows, int64_t length)
    {
        std::vector<int32_t> order(static_cast<size_t>(rows * length));
        for (int64_t row = 0; row < rows; ++row)
        {
            auto const begin = order.begin() + row * length;
            std::iota(begin, begin + length, 0);
            std::shuffle(begin, begin + length, mEngine);
        }
        return order;
    }

    Problem problem(Case const& c)
    {
        Shape const& s = c.shape;
        int64_t const tokens = s.batch * s.length, wide = s.wide();
        int64_t const columns = s.directions * s.groups * s.states;
        Problem p{s, {}, permutations(s.orderRows, s.length)};
        p.in.u = draw(tokens * (s.uShared ? s.channels : wide), -2.0, 2.0);
        p.in.dt = s.softplus ? draw(tokens * wide, -5.0, 3.0) : draw(tokens * wide, 0.0, 1.0);
        p.in.A = draw(wide * s.states, -4.0, -0.1);
        p.in.B = draw(s.bConstant ? wide * s.states : tokens * columns, -1.0, 1.0);
        p.in.C = draw(s.cConstant ? wide * s.states : tokens * columns, -1.0, 1.0);
        p.in.D = draw(c.D ? wide : 0, -1.0, 1.0);
        p.in.z = draw(c.z ? tokens * s.channels : 0, -4.0, 4.0);
        p.in.bias = draw(c.bias ? wide : 0, -2.0, 0.0);
        p.in.initial = draw(c.initial ? s.batch * wide * s.states : 0, -1.0, 1.0);
        return p;
    }

private:
    std::mt19937 mEngine{7};
};

Floats floatsOf(Values const& values)
{
    return Floats(values.begin(), values.end());
}

//! Half precision bits of values that half precision holds exactly.
uint16_t halfBits(double value)
{
    if (value == 0.0)
    {
        return 0;
    }
    int exponent = 0;
    double const fraction = std::frexp(std::fabs(value), &exponent); // [0.5, 1)
    auto const mantissa = static_cast<unsigned>(fraction * 2048.0) & 0x3FFU;
    return static_cast<uint16_t>((value < 0 ? 0x8000U : 0U) | static_cast<unsigned>(exponent + 14) << 10 | mantissa);
}

double halfValue(uint16_t bits)
{
    int const exponent = (bits >> 10) & 31;
    double const mantissa = bits & 0x3FF;
    double const size = exponent == 0 ? std::ldexp(mantissa, -24) : std::ldexp(1024.0 + mantissa, exponent - 25);
    return (bits & 0x8000U) != 0 ? -size : size;
}

//! A tensor of rows in the type of the call, every buffer exactly as large as it must be.
struct Typed
{
    Floats floats;
    std::vector<uint16_t> halves;

    Typed(Values const& values, bool half)
    {
        for (double value : values)
        {
            half ? halves.push_back(halfBits(value)) : floats.push_back(static_cast<float>(value));
        }
        floats.shrink_to_fit();
        halves.shrink_to_fit();
    }
    void* data()
    {
        return halves.empty() ? static_cast<void*>(floats.data()) : static_cast<void*>(halves.data());
    }
    Values values() const
    {
        Values result(floats.begin(), floats.end());
        for (uint16_t bits : halves)
        {
            result.push_back(halfValue(bits));
        }
        return result;
    }
};

float const* orNull(Floats const& values)
{
    return values.empty() ? nullptr : values.data();
}

//! The C structure of a problem and the memory it points to.
struct Call
{
    Typed u, dt, B, C, z, y;
    Floats A, D, bias, initial, finalState;
    MambaposeScanParams params{};

    Call(Problem const& p, bool half)
        : u(p.in.u, half)
        , dt(p.in.dt, half)
        , B(p.in.B, half && !p.shape.bConstant)
        , C(p.in.C, half && !p.shape.cConstant)
        , z(p.in.z, half)
        , y(Values(p.in.dt.size() / static_cast<size_t>(p.shape.mergeSum ? p.shape.directions : 1), 1.0), half)
        , A(floatsOf(p.in.A))
        , D(floatsOf(p.in.D))
        , bias(floatsOf(p.in.bias))
        , initial(floatsOf(p.in.initial))
        , finalState(static_cast<size_t>(p.shape.batch * p.shape.wide() * p.shape.states))
    {
        Shape const& s = p.shape;
        params.structSize = sizeof params;
        params.dtype = half ? MAMBAPOSE_FP16 : MAMBAPOSE_FP32;
        params.batch = s.batch;
        params.length = s.length;
        params.channels = s.channels;
        params.states = s.states;
        params.directions = s.directions;
        params.groups = s.groups;
        params.segment = s.segment;
        params.reverseMask = s.reverseMask;
        params.deltaSoftplus = s.softplus;
        params.mergeSum = s.mergeSum;
        params.uShared = s.uShared;
        params.bConstant = s.bConstant;
        params.cConstant = s.cConstant;
        params.orderRows = static_cast<int32_t>(std::max<int64_t>(s.orderRows, 1));
        int64_t const columns = s.directions * s.groups * s.states;
        params.u = rows(u, s, s.uShared ? s.channels : s.wide());
        params.dt = rows(dt, s, s.wide());
        params.B = rows(B, s, s.bConstant ? s.states : columns);
        params.C = rows(C, s, s.cConstant ? s.states : columns);
        params.z = rows(z, s, s.channels);
        params.y = rows(y, s, s.mergeSum ? s.channels : s.wide());
        params.A = A.data();
        params.D = orNull(D);
        params.dtBias = orNull(bias);
        params.order = p.order.empty() ? nullptr : p.order.data();
        params.initialState = orNull(initial);
        params.finalState = finalState.data();
        params.numThreads = 1;
    }

    static MambaposeRows rows(Typed& tensor, Shape const& s, int64_t columns)
    {
        return {tensor.data(), s.length * columns, columns};
    }
};

//! Largest difference relative to the largest wanted value.
double difference(Values const& wanted, Values const& found)
{
    double worst = 0.0, largest = 1e-30;
    for (size_t i = 0; i < wanted.size(); ++i)
    {
        double const error = std::fabs(wanted[i] - found[i]);
        worst = std::isnan(error) ? 1e30 : std::max(worst, error);
        largest = std::max(largest, std::fabs(wanted[i]));
    }
    return wanted.size() == found.size() ? worst / largest : 1e30;
}

struct Report
{
    bool good = true;
    double worst = 0.0;

    void add(Case const& c, char const* what, double error, double limit)
    {
        worst = std::max(worst, error / limit);
        if (!(error <= limit))
        {
            good = false;
            std::printf("%s, %s: error %.3g, limit %.3g\n", c.name, what, error, limit);
        }
    }
};

//! A caller's pool: a thread per task.
void runOnPool(void*, MambaposeTask body, void* bodyContext, size_t count)
{
    std::vector<std::thread> threads;
    for (size_t i = 0; i < count; ++i)
    {
        threads.emplace_back(body, bodyContext, i);
    }
    for (std::thread& thread : threads)
    {
        thread.join();
    }
}

bool runs(Call& call, int32_t threads, MambaposeParallelFor pool)
{
    call.params.numThreads = threads;
    call.params.parallelFor = pool;
    return mambapose_scan_cpu(&call.params, nullptr, 0) == 0;
}

//! Large enough to be split: the same bits for every number of threads, and from two calls at a time.
bool threadsChangeNothing(Generator& generator, bool half)
{
    Case const c{"threads", {2, 300, 89, 16, 2, 1, 0, 2, true, true, true, false, false, 2}, true, true, true, true};
    Problem const p = generator.problem(c);
    Call one(p, half);
    bool same = runs(one, 1, nullptr);
    for (MambaposeParallelFor const pool : {MambaposeParallelFor{nullptr}, MambaposeParallelFor{runOnPool}})
    {
        for (int32_t const threads : {2, 3, 8})
        {
            Call first(p, half), second(p, half);
            bool secondRuns = false;
            std::thread beside([&] { secondRuns = runs(second, threads, pool); });
            same = runs(first, threads, pool) && same;
            beside.join();
            for (Call const* call : {&first, &second})
            {
                same = same && call->y.floats == one.y.floats && call->y.halves == one.y.halves
                    && call->finalState == one.finalState;
            }
            same = same && secondRuns;
        }
    }
    return same;
}

void checkForward(Case const& c, Problem const& p, bool half, Report& report)
{
    char error[256] = "";
    Call call(p, half);
    if (mambapose_scan_cpu(&call.params, error, sizeof error) != 0)
    {
        std::printf("%s: %s\n", c.name, error);
        report.good = false;
        return;
    }
    Result const wanted = forward(p);
    report.add(c, half ? "fp16 y" : "y", difference(wanted.y, call.y.values()), half ? kFP16_LIMIT : kFP32_LIMIT);
    Values const state(call.finalState.begin(), call.finalState.end());
    report.add(c, "final state", difference(wanted.finalState, state), kFP32_LIMIT);
}

void checkBackward(Case const& c, Problem const& p, Generator& generator, Report& report)
{
    char error[256] = "";
    Call call(p, false);
    Values const dY = generator.draw(static_cast<int64_t>(call.y.floats.size()), -1.0, 1.0);
    Values const dFinal = generator.draw(static_cast<int64_t>(call.finalState.size()), -1.0, 1.0);
    Tensors const wanted = backward(p, dY, dFinal);
    Floats const fY = floatsOf(dY), fFinal = floatsOf(dFinal);
    Values const* const want[] = {&wanted.u, &wanted.dt, &wanted.A, &wanted.B, &wanted.C, &wanted.D, &wanted.z,
        &wanted.bias, &wanted.initial};
    char const* const names[] = {"gU", "gDt", "gA", "gB", "gC", "gD", "gZ", "gDtBias", "gInitialState"};
    std::vector<Floats> found;
    for (Values const* values : want)
    {
        found.emplace_back(values->size(), 1.0F);
    }
    MambaposeScanGrads grads{sizeof grads, fY.data(), fFinal.data(), found[0].data(), found[1].data(), found[2].data(),
        found[3].data(), found[4].data(), found[5].data(), found[6].data(), found[7].data(), found[8].data()};
    if (mambapose_scan_cpu_backward(&call.params, &grads, error, sizeof error) != 0)
    {
        std::printf("%s: %s\n", c.name, error);
        report.good = false;
        return;
    }
    for (size_t i = 0; i < found.size(); ++i)
    {
        report.add(c, names[i], difference(*want[i], Values(found[i].begin(), found[i].end())), kGRADIENT_LIMIT);
    }
}

} // namespace

int main()
{
    bool good = true;
    for (char const* isa : {"scalar", "avx2", "avx512", "neon"})
    {
        if (mambapose_scan_force_isa(isa) != 0)
        {
            continue;
        }
        Report report;
        Generator generator;
        for (Case const& c : cases())
        {
            Problem const p = generator.problem(c);
            checkForward(c, p, false, report);
            checkForward(c, p, true, report);
            checkBackward(c, p, generator, report);
        }
        bool const same = threadsChangeNothing(generator, false) && threadsChangeNothing(generator, true);
        std::printf("%s: %zu cases %s, worst error %.2f of its limit, threads change %s\n", isa, cases().size(),
            report.good ? "agree" : "DIFFER", report.worst, same ? "nothing" : "RESULTS");
        good = good && report.good && same;
    }
    return good ? 0 : 1;
}
