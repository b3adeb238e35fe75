/* The CUDA kernels on the host shim against the naive scan, for the sanitizers: inputs, outputs and
 * workspace are heap blocks of exactly their size, and the order of threads and blocks changes from
 * call to call. With the sanitizer for threads, accesses of two GPU threads that no barrier orders are
 * found. Prints one line; exit 1 on a difference.
 * usage: cuda_selftest [CASES]: only so many of the cases, counted from the last one. */
#include "cuda/scan_cuda.h"
#include "tests/scan_cases.h"

#include <cstdlib>
#include <memory>
#include <set>
#include <tuple>

extern "C" void mambapose_shim_set_seed(uint64_t seed);

namespace
{

using namespace mambapose::cases;
using namespace mambapose::naive;

constexpr double kLIMITS[] = {2e-6, 1.5e-3, 1.2e-2}; //!< Of fp32, fp16 and bfloat16.
constexpr double kSTATE_LIMIT = 5e-6;
constexpr double kGRADIENT_LIMIT = 1e-5;
constexpr int32_t kTACTICS[]
    = {MAMBAPOSE_CUDA_AUTO, MAMBAPOSE_CUDA_SEQUENTIAL, MAMBAPOSE_CUDA_LANE_SPLIT, MAMBAPOSE_CUDA_CHUNKED};
constexpr int32_t kMULTIPROCESSORS[] = {1, 132};

//! Not a number at first, aligned as a workspace must be, and nothing behind it.
class Workspace
{
public:
    explicit Workspace(int64_t bytes)
        : mBytes(static_cast<size_t>(bytes))
    {
        void* memory = nullptr;
        if (posix_memalign(&memory, 256, mBytes) != 0)
        {
            std::abort();
        }
        mMemory.reset(static_cast<unsigned char*>(memory));
        std::memset(memory, 0xFF, mBytes);
    }
    void* data() const
    {
        return mBytes == 0 ? nullptr : mMemory.get();
    }
    size_t bytes() const
    {
        return mBytes;
    }

private:
    struct Free
    {
        void operator()(unsigned char* memory) const
        {
            std::free(memory);
        }
    };
    std::unique_ptr<unsigned char, Free> mMemory;
    size_t mBytes;
};

class Tester
{
public:
    Report report;
    int calls = 0;

    //! Every form of launch that a tactic or a number of multiprocessors leads to.
    void forward(Case const& c, Problem const& p, int32_t dtype, int64_t gap)
    {
        Result const wanted = mambapose::naive::forward(p);
        std::set<std::tuple<int64_t, int64_t, int64_t, int64_t, int64_t>> seen;
        for (int32_t const tactic : kTACTICS)
        {
            for (int32_t const multiprocessors : kMULTIPROCESSORS)
            {
                Call call(p, dtype, gap);
                MambaposeCudaPlan plan{};
                plan.structSize = sizeof plan;
                int const status = mambapose_scan_cuda_plan(
                    &call.params, tactic, multiprocessors, &plan, mError, sizeof mError);
                if (!good(c, status)
                    || !seen.emplace(plan.lanes, plan.statesPerLane, plan.chunkSteps, plan.fused, plan.threads).second)
                {
                    continue;
                }
                launch(c, call, plan);
                report.add(c, "y", difference(wanted.y, call.y.values()), kLIMITS[dtype]);
                Values const state(call.finalState.begin(), call.finalState.end());
                report.add(c, "final state", difference(wanted.finalState, state), kSTATE_LIMIT);
            }
        }
    }

    void backward(Case const& c, Problem const& p, Generator& generator)
    {
        Call call(p, MAMBAPOSE_FP32);
        Values const dY = generator.draw(static_cast<int64_t>(call.y.values().size()), -1.0, 1.0);
        Values const dFinal = generator.draw(static_cast<int64_t>(call.finalState.size()), -1.0, 1.0);
        Tensors const wanted = mambapose::naive::backward(p, dY, dFinal);
        Floats const fY = floatsOf(dY), fFinal = floatsOf(dFinal);
        Values const* const want[] = {&wanted.u, &wanted.dt, &wanted.A, &wanted.B, &wanted.C, &wanted.D, &wanted.z,
            &wanted.bias, &wanted.initial};
        std::vector<Floats> found;
        for (Values const* values : want)
        {
            found.emplace_back(values->size(), NAN);
        }
        MambaposeScanGrads const grads{sizeof grads, fY.data(), fFinal.data(), found[0].data(), found[1].data(),
            found[2].data(), found[3].data(), found[4].data(), found[5].data(), found[6].data(), found[7].data(),
            found[8].data()};
        for (int32_t const multiprocessors : kMULTIPROCESSORS)
        {
            int64_t bytes = 0;
            if (!good(c, mambapose_scan_cuda_backward_workspace(
                           &call.params, &grads, multiprocessors, &bytes, mError, sizeof mError)))
            {
                return;
            }
            Workspace const workspace(bytes);
            mambapose_shim_set_seed(static_cast<uint64_t>(++calls));
            good(c, mambapose_scan_cuda_backward(&call.params, &grads, multiprocessors, workspace.data(),
                        workspace.bytes(), nullptr, mError, sizeof mError));
            for (size_t i = 0; i < found.size(); ++i)
            {
                Values const values(found[i].begin(), found[i].end());
                report.add(c, kGRADIENTS[i], difference(*want[i], values), kGRADIENT_LIMIT);
                std::fill(found[i].begin(), found[i].end(), NAN);
            }
        }
    }

private:
    static constexpr char const* kGRADIENTS[]
        = {"gU", "gDt", "gA", "gB", "gC", "gD", "gZ", "gDtBias", "gInitialState"};

    void launch(Case const& c, Call& call, MambaposeCudaPlan const& plan)
    {
        Workspace const workspace(plan.workspaceBytes);
        mambapose_shim_set_seed(static_cast<uint64_t>(++calls));
        good(c, mambapose_scan_cuda(
                    &call.params, &plan, workspace.data(), workspace.bytes(), nullptr, mError, sizeof mError));
    }

    bool good(Case const& c, int status)
    {
        if (status != 0)
        {
            std::printf("%s: %s\n", c.name, mError);
            report.good = false;
        }
        return status == 0;
    }

    char mError[512] = "";
};

//! Longer ones than the CPU kernels' cases: the length in pieces, and many parts of a gradient.
std::vector<Case> longCases()
{
    //   batch length channels states directions groups segment reverse softplus merge shared B const C const orders
    return {
        {"pieces", {1, 260, 20, 16, 2, 1, 0, 2, true, true, true, false, false, 2}, true, true, true, true},
        {"windows", {1, 256, 6, 4, 2, 1, 32, 0, true, false, false, false, false, 1}, true, true, true, false},
        {"fused", {1, 150, 20, 4, 2, 1, 0, 2, true, true, true, false, false, 1}, true, true, true, false},
        {"many sums", {2, 270, 3, 2, 1, 1, 0, 0, true, false, true, false, false, 0}, true, true, true, true},
        {"group pieces", {1, 129, 12, 3, 1, 2, 0, 1, true, false, true, false, false, 0}, true, false, false, true},
    };
}

} // namespace

int main(int argc, char** argv)
{
    Tester tester;
    Generator generator(32.0);
    std::vector<Case> list = allCases();
    for (Case const& c : longCases())
    {
        list.push_back(c);
    }
    std::reverse(list.begin(), list.end());
    if (argc > 1)
    {
        list.resize(std::min<size_t>(list.size(), std::strtoull(argv[1], nullptr, 10)));
    }
    int64_t gap = 0;
    for (Case const& c : list)
    {
        Problem const p = generator.problem(c);
#ifdef __SANITIZE_THREAD__
        // Slow, and the type of the rows changes no barrier: each case in one of them.
        tester.forward(c, p, static_cast<int32_t>(gap % 3), gap % 5);
        ++gap;
#else
        for (int32_t const dtype : {MAMBAPOSE_FP32, MAMBAPOSE_FP16, MAMBAPOSE_BF16})
        {
            tester.forward(c, p, dtype, gap++ % 5);
        }
#endif
        tester.backward(c, p, generator);
    }
    std::printf("cuda: %zu cases in %d calls %s, worst error %.2f of its limit\n", list.size(), tester.calls,
        tester.report.good ? "agree" : "DIFFER", tester.report.worst);
    return tester.report.good ? 0 : 1;
}
