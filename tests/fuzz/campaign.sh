#!/usr/bin/env bash
# A campaign under libFuzzer: tests/fuzz/campaign.sh SECONDS [TARGET..], that many seconds of each target.
#
# Begins with the corpus of hostile files and goes on from what earlier campaigns kept in tests/fuzz/corpus.
# Needs a nightly compiler and cargo-fuzz. Prints a line for each target; an input that breaks a promise
# stops its target and lies in tests/fuzz/artifacts.
set -euo pipefail
cd "$(dirname "$0")/../.."
seconds=${1:?seconds of each target}
shift
CONPET_SEEDS="$PWD/tests/fuzz/corpus" cargo test --quiet -p conpet-formats --test hostile corpus >&2
cd tests/fuzz
# Without names, every target that the package has.
[ $# -gt 0 ] || set -- $(cargo +nightly fuzz list --fuzz-dir .)
failed=0
for target; do
  log=$(mktemp)
  mkdir -p "corpus/$target"
  # Longer than any recipe, shorter than what would make a run slow.
  if cargo +nightly fuzz run --fuzz-dir . "$target" "corpus/$target" -- \
    -max_total_time="$seconds" -max_len=65536 -rss_limit_mb=4096 -timeout=30 -print_final_stats=1 >"$log" 2>&1; then
    runs=$(sed -n 's/^stat::number_of_executed_units: *//p' "$log")
    peak=$(sed -n 's/^stat::peak_rss_mb: *//p' "$log")
    edges=$(sed -n 's/.*cov: \([0-9]*\).*/\1/p' "$log" | tail -1)
    echo "$target: $runs executions in $seconds s, $edges edges, peak $peak MB, nothing found"
    rm "$log"
  else
    echo "$target: FAILED, see $log"
    failed=1
  fi
done
exit $failed
