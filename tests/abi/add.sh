#!/usr/bin/env bash
# Keeps a plugin built with the plugin ABI of this source: see README.md beside.
set -euo pipefail
cd "$(dirname "$0")/../.."

version=$(sed -nE 's/^version = "([0-9]+\.[0-9]+)\..*/\1/p' plugin-api/Cargo.toml)
folder=tests/abi/$version
target=${CARGO_TARGET_DIR:-target}/abi

# Without the builder's own paths, which panic messages would otherwise carry.
RUSTFLAGS="--remap-path-prefix=$PWD=/baton --remap-path-prefix=${CARGO_HOME:-$HOME/.cargo}=/cargo" \
    cargo build --locked --release --package platform-debugcon --target-dir "$target"

mkdir -p "$folder"
strip -o "$folder/platform-debugcon.so" "$target/release/libbaton_platform_debugcon.so"
chmod 644 "$folder/platform-debugcon.so"

if [ ! -e "$folder/messages.json" ]; then
    newest=$(ls -d tests/abi/*/messages.json | sort -V | tail -n 1)
    cp "$newest" "$folder/messages.json"
    echo "Add what is new in $version to $folder/messages.json"
fi
ls -l "$folder"
