#!/usr/bin/env bash
# goldens_test.sh PROGRAM MUTANT: goldens agree with the run that wrote them under another order, and tell of a wrong
# wrapper, another seed, a damaged file.
set -euo pipefail
program=$1 mutant=$2
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
fail() { echo "$1" >&2; exit 1; }
exits() { # CODE COMMAND...
    local want=$1 code=0
    shift
    "$@" >"$folder/log" 2>&1 || code=$?
    [ $code -eq "$want" ] || { cat "$folder/log"; fail "exit code $code, want $want: $*"; }
}
exits 0 "$program" --save "$folder/good" 0
exits 0 "$program" --golden "$folder/good" 5
exits 0 env EMU_HOPPER_FP8=1 "$program" --golden "$folder/good"
grep -q 'largest difference of fractions 0\.00[0-9]*$' "$folder/log" || fail "sums of 14 bits make no difference"
exits 1 "$mutant" --save "$folder/bad"
exits 1 "$program" --golden "$folder/bad"
grep -q 'ldmatrix_x4_trans: WRONG against the golden' "$folder/log" || fail "the wrong golden went unnoticed"
exits 65 "$program" --seed 2 --golden "$folder/good"
printf x | dd of="$folder/good" bs=1 seek=1000 conv=notrunc status=none
exits 65 "$program" --golden "$folder/good"
