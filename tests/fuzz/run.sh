#!/usr/bin/env bash
# Feeds what reads from elsewhere with mutated inputs. One that breaks a reader is left in build/fuzz/findings.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
. "$root/cmake/run_support.sh"

usage() {
  cat <<END
usage: tests/fuzz/run.sh [SECONDS] [TARGET...]   builds the targets with clang++ and runs each for SECONDS (60)
       tests/fuzz/run.sh --keep [TARGET...]      replaces tests/fuzz/corpus/TARGET by the few inputs of
                                                 build/fuzz/corpus/TARGET that together reach most code
A target is the name of a tests/fuzz/*_fuzz.cpp; without one, all run, one after another.
An hour each, before a release:  tests/fuzz/run.sh 3600   (or one call for every core, with other targets each)
Runs begin with tests/fuzz/corpus and go on from what earlier ones have left in build/fuzz/corpus. A finding becomes
tests/fuzz/corpus/TARGET/found-NAME, which --keep leaves alone: the tests replay that folder.
END
}

keep=
seconds=60
case ${1:-} in --help | -h) usage && exit ;; esac
if [ "${1:-}" = --keep ]; then
  keep=1
  shift
elif [[ ${1:-} =~ ^[0-9]+$ ]]; then
  seconds=$1
  shift
fi
targets=()
for name in "${@:-*}"; do
  for source in "$root"/tests/fuzz/${name}_fuzz.cpp; do
    [ -f "$source" ] || { usage && exit 2; }
    targets+=("$(basename "$source" _fuzz.cpp)")
  done
done

install_packages "${packages_tests[@]}" clang libclang-rt-14-dev
build=$root/build/fuzz
cmake -S "$root" -B "$build" -G Ninja -D CMAKE_CXX_COMPILER=clang++ -D LORA_BUILD_FUZZERS=ON \
  -D LORA_BUILD_TESTS=OFF -D LORA_BUILD_BENCHMARKS=OFF -D LORA_BUILD_EXAMPLES=OFF >/dev/null
cmake --build "$build" --parallel "$(jobs)" --target "${targets[@]/%/_fuzz}" >&2

# What each target starts from besides its corpus: files of its kind among the test data.
golden=$root/tests/golden
small=$root/tests/fuzz/seeds
declare -A seeds=([safetensors]="$golden/malformed/*.safetensors" [peft_config]="$golden/*/adapter_config.json"
  [gguf]="$small/*.gguf" [gguf_weight]="$small/*.gguf" [quantized_safetensors]="$small/*.safetensors")

# Some targets write files in a temporary folder.
[ -n "${TMPDIR:-}" ] || [ ! -w /dev/shm ] || export TMPDIR=/dev/shm

# run <target> [argument...]: what the target prints itself is left out. No allocation may exceed a multiple of the
# greatest input, no input may take longer than the timeout.
run() {
  "$build/bin/$1_fuzz" -max_len=65536 -timeout=10 -malloc_limit_mb=64 -close_fd_mask=3 "${@:2}"
}

# covered <target> <file>...: how much code the files reach.
covered() {
  local folder
  folder=$(mktemp -d)
  cp "${@:2}" "$folder"
  run "$1" -runs=0 "$folder" 2>&1 | sed -n 's/.*INITED cov: \([0-9]*\).*/\1/p'
  rm -r "$folder"
}

# keep_few <target>: at most 3 inputs of at most 4 kB, each the one that adds most to those before.
keep_few() {
  local kept=$root/tests/fuzz/corpus/$1 merged chosen=() file best most now
  merged=$(mktemp -d)
  run "$1" -set_cover_merge=1 -max_len=4096 "$merged" "$build/corpus/$1" "$kept" 2>/dev/null || true
  mkdir -p "$kept"
  find "$kept" -type f ! -name 'found-*' -delete
  most=0
  for _ in 1 2 3; do
    best=
    for file in "$merged"/*; do
      now=$(covered "$1" "$file" "${chosen[@]}")
      if [ "${now:-0}" -gt "$most" ]; then
        most=$now
        best=$file
      fi
    done
    [ -n "$best" ] || break
    chosen+=("$best")
    cp "$best" "$kept"
  done
  say "$1: ${#chosen[@]} inputs reach $most places"
  rm -r "$merged"
}

findings=$build/findings
mkdir -p "$findings"
for target in "${targets[@]}"; do
  corpus=$build/corpus/$target
  mkdir -p "$corpus" "$root/tests/fuzz/corpus/$target"
  for seed in ${seeds[$target]:-}; do
    [ ! -f "$seed" ] || cp "$seed" "$corpus/$(echo "${seed#"$root/tests"/}" | tr / _)"
  done
  if [ -n "$keep" ]; then
    keep_few "$target"
    continue
  fi
  say "Fuzzing $target for $seconds s"
  # A long input is as likely as a short one: much is reached only by inputs of some length.
  run "$target" "$corpus" "$root/tests/fuzz/corpus/$target" -max_total_time="$seconds" -len_control=0 \
    -artifact_prefix="$findings/$target-" -print_final_stats=1 -verbosity=0
done
[ -n "$keep" ] || say "No finding"
