#!/bin/sh
# Builds the CUDA kernels for the host (cuda_shim.h) with the compiler's sanitizers and runs them over the
# cases of cuda_selftest.cpp: with those for addresses and undefined behaviour, then with the one for
# threads, to which the threads of a block are threads. Exit 0 when nothing is found, 77 with the reason
# when the compiler lacks the sanitizers, else 1.
set -eu

here=$(cd "$(dirname "$0")" && pwd)
compiler=${CXX:-g++}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
addresses="-fsanitize=address,undefined -fno-sanitize-recover=all"
threads="-fsanitize=thread"
if ! command -v "$compiler" > /dev/null; then
    echo "skipped: no C++ compiler ($compiler)"
    exit 77
fi
for sanitizer in "$addresses" "$threads"; do
    if ! echo 'int main() {}' | "$compiler" $sanitizer -x c++ - -o "$work/probe" 2> /dev/null \
        || ! "$work/probe" 2> /dev/null; then
        echo "skipped: $compiler cannot build or this machine cannot run $sanitizer"
        exit 77
    fi
done
export MAIN="$here/cuda_selftest.cpp"
for sanitizer in "$addresses" "$threads"; do
    sh "$here/build_shim.sh" "$work/selftest" -g1 $sanitizer
    TSAN_OPTIONS=halt_on_error=1 "$work/selftest"
done
