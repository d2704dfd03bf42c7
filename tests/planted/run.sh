#!/usr/bin/env bash
# Plants every bug of tests/planted/*.bugs into a copy of include/ and shows which of them the tests catch. Installs
# what is missing; `--help` of run.py has the options.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
. "$root/cmake/run_support.sh"

install_packages python3 "${packages_tests[@]}"
LORA_JOBS=$(jobs) exec python3 "$root/tests/planted/run.py" "$@"
