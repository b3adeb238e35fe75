#!/bin/sh
# Builds the CPU kernels for aarch64 and compares them with the naive scan under user-mode emulation.
# Exit 0 when they agree, 77 with the reason when a tool is absent, else 1.
set -eu

here=$(cd "$(dirname "$0")" && pwd)
compiler=${AARCH64_CXX:-aarch64-linux-gnu-g++}
emulator=${AARCH64_RUN:-}
if [ -z "$emulator" ]; then
    emulator=$(command -v qemu-aarch64-static || command -v qemu-aarch64 || true)
fi
if ! command -v "$compiler" > /dev/null; then
    echo "skipped: no aarch64 compiler ($compiler); install g++-aarch64-linux-gnu"
    exit 77
fi
if [ -z "$emulator" ]; then
    echo "skipped: no aarch64 emulator; install qemu-user-static"
    exit 77
fi

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
for source in "$here"/scan_selftest.cpp "$here"/../core/*.cpp "$here"/../cpu/*.cpp; do
    "$compiler" -std=c++17 -O2 -Wall -Wextra -Werror -I"$here/.." -c "$source" -o "$work/$(basename "$source").o"
done
"$compiler" -static -pthread "$work"/*.o -o "$work/selftest"
status=0
"$emulator" "$work/selftest" > "$work/log" || status=1
cat "$work/log"
if ! grep -q '^neon: ' "$work/log"; then
    echo "the NEON kernels were not offered"
    status=1
fi
exit $status
