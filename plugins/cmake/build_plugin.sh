#!/bin/sh
# Builds the GPU libraries on the machine that will run them: build_plugin.sh [FOLDER]
#   TENSORRT_ROOT  folder with include/NvInfer.h, where TensorRT is not installed as a package
#   CUDA_ARCHS     architectures, such as 87 or "87;110"; default: the GPU of this machine
#   CUDACXX        nvcc, where it is neither on PATH nor in /usr/local/cuda
#   PLUGIN_DRIVER  1: also trt_driver, which drives the plugin on this machine's GPU
#   PLUGIN_FLAGS   further flags for CMake, such as -DMAMBAPOSE_TRT_STATIC_REGISTRATION=ON
# Says in one sentence what is missing; exit status 1.
set -u

source=$(cd "$(dirname "$0")/.." && pwd)
build=${1:-build/plugin}
targets="mambapose_cuda mambapose_trt"
driver=OFF
if [ -n "${PLUGIN_DRIVER:-}" ]; then
    targets="$targets trt_driver"
    driver=ON
fi

fail() {
    echo "mambapose: $*" >&2
    exit 1
}

command -v cmake >/dev/null || fail "cmake 3.20 or newer was wanted, found none; install cmake"
mkdir -p "$build" || fail "a folder to build in was wanted, found that $build cannot be made"
if [ -n "${CUDA_ARCHS:-}" ]; then
    archs="-DCMAKE_CUDA_ARCHITECTURES=$CUDA_ARCHS"
else
    archs="-UCMAKE_CUDA_ARCHITECTURES"
fi
# shellcheck disable=SC2086
if ! cmake -S "$source" -B "$build" -DMAMBAPOSE_CUDA=ON -DMAMBAPOSE_TRT=ON -DMAMBAPOSE_FETCH_HEADERS=OFF \
    -DMAMBAPOSE_TRT_STATIC_REGISTRATION=OFF -DMAMBAPOSE_TRT_DRIVER=$driver -DTENSORRT_ROOT="${TENSORRT_ROOT:-}" "$archs" ${PLUGIN_FLAGS:-} >"$build/configure.log" 2>&1; then
    sentence=$(sed -n 's/^ *mambapose: //p' "$build/configure.log" | head -n 1)
    fail "${sentence:-CMake could not configure the plugin; it says why in $build/configure.log}"
fi
for target in $targets; do
    echo "building $target"
    cmake --build "$build" --target "$target" --parallel "$(nproc)" >"$build/$target.log" 2>&1 \
        || { tail -n 20 "$build/$target.log" >&2; fail "$target was not built; the whole log is $build/$target.log"; }
done
sed -n 's/^-- mambapose: \(GPU kernels\|TensorRT plugin\)/\1/p' "$build/configure.log"
for target in mambapose_cuda mambapose_trt; do
    echo "$build/lib$target.so"
done
