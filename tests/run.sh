#!/usr/bin/env bash
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
. "$root/cmake/run_support.sh"

usage() {
  cat <<TXT
usage: tests/run.sh [--strict] [--jobs N] [FOLDER | FILTER]
       tests/run.sh --conformance DIR...

Installs what is missing (Debian packages), builds in build/, and runs all tests. With FOLDER, a folder below tests/,
builds and runs only its tests (headers: every header alone; guide: the samples of docs/guide); with FILTER, runs only
the tests whose names match this regular expression.

  --strict              every compiler warning is an error
  --jobs N              number of parallel compilers and tests; by default the number of cores
  --filter FILTER       the same as FILTER; for use with FOLDER, or if FILTER is also a folder's name
  --conformance DIR...  run the conformance program on these folders instead
  --help                this text
TXT
}

warnings_as_errors=OFF
filter=
folder=
conformance=()
while [ $# -gt 0 ]; do
  case $1 in
    --help | -h) usage && exit ;;
    --strict) warnings_as_errors=ON ;;
    --jobs | --filter)
      [ $# -gt 1 ] || die "$1: expected a value"
      if [ "$1" = --filter ]; then
        filter=$2
      else
        [[ $2 =~ ^[1-9][0-9]*$ ]] || die "--jobs: expected a number of at least 1, got '$2'"
        LORA_JOBS=$2
      fi
      shift
      ;;
    --jobs=* | --filter=*)
      set -- "${1%%=*}" "${1#*=}" "${@:2}"
      continue
      ;;
    --conformance)
      shift
      [ $# -gt 0 ] || die "--conformance: expected at least one folder"
      for argument; do
        [ -d "$argument" ] || die "--conformance: no folder '$argument'"
        conformance+=("$argument")
      done
      break
      ;;
    -*) die "unknown option '$1' (see --help)" ;;
    *)
      [ -z "$folder$filter" ] || die "more than one folder or filter: '$1'"
      name=${1#tests/}
      name=${name%/}
      if [[ $name =~ ^(headers|guide)$ || ($name =~ ^[A-Za-z0-9_]+$ && -d $root/tests/$name) ]]; then
        folder=$name
      else
        filter=$1
      fi
      ;;
  esac
  shift
done

install_packages "${packages_tests[@]}"
configure_part TESTS -D LORA_WARNINGS_AS_ERRORS=$warnings_as_errors

if [ ${#conformance[@]} -gt 0 ]; then
  compgen -G "$root/tests/conformance/*.cpp" >/dev/null || die "this tree has no conformance program"
  build_target conformance
  exec "$root/build/bin/conformance" "${conformance[@]}"
fi

if [ -n "$folder" ]; then
  # Not grep -q: it ends at the first match, and the build tool that still writes would fail.
  cmake --build "$root/build" --target help | grep -E "(^|[ .])lora_${folder}_tests(:|$| )" >/dev/null ||
    die "tests/$folder has no tests of its own"
fi
say "Building"
build_target "lora_${folder:+${folder}_}tests"
if [ -z "$folder" ] || [ "$folder" = sentence_encoder ]; then
  "$root/examples/sentence_encoder/fetch_model.sh" >/dev/null ||
    say "Going on without the sentence encoder's weights: the tests that need them are skipped"
fi
say "Running"
status=0
ctest --test-dir "$root/build" --output-on-failure --no-tests=error --timeout 600 -j "$(jobs)" \
  ${folder:+--label-regex "^$folder\$"} ${filter:+--tests-regex "$filter"} | tee "$root/build/tests.log" || status=$?
# ctest lists skipped and failed tests after its summary, so the summary is repeated as the last line.
grep 'tests passed' "$root/build/tests.log" || true
exit $status
