#!/usr/bin/env bash
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
. "$root/cmake/run_support.sh"

usage() {
  cat <<TXT
usage: tests/consumer/run.sh [--jobs N] [FILTER]

Compiles small programs that use the library as other projects do, and runs them: with g++ and clang++, as C++20 and
C++23, with no flag and with -fno-rtti, -ffast-math, -D_GLIBCXX_ASSERTIONS, from the headers and from single headers.
Each program has two translation units, and every warning is an error. Training and merging must give the same bits in
every build but those with -ffast-math, whose optimiser may round differently; unmerging restores the same weight in all.
About 15 minutes of processor time. FILTER: only the builds that match this regular expression, as in
'^g[+][+] c[+][+]20 -fno-rtti headers'.

  --jobs N  number of parallel compilers; by default the number of cores
  --help    this text
TXT
}

filter=
while [ $# -gt 0 ]; do
  case $1 in
    --help | -h) usage && exit ;;
    --jobs)
      [[ ${2:-} =~ ^[1-9][0-9]*$ ]] || die "--jobs: expected a number of at least 1, got '${2:-}'"
      LORA_JOBS=$2
      shift
      ;;
    -*) die "unknown option '$1' (see --help)" ;;
    *) filter=$1 ;;
  esac
  shift
done

install_packages "${packages_build[@]}" clang nlohmann-json3-dev
eigen=${EIGEN_INCLUDE:-/usr/include/eigen3}
[ -f "$eigen/Eigen/Core" ] || die "no Eigen in $eigen; name its folder in EIGEN_INCLUDE"

work=$root/build/consumer_matrix
rm -rf "$work"
mkdir -p "$work/single/lora"
# In the place of the headers they hold.
write_single_header() { cmake -D "HEADERS=$2" -D "OUTPUT=$work/single/lora/$1" -P "$root/cmake/single_header.cmake"; }
write_single_header lora.hpp lora/lora.hpp
write_single_header io.hpp "lora/lora.hpp;lora/io.hpp"

# build_and_run <name> <folder of headers> <compiler> <flag>...: leaves what the programs print in $work/<name>.bits.
build_and_run() {
  local name=$1 include=$2 compiler=$3
  shift 3
  local command=("$compiler" "$@" -Wall -Wextra -Wpedantic -Wshadow -Werror "-I$include" -isystem "$eigen")
  cd "$root/tests/consumer" &&
    "${command[@]}" -Dmain=main_of_other_unit -c main.cpp -o "$work/$name.other.o" &&
    "${command[@]}" bits_main.cpp "$work/$name.other.o" -o "$work/$name.training" &&
    "${command[@]}" io_main.cpp "$work/$name.other.o" -o "$work/$name.files" &&
    "$work/$name.training" >"$work/$name.bits" &&
    mkdir "$work/$name" && cd "$work/$name" && "$work/$name.files"
}

# run_build <compiler> <standard> <flag or none> <headers or single_header>
run_build() {
  local name=$1-$2${3/#none/}-$4 include=$root/include standard=$2 flags=()
  [ "$4" = headers ] || include=$work/single
  # What clang 14 calls it.
  [ "$2" != c++23 ] || standard=c++2b
  [ "$3" = none ] || flags=("$3")
  if (build_and_run "$name" "$include" "$1" "-std=$standard" "${flags[@]}") >"$work/$name.log" 2>&1; then
    echo "passed: $name"
  else
    printf 'FAILED: %s\n%s\n' "$name" "$(head -40 "$work/$name.log")"
    return 1
  fi
}

# require_same <file>...: all have the bytes of the first.
require_same() {
  local file status=0
  for file; do
    cmp -s "$1" "$file" && continue
    echo "FAILED: $(basename "$file") differs from $(basename "$1")"
    status=1
  done
  return $status
}

export root work eigen
export -f build_and_run run_build
for compiler in g++ clang++; do
  for standard in c++20 c++23; do
    for flag in none -fno-rtti -ffast-math -D_GLIBCXX_ASSERTIONS; do echo "$compiler $standard $flag headers"; done
    echo "$compiler $standard none single_header"
  done
done >"$work/builds"
grep -E -- "$filter" "$work/builds" >"$work/chosen" || die "no build matches '$filter'"
status=0
xargs -P "$(jobs)" -L 1 bash -c 'run_build "$@"' run_build <"$work/chosen" || status=1

# The bits of all builds, or for -ffast-math of the weights after unmerging.
shopt -s nullglob
exact=() unmerged=()
for bits in "$work"/*.bits; do
  grep '^unmerged' "$bits" >"$bits.unmerged"
  unmerged+=("$bits.unmerged")
  [[ $bits == *-ffast-math* ]] || exact+=("$bits")
done
require_same "${exact[@]}" || status=1
require_same "${unmerged[@]}" || status=1
[ $status = 0 ] && echo "All $(wc -l <"$work/chosen") builds passed, with the same bits"
exit $status
