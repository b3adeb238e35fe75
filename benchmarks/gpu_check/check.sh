#!/bin/sh
# Builds the CUDA selective scan for the GPU of this machine, compares it with the oracle and times
# it; exit status 1 when something is wrong, a bar is missed, or there is no GPU, nvcc or torch.
#   MAMBA_SSM_SDIST=mamba_ssm-2.3.2.post1.tar.gz sh benchmarks/gpu_check/check.sh [options]
# Options: --help lists them. Runs from the source tree: mambapose need not be installed.
set -eu
root=$(cd "$(dirname "$0")/../.." && pwd)
links=$(mktemp -d)
trap 'rm -rf "$links"' EXIT
trap 'exit 1' INT TERM
mkdir "$links/mambapose"
for part in runtime plugins export benchmarks train; do
    ln -s "$root/$part" "$links/mambapose/$part"
done
PYTHONPATH="$links${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1 \
    "${PYTHON:-python3}" -m mambapose.benchmarks.gpu_check.check "$@"
