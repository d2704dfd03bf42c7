#!/usr/bin/env bash
# Lists the lines of include/ that no test runs. A slow check: everything is compiled once more, without optimisation.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
. "$root/cmake/run_support.sh"

usage() {
  cat <<TXT
usage: tests/coverage.sh [FOLDER...]

Builds the tests of these folders in build/coverage/, of all folders of include/lora/ by default, with g++ --coverage,
runs them, and prints for each of the headers how many lines ran and which did not. Of what a test needs another
program for, nothing is counted. With some folders only, the headers in include/lora/FOLDER are listed.
TXT
}

case ${1:-} in --help | -h) usage && exit ;; -*) die "unknown option '$1' (see --help)" ;; esac
folders=("$@")
filters=()
for folder; do
  [ -d "$root/include/lora/$folder" ] || die "no folder include/lora/$folder"
  filters+=(--filter "include/lora/$folder/")
done
if [ $# -eq 0 ]; then
  mapfile -t folders < <(find "$root/include/lora" -mindepth 1 -maxdepth 1 -type d -printf '%f\n' | sort)
  filters=(--filter include/)
fi

install_packages gcovr "${packages_tests[@]}"
build=$root/build/coverage
generator=()
command -v ninja >/dev/null && generator=(-G Ninja)
[ -f "$build/CMakeCache.txt" ] && generator=()
cmake -S "$root" -B "$build" "${generator[@]}" --log-level=WARNING -D CMAKE_CXX_COMPILER=g++ -D LORA_BUILD_TESTS=ON \
  -D LORA_BUILD_BENCHMARKS=OFF -D LORA_BUILD_EXAMPLES=OFF -D CMAKE_BUILD_TYPE=Coverage \
  -D CMAKE_CXX_FLAGS_COVERAGE="-O0 --coverage -fprofile-update=atomic" -D CMAKE_EXE_LINKER_FLAGS_COVERAGE=--coverage \
  >/dev/null

say "Building"
targets=()
for folder in "${folders[@]}"; do targets+=("lora_${folder}_tests"); done
cmake --build "$build" --parallel "$(jobs)" --target "${targets[@]}" >&2

say "Running"
find "$build" -name '*.gcda' -delete
status=0
for folder in "${folders[@]}"; do
  filter=*
  # The jobs of MPI start the program under mpirun, where it runs the other tests.
  [ "$folder" != mpi ] || filter=*Job.*
  (cd "$root" && "$build/tests/${folder}_tests" --gtest_brief=1 --gtest_filter="$filter") >&2 || status=$?
done

cd "$root"
gcovr --root "$root" --object-directory "$build" "${filters[@]}" --exclude-throw-branches --txt "$build/coverage.txt" \
  "$build"
cat "$build/coverage.txt"
exit $status
