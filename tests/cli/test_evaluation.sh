#!/usr/bin/env bash
# An evaluation that takes long: the step is saved before it, a signal and the time limit end it, and the run that resumes
# makes up for it: everything is then what it is in a run that nobody stopped. What is stopped evaluates a file that takes
# far longer than it takes to stop it; what is compared, a part of it.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"
make_data
make_config
make_text "$work/part.txt" 150000
for _ in {1..12}; do cat "$work/part.txt"; done >"$work/long.txt"
"$binary" prepare --tokenizer bytes --output "$work/long.h5" "$work/long.txt" >/dev/null

# train RANKS DIR [key=value ...]
train() {
    local count=$1 dir=$2
    shift 2
    ranks "$count" "$binary" train "$work/tiny.yaml" "run.dir=$dir" "parallel.ep=$count" data.valid="$work/long.h5" \
        run.steps=4 eval.every_steps=2 eval.batches=100 log.every_steps=1 sample.every_steps=4 sample.tokens=8 "$@"
}

# evaluating DIR STEP RECORD: its checkpoint is there, and its evaluation under way, in a run of another record.
evaluating() {
    [ "$(stat -c %i "$1/run.json")" != "$3" ] &&
        [ -f "$1/checkpoints/$(printf %08d "$2")/manifest.json" ] && grep -q "^{\"step\":$2," "$1/metrics.pending"
}

# stopped SIGNAL RC RANKS DIR STEP [key=value ...]: all ranks get the signal in the evaluation of STEP.
stopped() {
    local signal=$1 want=$2 count=$3 dir=$4 step=$5 rc=0 record
    shift 5
    record=$(stat -c %i "$dir/run.json" 2>/dev/null || true)
    train "$count" "$dir" eval.batches=0 "$@" >"$out" 2>"$err" </dev/null &
    last="train $dir $*"
    wait_for 60 evaluating "$dir" "$step" "$record" || { fail "no evaluation of step $step within 60 s"; show_last; }
    pkill -"$signal" -f "^$binary train .*run.dir=$dir " || fail "nobody is there for $signal"
    wait $! || rc=$?
    expect_same "$rc" "$want" "exit code after $signal in an evaluation"
    [ -f "$dir/metrics.pending" ] || fail "the evaluation was over before $signal came"
}

# as_whole RANKS DIR: goes on to the end, where all that was written is what the straight run wrote.
as_whole() {
    expect_rc 0 train "$1" "$2"
    expect_text "its evaluation made up for"
    expect_same "$(metric "$2" step | tr '\n' ' ')" "1 2 3 4 " "steps in $2"
    expect_same "$(metric "$work/straight-$1" loss_hex)" "$(metric "$2" loss_hex)" "losses in $2"
    expect_same "$(metric "$work/straight-$1" valid_loss)" "$(metric "$2" valid_loss)" "validation losses in $2"
    cmp "$work/straight-$1/samples.txt" "$2/samples.txt" || fail "samples in $2"
    expect_same "$(all_bits "$work/straight-$1")" "$(all_bits "$2")" "figures and tensors in $2"
    [ ! -e "$2/metrics.pending" ] || fail "metrics.pending is left in $2"
}

for n in 1 2; do
    expect_rc 0 train "$n" "$work/straight-$n"
    [ "$(metric "$work/straight-$n" valid_loss | grep -vc null)" -eq 2 ] || fail "not two evaluations on $n ranks"

    echo "$n ranks: a signal, once more while it is made up for, to the end, and a kill in the last one"
    dir=$work/left-$n
    stopped TERM 85 "$n" "$dir" 2 checkpoint.every_steps=2
    expect_text "step 2: its evaluation is left, and made first when the run resumes"
    expect_text "signal 15: saved step 2 in"
    expect_same "$(metric "$dir" valid_loss | tr '\n' ' ')" "null null " "validation losses of a run that left one"
    stopped USR1 85 "$n" "$dir" 2
    expect_rc 85 train "$n" "$dir" run.pause_at=3
    expect_text "its evaluation made up for"
    stopped KILL 137 "$n" "$dir" 4
    as_whole "$n" "$dir"
done

echo "nothing asks for a save but the end; the evaluation is no longer wanted"
stopped KILL 137 1 "$work/last" 4
expect_same "$(metric "$work/last" step | tail -n 1)" 3 "last line of a run that was killed in an evaluation"
expect_rc 0 train 1 "$work/last" data.valid=null sample.every_steps=0
expect_same "$(metric "$work/last" step | tail -n 1) $(metric "$work/last" valid_loss | tail -n 1)" "4 null" "its last line"
[ ! -e "$work/last/metrics.pending" ] || fail "metrics.pending is left"

echo "the time limit, in the first evaluation of a run, whatever its start takes"
for limit in 3 10 30; do
    expect_rc 85 train 2 "$work/limited-$limit" eval.batches=0 run.time_limit=$limit
    ! grep -q "run.time_limit $limit: saved step [01] in" "$out" || continue
    expect_text "step 2: its evaluation is left"
    expect_text "run.time_limit $limit: saved step 2 in"
    break
done
[ -f "$work/limited-$limit/metrics.pending" ] || fail "no evaluation was left for the time limit"
finish
