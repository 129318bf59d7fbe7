#!/usr/bin/env bash
# build.sh FOLDER [CMAKE OPTIONS]: configures and builds quietly; prints the log when that fails.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
folder=$1
shift
mkdir -p "$folder"
log=$folder/build.log
if ! { cmake -S "$root" -B "$folder" "$@" && cmake --build "$folder" -j "$(nproc)"; } >"$log" 2>&1; then
    grep -nE 'error|Error' "$log" | head -20 >&2
    tail -20 "$log" >&2
    echo "build.sh: the build in $folder failed; the whole log is $log" >&2
    exit 70
fi
