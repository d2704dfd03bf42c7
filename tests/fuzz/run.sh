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
mkdir -p "$build"
# Several calls at once share the folder, and so build one after another.
exec 9>"$build/building"
flock 9
cmake -S "$root" -B "$build" -G Ninja -D CMAKE_CXX_COMPILER=clang++ -D LORA_BUILD_FUZZERS=ON \
  -D LORA_BUILD_TESTS=OFF -D LORA_BUILD_BENCHMARKS=OFF -D LORA_BUILD_EXAMPLES=OFF >/dev/null
cmake --build "$build" --parallel "$(jobs)" --target "${targets[@]/%/_fuzz}" >&2
exec 9>&-

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

# keep_few <target>: at most 4 inputs of at most 4 kB, each the one that adds most to what those before it do.
keep_few() {
  local kept=$root/tests/fuzz/corpus/$1 work
  work=$(mktemp -d)
  mkdir "$work/merged"
  # The control file says of each input what it does: the numbers behind "FT" and its own.
  run "$1" -set_cover_merge=1 -max_len=4096 -merge_control_file="$work/control" "$work/merged" "$build/corpus/$1" \
    "$kept" 2>/dev/null
  awk '
    NR == 1 { files = $1 }
    NR > 2 && NR <= 2 + files { path[NR - 3] = $0 }
    $1 == "FT" { does[$2] = $0 }
    END {
      for (turn = 0; turn < 4; ++turn) {
        best = most = 0
        for (file in does) {
          count = split(does[file], part, " ")
          gain = 0
          for (i = 3; i <= count; ++i) gain += !(part[i] in done)
          if (gain > most) { most = gain; best = file }
        }
        if (most == 0) break
        count = split(does[best], part, " ")
        for (i = 3; i <= count; ++i) done[part[i]]
        print path[best]
      }
    }' "$work/control" | grep -v /found- >"$work/chosen"
  # What was measured of a longer input is its beginning.
  while IFS= read -r file; do
    head -c 4096 "$file" >"$work/input"
    mv "$work/input" "$work/$(sha1sum <"$work/input" | cut -c1-12)"
  done <"$work/chosen"
  rm -r "$work/merged" "$work/control" "$work/chosen"
  find "$kept" -type f ! -name 'found-*' -delete
  cp "$work"/* "$kept"
  rm -r "$work"
  say "$1: $(find "$kept" -type f | wc -l) inputs"
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
