#!/usr/bin/env bash
# The full figures of docs/gates.md, in one command: tests/gates.sh [FOLDER], an hour or two on two cores.
#
# Each part's output goes to FOLDER/PART.log (default build/gates); a part that has passed at this commit is
# not run again. Ends with a summary, also in FOLDER/summary.txt, and fails if a part has failed. The campaign
# under libFuzzer is a command of its own, tests/fuzz/campaign.sh.
set -uo pipefail
cd "$(dirname "$0")/.."
folder=$(mkdir -p "${1:-build/gates}" && cd "${1:-build/gates}" && pwd)
commit=$(git rev-parse --short HEAD)
git diff --quiet HEAD || commit=$commit-changed
export CONPET_FULL=1 CARGO_TERM_COLOR=never
failed=0
# A million recipes that write files would wait for a disk; power cuts are modelled, not played.
if [ -z "${TMPDIR:-}" ] && [ -w /dev/shm ]; then export TMPDIR=/dev/shm; fi

part() {
  local name=$1 log=$folder/$1.log begin=$SECONDS
  shift
  if grep -qsx "passed at $commit in [0-9]* s" "$log"; then return; fi
  echo "== $name: $*" >&2
  if "$@" >"$log" 2>&1; then
    echo "passed at $commit in $((SECONDS - begin)) s" >>"$log"
  else
    echo "FAILED at $commit after $((SECONDS - begin)) s" >>"$log"
    failed=1
  fi
}

part corpus-flips-prefixes env CONPET_FUZZ=1000 cargo test --release -p conpet-formats --test hostile -- --nocapture
part updates-flips cargo test --release -p conpet-formats --lib bundle::update -- --nocapture
part dying cargo test --release -p conpet-formats --test dying -- --nocapture
part recipes-formats env CONPET_FUZZ=1000000 cargo test --release -p conpet-formats --test hostile survive_recipes -- --nocapture
part recipes-inspector env CONPET_FUZZ=50000 cargo test --release -p conpet-tools --test fuzz -- --nocapture
part recipes-tokenizer env CONPET_FUZZ=1000000 cargo test --release -p conpet-runtime --test fuzz -- --nocapture
part vanishing cargo test --release -p conpet-runtime --test vanishing -- --nocapture
part exchange cargo test --release -p conpet-formats --test exchange -- --nocapture
part killed-training cargo test --release -p conpet-tests --test programs killed -- --nocapture
part two-runs-one-seed cargo test --release -p conpet-tests --test whole_path -- --nocapture
part costs cargo bench -p conpet-formats --bench bundle
{
  echo "tests/gates.sh at $commit, $(uname -sm), $(nproc) cores, $(sed -n 's/^model name[^:]*: //p' /proc/cpuinfo | head -1)"
  for log in "$folder"/*.log; do
    echo
    echo "$(basename "$log" .log): $(tail -1 "$log")"
    # What the tests say of themselves; cargo's own lines are left out.
    grep -vE '^ *(Compiling|Finished|Running|Fresh|Doc-tests|Downloaded|Blocking|Checking|Benchmarking|Warning)|^(test |running |test result|passed at|FAILED at)|^$|found/' "$log" | sed 's/^/  /'
    grep -E '^test result' "$log" | sed 's/^/  /; s/; finished in.*//'
  done
} >"$folder/summary.txt"
cat "$folder/summary.txt"
exit $failed
