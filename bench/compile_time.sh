#!/usr/bin/env bash
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
. "$root/cmake/run_support.sh"

usage() {
  cat <<TXT
usage: bench/compile_time.sh [--json FILE] [--repetitions N] [--case NAME]

Measures what including the library costs: the compiler's processor time (user) and peak memory for small translation
units, with g++ and clang++ if installed, at -O0 and -O2. Ratios compare like with like: an empty main with one that
includes <Eigen/Dense>, ten lines with a unit that has one product of Eigen's. Values are medians of N runs (3 by
default) in which the cases take turns. The last lines say which goals are met:

  goal <compiler> <level> <case> <value> <=|< <target> met|short

  --json FILE      all results as JSON
  --repetitions N  runs of each case
  --case NAME      only this case and what it is compared with
  --help           this text
TXT
}

json=
repetitions=3
only=
while [ $# -gt 0 ]; do
  case $1 in
    --help | -h) usage && exit ;;
    --json | --repetitions | --case)
      [ $# -gt 1 ] || die "$1: expected a value"
      case $1 in
        --json) json=$2 ;;
        --case) only=$2 ;;
        *)
          [[ $2 =~ ^[1-9][0-9]*$ ]] || die "--repetitions: expected a number of at least 1, got '$2'"
          repetitions=$2
          ;;
      esac
      shift
      ;;
    --json=* | --repetitions=* | --case=*)
      set -- "${1%%=*}" "${1#*=}" "${@:2}"
      continue
      ;;
    *) die "unknown argument '$1' (see --help)" ;;
  esac
  shift
done

install_packages g++ libeigen3-dev
eigen=
for folder in "${EIGEN_INCLUDE:-}" /usr/include/eigen3 /usr/local/include/eigen3; do
  [ -n "$folder" ] && [ -f "$folder/Eigen/Core" ] && eigen=$folder && break
done
[ -n "$eigen" ] || die "no Eigen found; name its folder in EIGEN_INCLUDE"

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# The translation units. `ten` is a small form of the README's first sample, `few` the same with only the two headers it
# needs.
sample='
int main() {
  const lora::Matrix<float> W0 = lora::Matrix<float>::Ones(8, 8), X = lora::Matrix<float>::Ones(4, 8);
  lora::LoraLinear<float> layer(W0, {.rank = 2, .alpha = 4, .dropout = 0.05f}, /*seed=*/42);
  lora::AdamW<float> optimizer({.learning_rate = 1e-3f});
  layer.train();
  const lora::Matrix<float> Y = layer.forward(X);
  layer.backward(Y);
  optimizer.step(layer.parameters());
  layer.zero_grad();
  layer.eval();
  return layer.forward(X).size() == 32 ? 0 : 1;
}'
cases=(eigen product empty ten few ten_compiled few_compiled)
describe() {
  case $1 in
    eigen) echo '<Eigen/Dense>, empty main' ;;
    product) echo '<Eigen/Dense>, one product' ;;
    empty) echo '<lora/lora.hpp>, empty main' ;;
    ten) echo '<lora/lora.hpp>, ten lines' ;;
    few) echo 'two headers, ten lines' ;;
    ten_compiled) echo '<lora/lora.hpp>, ten lines, lora::compiled' ;;
    few_compiled) echo 'two headers, ten lines, lora::compiled' ;;
    *) die "--case: no case '$1' (there are ${cases[*]})" ;;
  esac
}
few_headers='#include <lora/layers/linear.hpp>
#include <lora/optim/adamw.hpp>'
echo '#include <Eigen/Dense>
int main() {}' >"$work/eigen.cpp"
echo '#include <Eigen/Dense>
int main() {
  const Eigen::MatrixXf a = Eigen::MatrixXf::Ones(8, 8), b = Eigen::MatrixXf::Ones(8, 8);
  const Eigen::MatrixXf c = a * b;
  return static_cast<int>(c(0, 0)) == 8 ? 0 : 1;
}' >"$work/product.cpp"
echo '#include <lora/lora.hpp>
int main() {}' >"$work/empty.cpp"
echo "#include <lora/lora.hpp>$sample" >"$work/ten.cpp"
echo "$few_headers$sample" >"$work/few.cpp"
cp "$work/ten.cpp" "$work/ten_compiled.cpp"
cp "$work/few.cpp" "$work/few_compiled.cpp"
if [ -n "$only" ]; then
  describe "$only" >/dev/null
  cases=(eigen product)
  case $only in eigen | product) ;; *) cases+=("$only") ;; esac
fi

# Runs a command and prints its exit code, user seconds and peak memory in kilobytes, including descendants.
cat >"$work/measure.cpp" <<'CODE'
#include <cstdio>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>
int main(int, char** argv) {
  const pid_t child = fork();
  if (child == 0) {
    execvp(argv[1], argv + 1);
    _exit(127);
  }
  int status = 0;
  rusage usage{};
  wait4(child, &status, 0, &usage);
  std::printf("%d %.3f %ld\n", WIFEXITED(status) ? WEXITSTATUS(status) : 128,
              usage.ru_utime.tv_sec + usage.ru_utime.tv_usec * 1e-6, usage.ru_maxrss);
}
CODE
g++ -O1 -o "$work/measure" "$work/measure.cpp"

# measure <compiler> <level> <case>: one line "compiler level case seconds kilobytes" into the results.
measure() {
  local define=() code seconds kilobytes
  [[ $3 != *_compiled ]] || define=(-DLORA_COMPILED)
  read -r code seconds kilobytes < <("$work/measure" "$1" -std=c++20 "$2" -DNDEBUG ${define[@]+"${define[@]}"} \
    "-I$root/include" -isystem "$eigen" -c "$work/$3.cpp" -o "$work/$3.o" 2>"$work/log")
  if [ "$code" -ne 0 ]; then
    head -20 "$work/log" >&2
    die "$1 $2 does not compile '$3'"
  fi
  echo "$1 $2 $3 $seconds $kilobytes" >>"$work/results"
}

compilers=()
for compiler in g++ clang++; do
  if command -v "$compiler" >/dev/null; then compilers+=("$compiler"); else say "Going on without $compiler"; fi
done
for ((run = 1; run <= repetitions; ++run)); do
  say "Run $run of $repetitions"
  for compiler in "${compilers[@]}"; do
    for level in -O0 -O2; do
      for name in "${cases[@]}"; do measure "$compiler" "$level" "$name"; done
    done
  done
done

for name in "${cases[@]}"; do echo "$name $(describe "$name")"; done >"$work/descriptions"
for compiler in "${compilers[@]}"; do echo "$compiler $("$compiler" --version | head -1)"; done >"$work/versions"
export LC_ALL=C
awk -v json="$json" -v descriptions="$work/descriptions" -v versions="$work/versions" '
  function median(values, count,    i, j, t, list) {
    split(values, list, " ")
    for (i = 2; i <= count; ++i) for (j = i; j > 1 && list[j - 1] + 0 > list[j] + 0; --j) {
      t = list[j]; list[j] = list[j - 1]; list[j - 1] = t
    }
    return count % 2 ? list[(count + 1) / 2] : (list[count / 2] + list[count / 2 + 1]) / 2
  }
  function goal(way, name, value, unit, relation, target,    met) {
    met = relation == "<" ? value < target : value <= target
    goals = goals sprintf("goal %s %s %.2f%s %s %.2f%s %s\n", way, name, value, unit, relation, target, unit, met ? "met" : "short")
  }
  BEGIN {
    while ((getline line < descriptions) > 0) { i = index(line, " "); text[substr(line, 1, i - 1)] = substr(line, i + 1) }
    while ((getline line < versions) > 0) { i = index(line, " "); version[substr(line, 1, i - 1)] = substr(line, i + 1) }
  }
  {
    way = $1 " " $2; key = way SUBSEP $3
    if (!(way in seen)) { seen[way] = 1; ways[++way_count] = way }
    if (!(key in runs)) order[way] = order[way] " " $3
    seconds[key] = seconds[key] " " $4; kilobytes[key] = kilobytes[key] " " $5; ++runs[key]
  }
  END {
    for (w = 1; w <= way_count; ++w) {
      way = ways[w]; count = split(order[way], names, " ")
      split(way, parts, " ")
      printf "%s (%s)\n  %-44s %8s %8s %8s %18s\n", way, version[parts[1]], "", "seconds", "ratio", "MB", "fastest-slowest"
      for (n = 1; n <= count; ++n) {
        key = way SUBSEP names[n]
        s[key] = median(seconds[key], runs[key]); m[key] = median(kilobytes[key], runs[key]) * 1024 / 1e6
      }
      for (n = 1; n <= count; ++n) {
        name = names[n]; key = way SUBSEP name
        ratio = s[key] / s[way SUBSEP (name == "eigen" || name == "empty" ? "eigen" : "product")]
        split(seconds[key], list, " "); low = high = list[1]
        for (i in list) { if (list[i] < low) low = list[i]; if (list[i] > high) high = list[i] }
        printf "  %-44s %8.2f %7.2fx %8.0f %9.2f-%.2f\n", text[name], s[key], ratio, m[key], low, high
        rows = rows sprintf("%s\n    {\"compiler\": \"%s\", \"level\": \"%s\", \"case\": \"%s\", \"seconds\": %.3f, \"ratio\": %.3f, \"megabytes\": %.1f, \"runs\": %d}", \
                            rows == "" ? "" : ",", parts[1], parts[2], name, s[key], ratio, m[key], runs[key])
        if (name == "empty") goal(way, name, ratio, "x", "<=", 1.5)
        if (name == "ten") goal(way, name, ratio, "x", "<=", parts[2] == "-O0" ? 3 : 4)
        if (name == "empty" || name == "ten") goal(way, name, m[key], "MB", "<", 500)
        if (name == "few" && (way SUBSEP "ten") in s) goal(way, "few/ten", s[key] / s[way SUBSEP "ten"], "x", "<", 1)
      }
    }
    printf "\n%s", goals
    if (json != "") printf "{\n  \"results\": [%s\n  ]\n}\n", rows >json
  }' "$work/results"
