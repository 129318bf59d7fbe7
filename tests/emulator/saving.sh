#!/usr/bin/env bash
# saving.sh SOURCE_DIR SWITCHYARD_EMULATED: saves beside the training on emulated GPUs, which copy the state themselves
# while the next step computes. Killed in a save, or stopped, and resumed, a run ends with the losses and the tensors of
# one that waits for its saves and that nobody interrupts.
set -euo pipefail
. "$1/tests/cli/common.sh"
make_data
make_config
cd "$work"
train() { "$binary" train tiny.yaml run.device=cuda run.steps=8 checkpoint.every_steps=2 checkpoint.keep_last=9 "$@"; }

# same RUN STEPS WHAT: as the run that waits.
same() {
    expect_same "$(metric waiting loss_hex | head -n "$2")" "$(metric "$1" loss_hex)" "losses $3"
    expect_rc 0 "$binary" ckpt diff "waiting/checkpoints/$(printf %08d "$2")" "$1/checkpoints/$(printf %08d "$2")"
}

for precision in fp32 bf16; do
    echo "$precision: as with saves that training waits for"
    rm -rf waiting beside killed
    expect_rc 0 train run.dir=waiting train.precision=$precision checkpoint.async=false
    expect_rc 0 train run.dir=beside train.precision=$precision
    expect_text "saves are written beside the training"
    same beside 8 "in $precision"
    for step in 2 4 6 8; do
        cmp waiting/checkpoints/0000000$step/shard-00000.h5 beside/checkpoints/0000000$step/shard-00000.h5 ||
            fail "$precision: the shard of step $step differs"
    done

    echo "$precision: killed in the save of step 6"
    for operation in 3 7; do
        rm -rf killed
        expect_rc 0 train run.dir=killed train.precision=$precision run.steps=4
        expect_rc 137 train run.dir=killed train.precision=$precision debug.fault=io:kill-torn:$operation
        expect_text "resuming at step 4"
        ls -A killed/checkpoints | grep -q '^\.tmp-00000006' || fail "it was not killed in the save of step 6"
        expect_rc 0 train run.dir=killed train.precision=$precision
        expect_text "resuming at step 4"
        same killed 8 "after a kill at operation $operation of a save, in $precision"
    done
done

echo "stopped by a signal"
"$binary" train tiny.yaml run.device=cuda checkpoint.every_steps=2 checkpoint.keep_last=9 run.dir=stopped run.steps=1000000 \
    train.precision=bf16 >"$out" 2>"$err" </dev/null &
runner=$!
last="train run.dir=stopped"
wait_for 120 has_steps stopped 3 || { fail "no third step"; show_last; }
kill -TERM "$runner"
rc=0
wait "$runner" || rc=$?
expect_same "$rc" 85 "exit code after a signal"
step=$(metric stopped step | tail -n 1)
rm -rf waiting
expect_rc 0 train run.dir=waiting train.precision=bf16 checkpoint.async=false run.steps=$((step + 2))
expect_rc 0 train run.dir=stopped train.precision=bf16 run.steps=$((step + 2))
expect_text "resuming at step $step"
same stopped $((step + 2)) "after a signal at step $step"

echo "two ranks"
two() { ranks 2 "$binary" train tiny.yaml run.device=cuda run.steps=6 checkpoint.every_steps=2 parallel.ep=2 "$@"; }
rm -rf waiting
expect_rc 0 two run.dir=waiting checkpoint.async=false
expect_rc 0 two run.dir=two
same two 6 "on two ranks"
finish
