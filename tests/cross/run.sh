#!/usr/bin/env bash
# Compiles the tests for other processors and runs them with qemu-user. Nothing is installed for these processors: the
# libraries of the tests are unpacked in build/cross/<processor>/sysroot.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
. "$root/cmake/run_support.sh"

usage() {
  cat <<'USAGE'
usage: tests/cross/run.sh [aarch64|s390x|armhf ...] [--folders NAME,NAME]   (all three processors)
  aarch64  64-bit ARM, whose kernels are NEON's: every folder of tests that runs no other program
  s390x    big-endian: core, format, io
  armhf    32-bit ARM: core, layers, io
USAGE
}

processors=()
folders=
while [ $# -gt 0 ]; do
  case $1 in
    aarch64 | s390x | armhf) processors+=("$1") ;;
    --folders) folders=${2:?} && shift ;;
    *) usage && exit $([ "$1" = --help ] && echo 0 || echo 2) ;;
  esac
  shift
done
[ ${#processors[@]} -gt 0 ] || processors=(aarch64 s390x armhf)

# describe <processor>: sets triplet, debian (the name of the architecture), qemu and default_folders.
describe() {
  case $1 in
    aarch64) triplet=aarch64-linux-gnu debian=arm64 qemu=qemu-aarch64
      default_folders=core,kernels,format,weight,adapter,layers,model,optim,io ;;
    s390x) triplet=s390x-linux-gnu debian=s390x qemu=qemu-s390x default_folders=core,format,io ;;
    armhf) triplet=arm-linux-gnueabihf debian=armhf qemu=qemu-arm default_folders=core,layers,io ;;
  esac
}

# unpack_libraries <folder>: the tests' libraries of $debian, through lists of packages of its own.
unpack_libraries() {
  local state=$1/apt options package
  [ ! -f "$1/complete" ] || return 0
  mkdir -p "$state/lists/partial" "$state/cache/archives/partial" "$1/packages" "$1/sysroot"
  touch "$state/status"
  options=(-qq -o "Dir::State=$state" -o "Dir::State::status=$state/status" -o "Dir::Cache=$state/cache"
    -o "APT::Architecture=$debian" -o "APT::Architectures::=$debian" -o APT::Sandbox::User=root)
  apt-get "${options[@]}" update || say "Going on with the lists that could be fetched"
  (cd "$1/packages" && apt-get "${options[@]}" download libeigen3-dev nlohmann-json3-dev libcli11-dev libgtest-dev \
    librapidcheck-dev zlib1g zlib1g-dev libutf8proc2 libutf8proc-dev)
  for package in "$1"/packages/*.deb; do dpkg -x "$package" "$1/sysroot"; done
  touch "$1/complete"
}

for processor in "${processors[@]}"; do
  describe "$processor"
  build=$root/build/cross/$processor
  install_packages cmake ninja-build qemu-user "g++-${triplet//_/-}"
  say "Libraries for $processor"
  unpack_libraries "$build"
  say "Tests for $processor"
  cmake -S "$root" -B "$build/build" -G Ninja --log-level=WARNING -D CMAKE_TOOLCHAIN_FILE="$root/tests/cross/toolchain.cmake" \
    -D LORA_TRIPLET="$triplet" -D LORA_QEMU="$(command -v "$qemu")" -D LORA_SYSROOT="$build/sysroot" -D LORA_MPI=OFF \
    -D LORA_WARNINGS_AS_ERRORS=ON -D LORA_BUILD_TESTS=ON -D LORA_BUILD_BENCHMARKS=OFF -D LORA_BUILD_EXAMPLES=OFF \
    >/dev/null
  IFS=, read -ra chosen <<<"${folders:-$default_folders}"
  targets=("${chosen[@]/#/lora_}")
  targets=("${targets[@]/%/_tests}")
  cmake --build "$build/build" --parallel "$(jobs)" --target "${targets[@]}" >&2
  ctest --test-dir "$build/build" --no-tests=error --parallel "$(jobs)" --output-on-failure \
    -L "^($(IFS='|' && echo "${chosen[*]}"))\$" | tee "$build/tests.log"
done
grep -H 'tests passed' "$root"/build/cross/*/tests.log
