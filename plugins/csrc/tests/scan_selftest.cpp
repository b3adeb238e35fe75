/* Compares every instruction set of the CPU kernels with the naive scan over shapes and flags, through
 * the C interface, and calls on several threads with calls on one: for machines without Python (an
 * emulated aarch64) and for the sanitizers. Buffers are exactly as large as the tensors. Prints one
 * line per instruction set; exit 1 on a difference. */
#include "tests/scan_cases.h"

#include <thread>

namespace
{

using namespace mambapose::cases;
using namespace mambapose::naive;

constexpr double kFP32_LIMIT = 2e-6;
constexpr double kFP16_LIMIT = 1.5e-3;
constexpr double kGRADIENT_LIMIT = 1e-5;

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
bool threadsChangeNothing(Generator& generator, int32_t dtype)
{
    Case const c{"threads", {2, 300, 89, 16, 2, 1, 0, 2, true, true, true, false, false, 2}, true, true, true, true};
    Problem const p = generator.problem(c);
    Call one(p, dtype);
    bool same = runs(one, 1, nullptr);
    for (MambaposeParallelFor const pool : {MambaposeParallelFor{nullptr}, MambaposeParallelFor{runOnPool}})
    {
        for (int32_t const threads : {2, 3, 8})
        {
            Call first(p, dtype), second(p, dtype);
            bool secondRuns = false;
            std::thread beside([&] { secondRuns = runs(second, threads, pool); });
            same = runs(first, threads, pool) && same;
            beside.join();
            for (Call const* call : {&first, &second})
            {
                same = same && call->y == one.y && call->finalState == one.finalState;
            }
            same = same && secondRuns;
        }
    }
    return same;
}

void checkForward(Case const& c, Problem const& p, int32_t dtype, Report& report)
{
    char error[256] = "";
    Call call(p, dtype);
    if (mambapose_scan_cpu(&call.params, error, sizeof error) != 0)
    {
        std::printf("%s: %s\n", c.name, error);
        report.good = false;
        return;
    }
    Result const wanted = forward(p);
    bool const half = dtype == MAMBAPOSE_FP16;
    report.add(c, half ? "fp16 y" : "y", difference(wanted.y, call.y.values()), half ? kFP16_LIMIT : kFP32_LIMIT);
    Values const state(call.finalState.begin(), call.finalState.end());
    report.add(c, "final state", difference(wanted.finalState, state), kFP32_LIMIT);
}

void checkBackward(Case const& c, Problem const& p, Generator& generator, Report& report)
{
    char error[256] = "";
    Call call(p, MAMBAPOSE_FP32);
    Values const dY = generator.draw(static_cast<int64_t>(call.y.values().size()), -1.0, 1.0);
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
        for (Case const& c : allCases())
        {
            Problem const p = generator.problem(c);
            checkForward(c, p, MAMBAPOSE_FP32, report);
            checkForward(c, p, MAMBAPOSE_FP16, report);
            checkBackward(c, p, generator, report);
        }
        bool const same = threadsChangeNothing(generator, MAMBAPOSE_FP32)
            && threadsChangeNothing(generator, MAMBAPOSE_FP16);
        std::printf("%s: %zu cases %s, worst error %.2f of its limit, threads change %s\n", isa, allCases().size(),
            report.good ? "agree" : "DIFFER", report.worst, same ? "nothing" : "RESULTS");
        good = good && report.good && same;
    }
    return good ? 0 : 1;
}
