# What the run scripts share: installing missing Debian packages, configuring build/, building one part of it. Sourced
# by bash scripts with the project's root in $root.

if [ -t 2 ] && [ -z "${NO_COLOR:-}" ]; then bold=$(printf '\033[1m') plain=$(printf '\033[0m'); else bold= plain=; fi
say() { printf '%s\n' "$bold==> $*$plain" >&2; }
die() {
  printf '%s: %s\n' "${0##*/}" "$*" >&2
  exit 1
}

# The number of cores, or LORA_JOBS.
jobs() { echo "${LORA_JOBS:-}" | grep . || nproc 2>/dev/null || getconf _NPROCESSORS_ONLN 2>/dev/null || echo 1; }

# A tool is present if it is found anywhere, a library if its package is installed.
has_package() {
  case $1 in
    g++ | cmake | clang | clang-format | clang-tidy | git | curl | pkg-config) command -v "$1" >/dev/null && return ;;
    ninja-build) command -v ninja >/dev/null && return ;;
    gnuplot-nox) command -v gnuplot >/dev/null && return ;;
  esac
  [ "$(dpkg-query -W -f='${db:Status-Status}' "$1" 2>/dev/null)" = installed ]
}

# install_packages <package>...: installs those that are missing; uses neither apt nor the network if none is.
install_packages() {
  local missing=() package as_root=() log
  if ! command -v dpkg-query >/dev/null; then
    say "Not a Debian system; these packages' counterparts must be there: $*"
    return
  fi
  for package; do has_package "$package" || missing+=("$package"); done
  [ ${#missing[@]} -eq 0 ] && return
  if [ "$(id -u)" -ne 0 ]; then
    command -v sudo >/dev/null || die "please install, as root: apt-get install ${missing[*]}"
    as_root=(sudo)
  fi
  say "Installing ${missing[*]}"
  log=$(mktemp)
  as_root+=(env DEBIAN_FRONTEND=noninteractive apt-get -qq -o Dpkg::Use-Pty=0 -o DPkg::Lock::Timeout=300)
  # A list that its mirror cannot give just now may not be needed.
  if ! { "${as_root[@]}" update || true; "${as_root[@]}" -y --no-install-recommends install "${missing[@]}"; } \
    >"$log" 2>&1; then
    cat "$log" >&2
    rm -f "$log"
    die "could not install ${missing[*]}"
  fi
  rm -f "$log"
}

# configure_part TESTS|BENCHMARKS|EXAMPLES [cmake argument...]: enables one part in build/. Parts that are already
# enabled stay so: scripts can run in any order, and none needs the packages of the others.
configure_part() {
  local part=$1 other arguments=()
  shift
  if [ ! -f "$root/build/CMakeCache.txt" ]; then
    for other in TESTS BENCHMARKS EXAMPLES; do arguments+=(-D "LORA_BUILD_$other=OFF"); done
    command -v ninja >/dev/null && arguments+=(-G Ninja)
  fi
  cmake -S "$root" -B "$root/build" --log-level=WARNING "${arguments[@]}" -D "LORA_BUILD_$part=ON" "$@" >/dev/null
}

# build_target <target>: builds it in build/, on all cores.
build_target() {
  cmake --build "$root/build" --parallel "$(jobs)" --target "$1" >&2
}

packages_build=(g++ cmake ninja-build libeigen3-dev)
packages_mpi=(libopenmpi-dev openmpi-bin)
packages_tests=("${packages_build[@]}" libgtest-dev librapidcheck-dev nlohmann-json3-dev libcli11-dev zlib1g-dev
  libutf8proc-dev pkg-config curl ca-certificates "${packages_mpi[@]}")
packages_examples=("${packages_build[@]}" nlohmann-json3-dev libcli11-dev zlib1g-dev gnuplot-nox dataset-fashion-mnist
  libutf8proc-dev curl ca-certificates "${packages_mpi[@]}")
packages_benchmarks=("${packages_build[@]}" libbenchmark-dev libcli11-dev nlohmann-json3-dev gnuplot-nox)
packages_docs=("${packages_build[@]}" doxygen libjs-mathjax)
