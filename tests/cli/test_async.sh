#!/usr/bin/env bash
# Saves written beside the training: the same run and the same checkpoints as with saves that training waits for;
# signals and kills while one is being written.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"
make_data
make_config
shopt -s nullglob

echo "the same checkpoints, and the same losses"
for layout in 1,1 2,2; do
    n=${layout%,*} ep=${layout#*,}
    beside=$work/beside-$n waiting=$work/waiting-$n
    more="run.steps=8 checkpoint.every_steps=3 checkpoint.keep_last=9 train.precision=bf16"
    expect_rc 0 train_on "$n" "$ep" "$beside" $more
    expect_text "saves are written beside the training"
    expect_rc 0 train_on "$n" "$ep" "$waiting" $more checkpoint.async=false
    expect_same "$(metric "$beside" loss_hex)" "$(metric "$waiting" loss_hex)" "losses at $layout"
    expect_same "$(ls "$beside/checkpoints" | tr '\n' ' ')" "00000003 00000006 00000008 LATEST " "saves at $layout"
    for step in 00000003 00000006 00000008; do
        expect_rc 0 "$binary" ckpt diff "$beside/checkpoints/$step" "$waiting/checkpoints/$step"
        cmp "$beside/checkpoints/$step/shard-00000.h5" "$waiting/checkpoints/$step/shard-00000.h5" ||
            fail "the shard of $step differs at $layout"
    done
    expect_rc 0 "$binary" ckpt verify --deep "$beside"
    grep -q '"save":' "$beside/metrics.jsonl" || fail "metrics do not say what saves take"
done

# slow_run DIR [key=value ...]: in the background, every file operation of a save 50 ms late; waits until a save is
# on its way that is not the first thing the run does.
slow_run() {
    local dir=$1
    shift
    "$binary" train "$work/tiny.yaml" "run.dir=$dir" checkpoint.every_steps=3 checkpoint.keep_last=99 \
        debug.fault=io:slow:1+ "$@" >"$out" 2>"$err" </dev/null &
    runner=$!
    last="train run.dir=$dir $*"
    wait_for 30 writing "$dir" || { fail "no save began within 30 s"; show_last; }
}

# writing DIR: a save is on its way.
writing() {
    local works=("$1"/checkpoints/.tmp-*)
    [ ${#works[@]} -gt 0 ]
}

echo "a signal while a save is written"
dir=$work/signal
slow_run "$dir" run.steps=1000000
kill -TERM "$runner"
rc=0
wait "$runner" || rc=$?
[ "$rc" -eq 85 ] || { fail "exit code $rc, expected 85"; show_last; }
expect_text "the same command resumes"
step=$(metric "$dir" step | tail -n 1)
for saved in 3 "$step"; do
    expect_rc 0 "$binary" ckpt verify "$dir/checkpoints/$(printf %08d "$saved")"
done
! writing "$dir" || fail "half a save is left"
expect_rc 0 "$binary" train "$work/tiny.yaml" "run.dir=$dir" "run.steps=$((step + 2))"
expect_text "resuming at step $step"

echo "killed while a save is written"
dir=$work/killed
expect_rc 0 train_on 1 1 "$work/straight"
expect_rc 0 train_on 1 1 "$dir" run.steps=5
slow_run "$dir" run.steps=1000000
kill -KILL "$runner"
wait "$runner" || true
writing "$dir" || fail "it was not killed in a save"
expect_rc 0 train_on 1 1 "$dir"
expect_text "resuming at step 5"
! writing "$dir" || fail "half a save is left"
expect_same "$(metric "$work/straight" loss_hex)" "$(metric "$dir" loss_hex)" "losses after a kill"
expect_rc 0 "$binary" ckpt diff "$work/straight/checkpoints/00000020" "$dir/checkpoints/00000020"

echo "the interval from what saves cost"
expect_rc 0 train_on 1 1 "$work/auto" checkpoint.mtbf_hours=10 checkpoint.every_steps=1 run.steps=40
expect_text "saved step 10 in "
expect_text "x 10 h)"
[ ! -e "$work/auto/checkpoints/00000001" ] || fail "every_steps counts beside mtbf_hours"
grep -q "the next in" "$work/auto/log.txt" || fail "log.txt does not tell the interval"
finish
