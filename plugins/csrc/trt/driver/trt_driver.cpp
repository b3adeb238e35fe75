/* Loads a build of the TensorRT plugin as TensorRT does and drives it through a network's life,
 * comparing what it computes with the oracle. One line per case and a summary; exit status 0 when
 * all is right, 1 when a case failed, 2 on usage, 3 when an exception left the plugin, 4 on a signal.
 *
 *     trt_driver LIBRARY --shim [CASE...]     host memory: for a library built with the host shim
 *     trt_driver LIBRARY [CASE...]            GPU memory, graph capture: built with -DWITH_CUDA
 *
 * Driver and library are built with headers of the same major release of TensorRT. On a GPU machine:
 *     nvcc -std=c++17 -O2 -DWITH_CUDA -I../.. -I$TENSORRT_ROOT/include trt_driver*.cpp -ldl -o trt_driver
 */
#include "trt/driver/trt_driver_scan.h"

#include <map>

namespace
{

using namespace mambapose::driver;

struct Options
{
    std::string library;
    std::vector<std::string> names;
    bool isVerbose = false, isShim = false;
};

int usage(char const* complaint)
{
    std::printf("%s\nusage: trt_driver LIBRARY [--shim] [--verbose] [CASE...]\n", complaint);
    return 2;
}

bool isWanted(Options const& options, std::string const& name)
{
    return options.names.empty() || std::count(options.names.begin(), options.names.end(), name) > 0;
}

//! Runs `work` and prints its line; whether it was right.
template <typename Work>
bool report(std::string const& name, Work const& work)
{
    try
    {
        std::string const line = work();
        std::printf("ok %s: %s\n", name.c_str(), line.c_str());
        return true;
    }
    catch (Complaint const& complaint)
    {
        std::printf("complaint: %s: %s\n", name.c_str(), complaint.what());
        return false;
    }
}

//! Attributes as one text, to compare with the names that the timing cache goes by.
std::string keyOf(Fields const& fields)
{
    std::string key;
    for (Field const& field : fields)
    {
        bool const isMachine = field.name == "multiprocessors"; // known only once the plugin is configured
        key += isMachine ? "" : field.name + "=" + std::string(field.bytes.begin(), field.bytes.end()) + ";";
    }
    return key;
}

std::string runCase(Library const& library, ScanCase const& scan, std::map<std::string, std::string>& ids)
{
    Subject const subject = subjectFrom(scan, 7);
    Built const built = drive(library, subject);
    auto const known = ids.emplace(built.timingCacheId, keyOf(built.fields)).first;
    require(known->second == keyOf(built.fields), "nodes with different attributes have one timing cache id");
    return text("%zu fields, %zu tactics, %zu format queries, %zu runs, workspace %zu bytes", built.fields.size(),
        built.tactics.size(), built.formatQueries, subject.executions.size(), built.workspaceBytes);
}

int run(Options const& options)
{
    Log log;
    log.setVerbose(options.isVerbose);
    Library const library(options.library, log);
    std::map<std::string, std::string> ids;
    int good = 0, bad = 0;
    for (ScanCase const& scan : scanCases())
    {
        if (isWanted(options, scan.name))
        {
            bool const isRight = report(scan.name, [&] { return runCase(library, scan, ids); });
            ++(isRight ? good : bad);
        }
    }
    std::printf("%d of %d right\n", good, good + bad);
    return good > 0 && bad == 0 ? 0 : 1;
}

} // namespace

int main(int count, char** arguments)
{
    Options options;
    for (int i = 1; i < count; ++i)
    {
        std::string const word = arguments[i];
        if (word == "--shim" || word == "--verbose")
        {
            (word == "--shim" ? options.isShim : options.isVerbose) = true;
        }
        else if (options.library.empty())
        {
            options.library = word;
        }
        else
        {
            options.names.push_back(word);
        }
    }
    if (options.library.empty())
    {
        return usage("a plugin library was wanted, found none");
    }
#ifdef WITH_CUDA
    bool const wantsShim = false;
#else
    bool const wantsShim = true;
#endif
    if (options.isShim != wantsShim)
    {
        return usage(wantsShim ? "this driver has host memory only: give it a library with the host shim and --shim"
                               : "this driver has GPU memory: it takes no library with the host shim");
    }
    installHandlers();
    setvbuf(stdout, nullptr, _IOLBF, BUFSIZ);
    try
    {
        return run(options);
    }
    catch (std::exception const& error)
    {
        std::printf("complaint: %s\n", error.what());
        return 1;
    }
}
