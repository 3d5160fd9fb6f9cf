#!/usr/bin/env bash
# The oldest compiler that is promised (`rust-version` in Cargo.toml) must be the one that these checks run, or the
# promise is untested. Raise `rust-version` when the compiler here is newer.
set -euo pipefail
cd "$(dirname "$0")/.."
promised=$(sed -n 's/^rust-version = "\([0-9.]*\)"$/\1/p' Cargo.toml)
here=$(rustc --version | cut -d' ' -f2)
case "$here" in
  "$promised" | "$promised".*) ;;
  *)
    echo "Cargo.toml: rust-version is ${promised:-missing}, but the compiler here is $here: an older one was not tested" >&2
    exit 1
    ;;
esac
