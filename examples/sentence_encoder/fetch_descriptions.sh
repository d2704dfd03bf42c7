#!/usr/bin/env bash
# Extracts the short descriptions of Debian's packages and their sections, as apt knows them, into a table of
# label, text and group: one package a line, tab-separated. The group is the source package, so that packages built
# from one source, whose descriptions resemble each other, end up in the same part of the split.
#
# usage: fetch_descriptions.sh OUTPUT.tsv [DUMPAVAIL.txt]
#   DUMPAVAIL.txt  what `apt-cache dumpavail` prints; by default that of this machine, after apt-get update if it knows
#                  no packages yet
#
# Left out, because the form of the name decides the section and the wording repeats it:
#   lib*, *-dev, *-doc, *-dbg, *-dbgsym, *-data, *-common, *-l10n, *-i18n: libraries and parts of other packages
#   python*-, ruby-*, node-*, php*-, pypy-*, r-*, *-perl, *-java, *-clojure, golang-*, rust-*, elpa-*, cl-*, gir1.2-*,
#   ghc-*, haskell-*, ocaml-*, lua-*: modules of one programming language
#   fonts-*, xfonts-*, ttf-*, task-*, hunspell-*, aspell-*, myspell-*, hyphen-*, mythes-*, tesseract-ocr-*, linux-*
# Left out as no topic (what a package is made of or for, not what it is about; utils and misc are what is left over),
# or as under 100 packages once these are gone: all sections that `topics` below does not name. Sections under 250
# packages that a larger one covers are merged.
# Left out as empty: descriptions that say "transitional" or "dummy package", which tell of no contents.
# Archive areas (contrib/games, non-free/games) are ignored. Of equal descriptions the first, by package name, stays,
# and of one source the first eight, so that no series of dictionaries or cross-compilers makes up a section.
# Descriptions that say their section's name stay: taking out these alone would make the name evidence against it. The
# report says how many there are and how the others fare.
set -euo pipefail
export LC_ALL=C

if [ $# -lt 1 ] || [ $# -gt 2 ]; then
  sed -n 's/^# usage: /usage: /p' "$0" >&2
  exit 2
fi
output=$1
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

if [ $# -eq 2 ]; then
  cp -- "$2" "$work/available"
else
  command -v apt-cache >/dev/null || {
    echo "${0##*/}: apt-cache is not here: pass the output of apt-cache dumpavail, or a table to --data" >&2
    exit 1
  }
  apt-cache dumpavail >"$work/available"
  if [ "$(grep -c '^Package: ' "$work/available")" -lt 10000 ]; then
    as_root=()
    [ "$(id -u)" -eq 0 ] || as_root=(sudo)
    "${as_root[@]}" apt-get -qq update
    apt-cache dumpavail >"$work/available"
  fi
fi

cat >"$work/extract.awk" <<'AWK'
BEGIN {
  topics = "admin comm database devel editors electronics games graphics mail math net otherosfs science " \
           "sound text video web x11"
  count = split(topics, names, " ")
  for (i = 1; i <= count; ++i) topic[names[i]] = names[i]
  topic["hamradio"] = "comm"
  topic["interpreters"] = topic["vcs"] = "devel"
  topic["news"] = "mail"
  topic["tex"] = "text"
  topic["httpd"] = "web"
  topic["gnome"] = topic["kde"] = topic["xfce"] = topic["gnustep"] = "x11"
  part = "^lib|-(dev|doc|dbg|dbgsym|data|common|l10n|i18n)$"
  module = "^(python[0-9.]*|ruby|node|php[0-9.]*|r|golang|rust|elpa|cl|gir1\\.2|ghc|haskell|ocaml|lua|pypy)-" \
           "|-(perl|java|clojure)$"
  other = "^(fonts|xfonts|ttf|task|hunspell|aspell|myspell|hyphen|mythes|tesseract-ocr|linux)-"
}
function flush() {
  sub(/^.*\//, "", section)
  sub(/ .*$/, "", source)
  if (source == "") source = package
  if (package != "" && text != "" && section in topic && package !~ part && package !~ module && package !~ other &&
      tolower(text) !~ /transitional|dummy package/)
    print package "\t" topic[section] "\t" text "\t" source
  package = section = text = source = ""
}
/^$/ { flush(); next }
/^Package: / { package = substr($0, 10) }
/^Section: / { section = substr($0, 10) }
/^Source: / { source = substr($0, 9) }
/^Description(-en)?: / && text == "" {
  text = $0
  sub(/^[^:]*: */, "", text)
  gsub(/[\t\r]/, " ", text)
  sub(/ +$/, "", text)
}
END { flush() }
AWK

awk -f "$work/extract.awk" "$work/available" | sort -t "$(printf '\t')" -k1,1 -k2 |
  awk -F '\t' \
    '!seen_package[$1]++ && !seen_text[tolower($3)]++ && seen_source[$4]++ < 8 { print $2 "\t" $3 "\t" $4 }' >"$work/table"
[ "$(wc -l <"$work/table")" -gt 0 ] || {
  echo "${0##*/}: no package with a section and a description found" >&2
  exit 1
}
mkdir -p -- "$(dirname -- "$output")"
cp -- "$work/table" "$output.part"
mv -- "$output.part" "$output"
