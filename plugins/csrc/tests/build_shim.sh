#!/bin/sh
# usage: build_shim.sh OUT [compiler flags]
# The CUDA sources compiled as C++ with the host shim into the shared library OUT, or into a program when
# MAIN names its source. Further flags come last, so -O2, -D... or -fsanitize=... win. CSRC names another
# folder of sources (for tests that patch them), CXX the compiler.
set -eu

here=$(cd "$(dirname "$0")" && pwd)
csrc=${CSRC:-$here/..}
compiler=${CXX:-g++}
out=$1
shift
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
# No strict aliasing, since nvcc has none either; fused products as nvcc makes them are left to fmaf.
flags="-std=c++17 -O1 -Wall -Wextra -Werror -fPIC -fvisibility=hidden -fno-strict-aliasing -pthread"
own=""
case " $* " in
*fsanitize=*address* | *fsanitize=thread*) own="-DMAMBAPOSE_SHIM_SANITIZED" ;;
esac
case " $* " in
# The shim is many threads to the sanitizer and shares its data among them on purpose.
*fsanitize=thread*) own="$own -DMAMBAPOSE_SHIM_THREADS -fno-sanitize=thread" ;;
esac
objects=""
for source in "$here"/cuda_shim.cpp "$here"/cuda_block.cpp "$here"/cuda_fiber.cpp; do
    object=$work/$(basename "$source").o
    "$compiler" $flags -I"$here/.." "$@" $own -c "$source" -o "$object"
    objects="$objects $object"
done
for source in "$csrc"/cuda/*.cu "$csrc"/cuda/*.cpp "$csrc"/core/scan_check.cpp ${MAIN:-}; do
    object=$work/$(basename "$source").o
    "$compiler" $flags -I"$csrc" -I"$here/.." "$@" -x c++ -c "$source" -o "$object"
    objects="$objects $object"
done
if [ -n "${MAIN:-}" ]; then
    "$compiler" -pthread "$@" $objects -o "$out"
else
    "$compiler" -shared -pthread "$@" $objects -o "$out"
fi
