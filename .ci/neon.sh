#!/usr/bin/env bash
# Builds the runtime for 64-bit ARM and runs its kernel tests under an emulator, so that the NEON
# kernels meet their naive twins on every change. Installs what it needs (rustup target, cross
# linker, user-mode emulator); says so and ends quietly where that is not possible.
set -euo pipefail
cd "$(dirname "$0")/.."
target=aarch64-unknown-linux-gnu

give_up() {
  echo "NEON NOT TESTED: $1"
  exit 0
}

if ! command -v qemu-aarch64-static >/dev/null || ! command -v aarch64-linux-gnu-gcc >/dev/null; then
  command -v apt-get >/dev/null || give_up "there is no apt-get to install the emulator with"
  as_root=""
  [ "$(id -u)" = 0 ] || as_root="sudo -n"
  packages="qemu-user-static gcc-aarch64-linux-gnu libc6-dev-arm64-cross"
  # shellcheck disable=SC2086 # the words are meant to be split
  { $as_root apt-get install -y -q --no-install-recommends $packages ||
    { $as_root apt-get update -q && $as_root apt-get install -y -q --no-install-recommends $packages; }; } >/dev/null 2>&1 ||
    give_up "the emulator cannot be installed"
fi
rustup target add "$target" >/dev/null 2>&1 || give_up "the standard library for $target cannot be installed"

export CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_LINKER=aarch64-linux-gnu-gcc
export CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_RUNNER="qemu-aarch64-static -L /usr/aarch64-linux-gnu"
export CC_aarch64_unknown_linux_gnu=aarch64-linux-gnu-gcc
seen=$(mktemp)
cargo test --quiet --target "$target" -p conpet-runtime --lib -- kernels --nocapture "$@" | tee "$seen"
# The tests take every form that the processor has; the emulated one has them all.
grep -q "kernels here:.* neon dotprod i8mm" "$seen" || { echo "dotprod or i8mm was not tested" >&2; exit 1; }
rm "$seen"
cargo build --quiet --target "$target" -p conpet-runtime --bin conpet-run
