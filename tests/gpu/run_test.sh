#!/usr/bin/env bash
# run_test.sh SWITCHYARD: what tests/gpu/run makes of programs that pass, fail, skip, and of a device that trains otherwise.
set -uo pipefail
switchyard=$1
run=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)/run
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
fail() { cat "$work/log"; echo "$1" >&2; exit 1; }
fake() { printf '#!/bin/sh\n%s\n' "$2" >"$work/bin/$1" && chmod +x "$work/bin/$1"; }
mkdir "$work/bin"
ln -s "$switchyard" "$work/bin/switchyard"
fake emulated_ptx_conformance_plain 'echo "12 cases: ok"'
fake emulated_ops_right_plain 'echo ok'
fake emulated_ops_absent_plain 'echo "skipped: no such instruction"; exit 77'
# A device that is the CPU, but begins elsewhere when it is to train a Mixtral, and goes on elsewhere with a coder: twice
# the rate.
fake switchyard_emulated "
for word; do shift; case \$word in run.device=*) word=run.device=cpu ;; esac; set -- \"\$@\" \"\$word\"; done
case \$* in
*mixtral*fp32*) set -- \"\$@\" run.seed=7 ;;
*coder*fp32*) set -- \"\$@\" optimizer.lr=2e-4 ;;
esac
exec '$switchyard' \"\$@\""

"$run" --emulated --minutes 5 --out "$work/out" "$work" >"$work/log" 2>&1 && fail "exit code 0 with failures"
grep -q '^ptx conformance  *passed' "$work/log" || fail "conformance did not pass"
grep -q '^ops_right  *passed' "$work/log" || fail "ops_right did not pass"
grep -q '^skipped ops_absent  *skipped: no such instruction' "$work/log" || fail "ops_absent was not skipped by name"
not_0='[0-9.e+-]*[1-9][0-9.e+-]*'
grep -q "^FAILED *train mixtral-8x7b fp32.*losses differ by at most $not_0, the first norm by $not_0 " "$work/log" ||
    fail "other weights went unnoticed"
grep -q "^FAILED *train coder-fim fp32.*2 steps, losses differ by at most $not_0, the first norm by 0 " "$work/log" ||
    fail "another rate went unnoticed"
for family in deepseek-v2-lite deepseek-v2 deepseek-v3; do
    for precision in fp32 bf16; do
        grep -q "^train $family $precision  *passed.*2 steps, losses differ by at most 0, the first norm by 0 " "$work/log" || fail "$family $precision"
    done
done
grep -q '^2 ranks deepseek-v3 fp32  *passed' "$work/log" || fail "two ranks"
grep -qE '^== the emulator.*: [0-9]+ passed, [1-9] failed, [1-9] skipped' "$work/log" || fail "no table"

# All right: exit code 0. A conformance that fails, and time that has run out.
rm "$work/bin/switchyard_emulated"
"$run" --emulated --out "$work/out" "$work" >"$work/log" 2>&1 || fail "exit code $? without failures"
fake emulated_ptx_conformance_plain 'echo "elect_one: WRONG at 3"; echo later; exit 1'
"$run" --emulated --out "$work/out" "$work" >"$work/log" 2>&1 && fail "exit code 0 with a failed conformance"
grep -q '^FAILED *ptx conformance.*elect_one: WRONG at 3' "$work/log" || fail "the first wrong case is not named"
"$run" --emulated --minutes 0 --out "$work/out" "$work" >"$work/log" 2>&1 && fail "exit code 0 when nothing ran"
grep -q '^skipped ops_right.*out of time' "$work/log" || fail "out of time"
exit 0
