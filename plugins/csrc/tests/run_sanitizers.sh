#!/bin/sh
# Builds the CPU kernels with AddressSanitizer and UndefinedBehaviorSanitizer and runs every
# instruction set of this machine over the cases of scan_selftest.cpp.
# Exit 0 when nothing is found, 77 with the reason when the compiler lacks the sanitizers, else 1.
set -eu

here=$(cd "$(dirname "$0")" && pwd)
compiler=${CXX:-g++}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
flags="-std=c++17 -O1 -g -Wall -Wextra -pthread -fsanitize=address,undefined -fno-sanitize-recover=all"
if ! command -v "$compiler" > /dev/null; then
    echo "skipped: no C++ compiler ($compiler)"
    exit 77
fi
if ! echo 'int main() {}' | "$compiler" $flags -x c++ - -o "$work/probe" 2> /dev/null; then
    echo "skipped: $compiler cannot link the sanitizers"
    exit 77
fi

case $(uname -m) in
x86_64) avx2="-mavx2 -mfma -mf16c" avx512="-mavx2 -mfma -mf16c -mavx512f -mavx512bw -mavx512dq -mavx512vl" ;;
*) avx2="" avx512="" ;;
esac
for source in "$here"/../scan_*.cpp "$here"/scan_selftest.cpp; do
    name=$(basename "$source" .cpp)
    case $name in
    *_avx512) extra=$avx512 ;;
    *_avx2) extra=$avx2 ;;
    *) extra="" ;;
    esac
    "$compiler" $flags $extra -I"$here/.." -c "$source" -o "$work/$name.o"
done
"$compiler" $flags "$work"/*.o -o "$work/selftest"
"$work/selftest"
