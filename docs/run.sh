#!/usr/bin/env bash
# Installs what is missing (Debian packages) and builds the site of documentation: build/docs/site/html/index.html.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
. "$root/cmake/run_support.sh"
cd "$root"

install_packages "${packages_docs[@]}"
cmake --preset docs --log-level=WARNING >/dev/null
cmake --build --preset docs
