#!/usr/bin/env bash
# nvcc.sh NVCC ARGS... -o OBJECT: runs nvcc; what ptxas only mentions is an error too: wgmma serialised, which it calls
# a "Potential Performance Loss" and no warning. What it says of every kernel (-Xptxas=-v) goes to OBJECT.info, the rest
# to stderr.
set -uo pipefail
output=$("$@" 2>&1)
result=$?
about='^ptxas info|^ +[0-9]+ bytes (stack frame|gmem)'
grep -E "$about" <<<"$output" >"${*: -1}.info"
rest=$(grep -vE "$about" <<<"$output")
[ -z "$rest" ] || echo "$rest" >&2
if [ $result -eq 0 ] && grep 'Performance Loss' <<<"$output" >&2; then
    exit 1
fi
exit $result
