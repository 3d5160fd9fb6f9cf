#!/usr/bin/env bash
# Runs conpet-run in a memory cgroup smaller than its base, and compares what it says with an
# unlimited run. Needs root, for the cgroup.
#
#   sudo tests/peers/small_box.sh BASE.gguf [LIMIT_MIB, 64 by default]
set -euo pipefail
limit=${2:-64}
# A copy that nobody else has in memory, so that this cgroup pays for what it reads.
base=$(mktemp --suffix=.gguf)
cp "$1" "$base"
sync "$base"
run=("$(dirname "$0")/../../target/release/conpet-run" generate -m "$base" -p "Once upon a time" -n 48 --temp 0 -c 512)
if [ -f /sys/fs/cgroup/cgroup.controllers ]; then
  group=/sys/fs/cgroup/conpet-small-box file=memory.max peak=memory.peak
else
  group=/sys/fs/cgroup/memory/conpet-small-box file=memory.limit_in_bytes peak=memory.max_usage_in_bytes
fi
mkdir -p "$group"
trap 'rmdir "$group"; rm "$base"' EXIT
echo $((limit << 20)) >"$group/$file"
inside() { (echo $BASHPID >"$group/cgroup.procs"; exec "$@"); }
want=$("${run[@]}" 2>/dev/null)
for flags in "" "--mem-budget $((limit * 3 / 4))"; do
  dd if="$base" iflag=nocache count=0 status=none
  begin=$EPOCHREALTIME
  # shellcheck disable=SC2086
  got=$(inside "${run[@]}" $flags 2>/dev/null)
  seconds=$(awk "BEGIN { print $EPOCHREALTIME - $begin }")
  [ "$got" = "$want" ] || { echo "another answer in $limit MiB with '$flags'" >&2; exit 1; }
  echo "same answer in $limit MiB ${flags:-without a budget}: $seconds s, at most $(($(cat "$group/$peak") >> 20)) MiB held"
done
echo "the base has $(($(stat -c %s "$base") >> 20)) MiB"
