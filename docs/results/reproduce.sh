#!/usr/bin/env bash
# Runs dynamic, sequential and joint on one stream with the recorded settings, and joins their
# reports: docs/results/reproduce.sh clinc150 STREAM_FOLDER [METHOD...]
#
# Resumable: run it again after Ctrl-C. Bundles and work files go to build/results/NAME, the
# report to docs/results/NAME.
set -euo pipefail
cd "$(dirname "$0")/../.."
name=$1 stream=$2
shift 2
[ $# -gt 0 ] || set -- dynamic sequential joint
base=${CONPET_BASE:-build/first-run/SmolLM2-135M-Instruct.Q4_1.gguf}
[ -f "$base" ] || { echo "no base at $base: run ./examples/first-run.sh once, or set CONPET_BASE" >&2; exit 4; }

bin=${CONPET_TRAIN:-}
if [ -z "$bin" ]; then
  cargo build --release -p conpet-trainer
  bin=${CARGO_TARGET_DIR:-target}/release/conpet-train
fi
CONPET_COMMIT=${CONPET_COMMIT:-$(git rev-parse --short HEAD)}
export CONPET_COMMIT
work=build/results/$name
mkdir -p "$work"
for method in "$@"; do
  [ -f "$work/$method.report/report.json" ] && continue
  resume=()
  [ -d "$work/$method.work" ] && resume=(--resume)
  "$bin" stream "$stream" -m "$base" -b "$work/$method.cpb" --config "docs/results/$name.toml" --method "$method" "${resume[@]}"
done
"$bin" report "$work"/{dynamic,sequential,joint}.report/report.json -o "docs/results/$name"
