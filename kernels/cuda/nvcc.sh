#!/usr/bin/env bash
# nvcc.sh NVCC ARGS...: runs nvcc; what ptxas only mentions is an error too: wgmma serialised, which
# it calls a "Potential Performance Loss" and no warning.
set -uo pipefail
output=$("$@" 2>&1)
result=$?
[ -z "$output" ] || echo "$output" >&2
if [ $result -eq 0 ] && grep -q 'Performance Loss' <<<"$output"; then
    exit 1
fi
exit $result
