#!/usr/bin/env bash
# build.sh FOLDER TARGET [CMAKE OPTIONS]: configures and builds quietly; prints the log when that fails.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
folder=$1 target=$2
shift 2
mkdir -p "$folder"
log=$folder/build.log
if ! { cmake -S "$root" -B "$folder" "$@" && cmake --build "$folder" --target "$target" -j "$(nproc)"; } >"$log" 2>&1; then
    grep -nE 'error|Error' "$log" | head -20 >&2
    tail -20 "$log" >&2
    echo "build.sh: the build in $folder failed; the whole log is $log" >&2
    exit 70
fi
