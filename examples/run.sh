#!/usr/bin/env bash
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
. "$root/cmake/run_support.sh"

for argument; do
  case $argument in
    --help | -h)
      cat <<TXT
usage: examples/run.sh [--quick] [OPTION...]

Installs what is missing (Debian packages), builds in build/, and fine-tunes a network on Fashion-MNIST: the frozen
network, LoRA at several ranks and full fine-tuning, side by side.

  --quick  a short run
  --help   this text

All options go to build/bin/fashion_mnist, which lists the others with --help.
TXT
      exit
      ;;
  esac
done

install_packages "${packages_examples[@]}"
configure_part EXAMPLES
build_target lora_examples
exec "$root/build/bin/fashion_mnist" "$@"
