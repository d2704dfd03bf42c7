#!/usr/bin/env bash
# Feeds the readers of files with mutated ones. An input that breaks a reader is left in build/fuzz/findings.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
. "$root/cmake/run_support.sh"

case ${1:-60} in
  --help | -h | *[!0-9]*)
    echo "usage: tests/fuzz/run.sh [SECONDS]   builds the fuzzers with clang++ and runs each for SECONDS (60)"
    exit
    ;;
esac
seconds=${1:-60}

install_packages "${packages_tests[@]}" clang libclang-rt-14-dev
cmake -S "$root" -B "$root/build/fuzz" -G Ninja -D CMAKE_CXX_COMPILER=clang++ -D LORA_BUILD_FUZZERS=ON \
  -D LORA_BUILD_TESTS=OFF -D LORA_BUILD_BENCHMARKS=OFF -D LORA_BUILD_EXAMPLES=OFF >/dev/null
cmake --build "$root/build/fuzz" --parallel "$(jobs)" --target lora_fuzzers >&2

# What each reader starts from: files of its kind among the test data.
golden=$root/tests/golden
small=$root/tests/fuzz/seeds
declare -A seeds=([safetensors]="$golden/malformed/*.safetensors" [peft_config]="$golden/*/adapter_config.json"
  [gguf]="$small/*.gguf" [gguf_weight]="$small/*.gguf" [quantized_safetensors]="$small/*.safetensors"
  [safetensors_index]="")
findings=$root/build/fuzz/findings
mkdir -p "$findings"
for reader in "${!seeds[@]}"; do
  corpus=$root/build/fuzz/corpus/$reader
  mkdir -p "$corpus"
  for seed in ${seeds[$reader]}; do
    [ ! -f "$seed" ] || cp "$seed" "$corpus/$(echo "${seed#"$root/tests"/}" | tr / _)"
  done
  say "Fuzzing $reader for $seconds s"
  "$root/build/fuzz/bin/${reader}_fuzz" "$corpus" -max_total_time="$seconds" -max_len=65536 -timeout=10 \
    -artifact_prefix="$findings/$reader-" -print_final_stats=1 -verbosity=0
done
say "No finding"
