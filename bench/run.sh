#!/usr/bin/env bash
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
. "$root/cmake/run_support.sh"

usage() {
  cat <<TXT
usage: bench/run.sh [--quick] [--json FILE] [--plots DIR] [--eigen DIR] [--ggml DIR] [--no-torch] [RATIOS_OPTION...]

Installs what is missing (Debian packages), builds build/bin/ratios and the peers whose libraries are present, and
runs it. The last lines of output, one per goal and case, are

  goal <id> <case> <value> <=|>= <target> ok|short|absent:<peers>

  --quick      under two minutes once built: fewer repetitions, without the largest cases
  --json FILE  all results as JSON
  --plots DIR  SVG plots: time over N against the roofline, ratio over r (takes some minutes more)
  --eigen DIR  another Eigen, the folder that holds Eigen/Core, as one more peer
  --ggml DIR   where ggml is installed (include/ggml-cpu.h, lib/), as a peer for weights of fewer bits
  --no-torch   leave libtorch out: its package is large
  --goal, --case, --list, --cold-mib: see build/bin/ratios --help
  --help       this text
TXT
}

eigen=
ggml=
torch=ON
arguments=()
while [ $# -gt 0 ]; do
  case $1 in
    --help | -h) usage && exit ;;
    --no-torch) torch=OFF ;;
    --eigen)
      [ $# -gt 1 ] || die "--eigen: expected a folder"
      [ -f "$2/Eigen/Core" ] || die "--eigen: no Eigen/Core in '$2'"
      eigen=$(cd "$2" && pwd)
      shift
      ;;
    --ggml)
      [ $# -gt 1 ] || die "--ggml: expected a folder"
      [ -f "$2/include/ggml-cpu.h" ] || die "--ggml: no include/ggml-cpu.h in '$2', where ggml should be installed"
      ggml=$(cd "$2" && pwd)
      shift
      ;;
    --eigen=* | --ggml=*)
      set -- "${1%%=*}" "${1#*=}" "${@:2}"
      continue
      ;;
    *) arguments+=("$1") ;;
  esac
  shift
done

packages_ratios=("${packages_benchmarks[@]}")
packages_peers=(libopenblas-dev libdnnl-dev)
[ $torch = OFF ] || packages_peers+=(libtorch-dev)

install_packages "${packages_ratios[@]}"
# A peer that cannot be installed is reported as absent.
for package in "${packages_peers[@]}"; do
  (install_packages "$package") || say "Going on without $package"
done
configure_part BENCHMARKS -D LORA_BENCH_EIGEN_DIR="$eigen" -D LORA_BENCH_GGML_DIR="$ggml" \
  -D LORA_BENCH_TORCH=$torch
build_target lora_ratios

# Some machines set these two, which forces a slow kernel on OpenBLAS. ratios also unsets them itself.
unset OPENBLAS_CORETYPE OPENBLAS_L2_SIZE
export OPENBLAS_NUM_THREADS=1 OMP_NUM_THREADS=1 OMP_WAIT_POLICY=passive
exec "$root/build/bin/ratios" ${arguments[@]+"${arguments[@]}"}
