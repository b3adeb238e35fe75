#!/bin/sh
# Builds the CPU kernels with the compiler's sanitizers and runs them over the cases of
# scan_selftest.cpp: every instruction set of this machine with those for addresses and undefined
# behaviour, the plain kernels with the one for threads (all share the code that splits the work).
# Exit 0 when nothing is found, 77 with the reason when the compiler lacks the sanitizers, else 1.
set -eu

here=$(cd "$(dirname "$0")" && pwd)
compiler=${CXX:-g++}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
flags="-std=c++17 -O1 -g -Wall -Wextra -pthread -I$here/.."
addresses="-fsanitize=address,undefined -fno-sanitize-recover=all"
threads="-fsanitize=thread"
if ! command -v "$compiler" > /dev/null; then
    echo "skipped: no C++ compiler ($compiler)"
    exit 77
fi
for sanitizer in "$addresses" "$threads"; do
    if ! echo 'int main() {}' | "$compiler" $flags $sanitizer -x c++ - -o "$work/probe" 2> /dev/null \
        || ! "$work/probe" 2> /dev/null; then
        echo "skipped: $compiler cannot build or this machine cannot run $sanitizer"
        exit 77
    fi
done

case $(uname -m) in
x86_64) avx2="-mavx2 -mfma -mf16c" avx512="-mavx2 -mfma -mf16c -mavx512f -mavx512bw -mavx512dq -mavx512vl" ;;
*) avx2="" avx512="" ;;
esac
for source in "$here"/../core/*.cpp "$here"/../cpu/*.cpp "$here"/scan_selftest.cpp; do
    name=$(basename "$source" .cpp)
    case $name in
    *_avx512) extra=$avx512 ;;
    *_avx2) extra=$avx2 ;;
    *) extra="" ;;
    esac
    "$compiler" $flags $addresses $extra -c "$source" -o "$work/$name.o"
    "$compiler" $flags $threads -c "$source" -o "$work/$name.threads.o"
done
"$compiler" $flags $threads "$work"/*.threads.o -o "$work/threads"
rm "$work"/*.threads.o
"$compiler" $flags $addresses "$work"/*.o -o "$work/selftest"
"$work/selftest"
"$work/threads"
