#include "cpu/scan_driver.h"

#include <atomic>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <memory>
#include <mutex>
#include <stdexcept>
#include <string>
#include <system_error>
#include <thread>
#include <vector>

#if defined(__x86_64__)
#include <cpuid.h>
#endif

namespace mambapose
{
namespace
{

//! State updates below which a further thread costs more than it gains: a pool's, and one started for the call.
constexpr int64_t kPOOL_GRAIN = 1 << 17;
constexpr int64_t kTHREAD_GRAIN = 1 << 20;

#if defined(__x86_64__)
bool hasHalfConversion()
{
    unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
    return __get_cpuid(1, &eax, &ebx, &ecx, &edx) != 0 && (ecx & bit_F16C) != 0;
}

bool runsAvx2()
{
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && hasHalfConversion();
}

bool runsAvx512()
{
    return runsAvx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw")
        && __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
}
#else
bool runsAvx2()
{
    return false;
}

bool runsAvx512()
{
    return false;
}
#endif

std::vector<ScanKernels const*> findKernels()
{
    std::vector<ScanKernels const*> usable;
    ScanKernels const* const offered[] = {runsAvx512() ? avx512Kernels() : nullptr,
        runsAvx2() ? avx2Kernels() : nullptr, neonKernels(), scalarKernels()};
    for (ScanKernels const* kernels : offered)
    {
        if (kernels != nullptr)
        {
            usable.push_back(kernels);
        }
    }
    return usable;
}

//! Kernels compiled in and able to run here, best first. Asked once: a virtual machine answers cpuid slowly.
std::vector<ScanKernels const*> const& usableKernels()
{
    static std::vector<ScanKernels const*> const kUSABLE = findKernels();
    return kUSABLE;
}

std::atomic<ScanKernels const*>& chosenKernels()
{
    static std::atomic<ScanKernels const*> chosen{usableKernels().front()};
    return chosen;
}

//! Asked once: the C library reads a file of the kernel for it.
int64_t coreCount()
{
    static int64_t const kCORES = std::thread::hardware_concurrency();
    return kCORES;
}

//! Exceptions must not cross the pool's C callback: the first one waits here.
struct Failure
{
    std::mutex mutex;
    std::exception_ptr first;

    void keep()
    {
        std::lock_guard<std::mutex> const lock(mutex);
        if (!first)
        {
            first = std::current_exception();
        }
    }
};

struct TaskList
{
    std::function<void(int64_t)> const& body;
    Failure failure;

    static void run(void* context, size_t index)
    {
        auto* const self = static_cast<TaskList*>(context);
        try
        {
            self->body(static_cast<int64_t>(index));
        }
        catch (...)
        {
            self->failure.keep();
        }
    }
};

void runOnOwnThreads(TaskList& list, int64_t threads, int64_t count)
{
    std::atomic<int64_t> next{0};
    auto const work = [&]
    {
        for (int64_t i = next++; i < count; i = next++)
        {
            TaskList::run(&list, static_cast<size_t>(i));
        }
    };
    std::vector<std::thread> helpers;
    helpers.reserve(static_cast<size_t>(threads < count ? threads : count));
    try
    {
        for (int64_t i = 1; i < threads && i < count; ++i)
        {
            helpers.emplace_back(work);
        }
    }
    catch (std::system_error const&)
    {
        // The system grants no more threads: those that run, this one at least, take all the tasks.
    }
    work();
    for (std::thread& helper : helpers)
    {
        helper.join();
    }
}

} // namespace

ScanKernels const* activeKernels()
{
    return chosenKernels().load();
}

bool forceKernels(char const* name)
{
    for (ScanKernels const* kernels : usableKernels())
    {
        if (name == nullptr || std::strcmp(name, kernels->name) == 0)
        {
            chosenKernels().store(kernels);
            return true;
        }
    }
    return false;
}

int64_t usefulThreads(MambaposeScanParams const& params)
{
    int64_t const cores = params.numThreads > 0 ? params.numThreads : coreCount();
    int64_t const updates
        = params.batch * params.length * params.directions * params.channels * (params.states + 4);
    int64_t const worth = updates / (params.parallelFor != nullptr ? kPOOL_GRAIN : kTHREAD_GRAIN);
    int64_t const threads = cores < worth ? cores : worth;
    return threads < 1 ? 1 : threads;
}

void runTasks(
    MambaposeScanParams const& params, int64_t threads, int64_t count, std::function<void(int64_t)> const& body)
{
    TaskList list{body, {}};
    if (params.parallelFor != nullptr && threads > 1 && count > 1)
    {
        params.parallelFor(params.poolContext, &TaskList::run, &list, static_cast<size_t>(count));
    }
    else
    {
        runOnOwnThreads(list, threads, count);
    }
    if (list.failure.first)
    {
        std::rethrow_exception(list.failure.first);
    }
}

void withScratch(int64_t floats, std::function<void(float*)> const& body)
{
    constexpr size_t kLINE = 64;
    size_t const bytes = (static_cast<size_t>(floats) * sizeof(float) + kLINE - 1) / kLINE * kLINE;
    auto const release = [](void* p) { std::free(p); };
    std::unique_ptr<void, decltype(release)> const memory(std::aligned_alloc(kLINE, bytes + kLINE), release);
    if (memory == nullptr)
    {
        throw std::runtime_error("scratch: " + std::to_string(bytes) + " bytes of memory were wanted, found none");
    }
    body(static_cast<float*>(memory.get()));
}

} // namespace mambapose
