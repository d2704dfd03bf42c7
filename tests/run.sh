#!/usr/bin/env bash
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
. "$root/cmake/run_support.sh"

usage() {
  cat <<TXT
usage: tests/run.sh [--strict] [FILTER]
       tests/run.sh --conformance DIR...

Installs what is missing (Debian packages), builds in build/, and runs all tests, or those whose names match the
regular expression FILTER.

  --strict              every compiler warning is an error
  --conformance DIR...  run the conformance program on these folders instead
  --help                this text
TXT
}

warnings_as_errors=OFF
filter=
folders=()
while [ $# -gt 0 ]; do
  case $1 in
    --help | -h) usage && exit ;;
    --strict) warnings_as_errors=ON ;;
    --conformance)
      shift
      [ $# -gt 0 ] || die "--conformance: expected at least one folder"
      for folder; do
        [ -d "$folder" ] || die "--conformance: no folder '$folder'"
        folders+=("$folder")
      done
      break
      ;;
    -*) die "unknown option '$1' (see --help)" ;;
    *) [ -z "$filter" ] && filter=$1 || die "more than one filter: '$1'" ;;
  esac
  shift
done

install_packages "${packages_tests[@]}"
configure_part TESTS -D LORA_WARNINGS_AS_ERRORS=$warnings_as_errors

if [ ${#folders[@]} -gt 0 ]; then
  compgen -G "$root/tests/conformance/*.cpp" >/dev/null || die "this tree has no conformance program"
  build_target conformance
  exec "$root/build/bin/conformance" "${folders[@]}"
fi

build_target lora_tests
"$root/examples/sentence_encoder/fetch_model.sh" >/dev/null ||
  say "Going on without the sentence encoder's weights: the tests that need them are skipped"
status=0
ctest --test-dir "$root/build" --output-on-failure --no-tests=error --timeout 600 -j "$(jobs)" \
  ${filter:+--tests-regex "$filter"} | tee "$root/build/tests.log" || status=$?
# ctest lists skipped and failed tests after its summary; the summary comes once more as the last line.
grep 'tests passed' "$root/build/tests.log" || true
exit $status
