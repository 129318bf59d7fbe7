#!/usr/bin/env bash
# finds.sh REGEX... -- COMMAND...: the command fails with exit code 1 and reports every one of these.
set -uo pipefail
reports=()
while [ "$1" != -- ]; do
    reports+=("$1") && shift
done
shift
output=$("$@" 2>&1)
code=$?
[ $code -eq 1 ] || { printf '%s\n' "$output" | tail -20; echo "exit code $code, want 1"; exit 1; }
for report in "${reports[@]}"; do
    grep -qE -- "$report" <<<"$output" || { printf '%s\n' "$output"; echo "no report like '$report'"; exit 1; }
done
