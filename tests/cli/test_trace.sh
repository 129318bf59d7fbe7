#!/usr/bin/env bash
# debug.trace and `trace diff`: the same on every layout where it is the same, and what differs is
# named with its first step, layer and tensor; a killed run's file still reads.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"
make_data
make_config deepseek_v3
cd "$work"

# traced NAME RANKS EP [key=value ...]
traced() {
    local name=$1 count=$2 ep=$3 run=()
    shift 3
    [ "$count" -eq 1 ] || run=(ranks "$count")
    expect_rc 0 "${run[@]}" "$binary" train tiny.yaml "run.dir=$name" "parallel.ep=$ep" \
        "debug.trace=$name.h5" checkpoint.every_steps=0 "$@"
}

# difference A B: what `trace diff --json` says, as lines KEY=VALUE in $work/diff.
difference() {
    expect_rc "$3" "$binary" trace diff "$1.h5" "$2.h5" --json
    python3 - "$out" <<'PY' >"$work/diff" || fail "trace diff --json is not JSON"
import json, sys
for key, value in json.load(open(sys.argv[1])).items():
    print(f"{key}={value}")
PY
}
is() { grep -qxF -e "$1" "$work/diff" || { fail "trace diff: no $1"; cat "$work/diff"; }; }

echo "the same run, twice"
traced one 1 1 run.steps=2
traced again 1 1 run.steps=2 debug.trace_values=all
expect_rc 0 "$binary" trace diff one.h5 again.h5
expect_text "the same: steps 0 to 2, 3 compared"
difference one again 0
is "same=True"

echo "two ranks: forward is the same bits, gradients add up in another order"
traced two 2 2 run.steps=2 debug.trace_values=all
difference again two 1
is "step=1"
is "unit=-1"
grep -q '^tensor=gradient of ' diff || fail "two ranks differ elsewhere than in a gradient"

echo "another learning rate: the first weight after the first update"
traced rate 1 1 run.steps=2 optimizer.lr=0.0021 debug.trace_values=all
expect_rc 1 "$binary" trace diff again.h5 rate.h5
expect_text "step 1: weight of model.embed_tokens.weight, float32 [257, 32]"
expect_text "first at ["
expect_text "1 steps before it are the same"

echo "a gradient one rank gets wrong, a layer that is not what it was"
traced fault 2 2 run.steps=2 debug.trace_values=all debug.fault=gradient:2:1
difference two fault 1
is "step=2"
is "unit=1"
is "layer=3" # the last module of multi-token prediction: backward begins there
is "tensor=gradient of the block's input"
grep -q '^relative=0.0099' diff || grep -q '^relative=0.01' diff || fail "relative is not 1 %"
if [ "$full" = 1 ]; then
    traced seed 1 1 run.steps=1 run.seed=5
    difference one seed 1
    is "step=0"
    is "unit=-1"
    for family in mixtral deepseek_v2; do
        make_config "$family"
        traced "$family-1" 1 1 run.steps=2 train.precision=bf16 train.recompute=block
        traced "$family-4" 4 2 run.steps=1 train.precision=bf16 router.dispatch=padded
        difference "$family-1" "$family-4" 1
        is "unit=-1"
        grep -q '^tensor=gradient of ' diff || fail "$family: four ranks differ in forward"
    done
    make_config deepseek_v3
fi

echo "a step that diverges is in the file"
expect_rc 77 "$binary" train tiny.yaml run.dir=nan run.steps=2 debug.trace=nan.h5 debug.fault=nan:2:0
difference one nan 1
is "step=2"

echo "a window, and a bound"
traced window 1 1 run.steps=3 debug.trace_from=2 debug.trace_steps=1 debug.trace_values=hashes
expect_rc 0 "$binary" trace diff window.h5 one.h5
expect_text "the same: steps 1 to 2, 2 compared"
traced bound 1 1 run.steps=2 debug.trace_values=all debug.trace_mib=1
expect_text "debug.trace_mib 1 is reached in step 1"
[ "$(stat -c %s bound.h5)" -lt 2500000 ] || fail "the file is larger than its bound"

echo "files that are none"
expect_error 74 "none.h5" "$binary" trace diff none.h5 one.h5
expect_error 65 "not a trace" "$binary" trace diff train.h5 one.h5
head -c 5000 one.h5 >cut.h5
expect_error 65 "not a trace" "$binary" trace diff cut.h5 one.h5
expect_error 64 "unexpected" "$binary" trace diff one.h5 one.h5 one.h5
expect_error 65 "no whole step in common" "$binary" trace diff bound.h5 window.h5
expect_error 74 "cannot write the trace" "$binary" train tiny.yaml run.dir=x debug.trace=no/such/t.h5

echo "a killed run, which goes on"
expect_rc 137 "$binary" train tiny.yaml run.dir=killed run.steps=3 debug.trace=killed.h5 \
    checkpoint.every_steps=1 checkpoint.async=false debug.fault=kill:3:0
traced whole 1 1 run.steps=3
expect_rc 0 "$binary" trace diff whole.h5 killed.h5
expect_text "the same: steps 0 to 2, 3 compared"
expect_rc 0 "$binary" train tiny.yaml run.dir=killed run.steps=3 debug.trace=killed.h5
expect_rc 0 "$binary" trace diff whole.h5 killed.h5
expect_text "the same: steps 2 to 3, 2 compared"
expect_rc 0 "$binary" trace diff whole.h5 killed.h5.old-1
finish
