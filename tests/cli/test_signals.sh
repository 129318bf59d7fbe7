#!/usr/bin/env bash
# Stopped from outside: by a signal (a save and 85), by the death of a rank, by a kill in a save.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"
make_data
make_config

# start RANKS EP DIR [key=value ...]: in the background; $launcher is mpirun, $children the ranks.
start() {
    local count=$1 ep=$2 dir=$3
    shift 3
    # Without -q: Open MPI's message names a rank that dies.
    mpirun --allow-run-as-root --oversubscribe --bind-to none -np "$count" \
        "$binary" train "$work/tiny.yaml" "run.dir=$dir" "parallel.ep=$ep" run.steps=1000000 "$@" \
        >"$out" 2>"$err" </dev/null &
    launcher=$!
    last="mpirun -np $count train run.dir=$dir $*"
    wait_for 30 has_steps "$dir" 3 || { fail "no steps within 30 s"; show_last; }
    children=$(pgrep -P "$launcher" -f "$binary" | sort -n)
}

# gone PID: ended; whether somebody collected it doesn't matter.
gone() {
    local state
    state=$(ps -o stat= -p "$1") || return 0
    [ "${state:0:1}" = Z ]
}

# ended RC: of $launcher, within 20 s.
ended() {
    local rc=0
    wait_for 20 gone "$launcher" || { fail "still there after 20 s"; kill -KILL "$launcher"; }
    wait "$launcher" || rc=$?
    [ "$rc" -eq "$1" ] || { fail "exit code $rc, expected $1"; show_last; }
}

# goes_on DIR: the newest checkpoint is of the last step of metrics.jsonl, and the same command
# with three more steps resumes there.
goes_on() {
    local dir=$1 step
    shift
    step=$(metric "$dir" step | tail -n 1)
    [ -f "$dir/checkpoints/$(printf %08d "$step")/manifest.json" ] ||
        fail "no checkpoint of step $step after the signal"
    expect_rc 0 ranks 2 "$binary" train "$work/tiny.yaml" "run.dir=$dir" parallel.ep=2 \
        "run.steps=$((step + 3))" "$@"
    expect_text "resuming at step $step"
    expect_same "$(metric "$dir" step | tr '\n' ' ')" "$(seq $((step + 3)) | tr '\n' ' ')" "steps in $dir"
}

for signal in USR1 TERM INT; do
    echo "SIG$signal to the ranks"
    start 2 2 "$work/ranks-$signal"
    kill -"$signal" $children
    ended 85
    expect_text "the same command resumes"
    goes_on "$work/ranks-$signal"
done

echo "SIGUSR1 to one rank only"
start 2 2 "$work/one"
kill -USR1 "$(tail -n 1 <<<"$children")"
ended 85
goes_on "$work/one"

echo "SIGUSR1 to mpirun and to the ranks, again and again"
start 2 2 "$work/again"
kill -USR1 "$launcher"
for _ in 1 2 3; do
    kill -USR1 $children 2>/dev/null || true # all may be gone by now
    sleep 0.02
done
ended 85
goes_on "$work/again"

echo "SIGUSR1 to mpirun, bf16"
start 2 2 "$work/mpirun" train.precision=bf16
kill -USR1 "$launcher"
ended 85
goes_on "$work/mpirun" train.precision=bf16

echo "without mpirun"
"$binary" train "$work/tiny.yaml" "run.dir=$work/alone" run.steps=1000000 >"$out" 2>"$err" &
launcher=$!
wait_for 30 has_steps "$work/alone" 3 || fail "no steps within 30 s"
kill -TERM "$launcher"
ended 85
goes_on "$work/alone"

for victim in head tail; do
    echo "SIGKILL to one rank ($victim)"
    start 2 2 "$work/dead-$victim" checkpoint.every_steps=2
    wait_for 30 test -f "$work/dead-$victim/checkpoints/LATEST" || fail "no checkpoint within 30 s"
    began=$(date +%s%N)
    kill -KILL "$($victim -n 1 <<<"$children")"
    ended 137
    took=$((($(date +%s%N) - began) / 1000000))
    [ "$took" -lt 5000 ] || fail "a dead rank ended the job only after $took ms"
    grep -qE "process rank [01] .*exited on signal 9" "$err" || { fail "no message names the rank"; show_last; }
    for child in $children; do
        wait_for 3 gone "$child" || fail "rank with pid $child survived"
    done
    expect_rc 0 train_on 2 2 "$work/dead-$victim" run.steps=2
    expect_text "resuming at step"
done

echo "SIGKILL in a save"
expect_rc 0 train_on 1 1 "$work/straight-1" run.steps=10
expect_rc 0 train_on 2 2 "$work/straight-2" run.steps=10
expect_rc 0 train_on 1 1 "$work/base-1" run.steps=5
expect_rc 0 train_on 2 2 "$work/base-2" run.steps=5

# short_run RANKS DIR [key=value ...]: one rank without mpirun, which takes most of the time.
short_run() {
    local count=$1 dir=$2
    shift 2
    if [ "$count" = 1 ]; then
        "$binary" train "$work/tiny.yaml" "run.dir=$dir" run.steps=10 "$@"
    else
        train_on "$count" "$count" "$dir" run.steps=10 "$@"
    fi
}

# killed_at RANKS KIND OPERATION: in the save of step 10, after a good one of step 5. Then the same
# command must resume at 5, or at 10 where that one was whole, and end as if nothing had happened.
# Sets $reached to whether the save got that far.
killed_at() {
    local count=$1 kind=$2 operation=$3 dir=$work/k$1-$2-$3 rc=0
    cp -r "$work/base-$count" "$dir"
    short_run "$count" "$dir" checkpoint.keep_last=1 "debug.fault=io:$kind:$operation" \
        >"$out" 2>"$err" </dev/null || rc=$?
    last="train run.dir=$dir debug.fault=io:$kind:$operation on $count ranks"
    reached=0
    [ $rc -ne 0 ] || { rm -rf "$dir"; return 0; }
    reached=1
    [ $rc -eq 137 ] || { fail "exit code $rc, expected 137"; show_last; }
    expect_rc 0 short_run "$count" "$dir"
    grep -qE "resuming at step (5|10) " "$out" || { fail "not resumed after $kind:$operation"; show_last; }
    expect_same "$(metric "$work/straight-$count" loss_hex)" "$(metric "$dir" loss_hex)" \
        "losses after $kind:$operation on $count ranks"
    case "$(ls -A "$dir/checkpoints" | tr '\n' ' ')" in
    "00000005 00000010 LATEST " | "00000010 LATEST ") ;;
    *) fail "after $kind:$operation on $count ranks: $(ls -A "$dir/checkpoints" | tr '\n' ' ')" ;;
    esac
    rm -rf "$dir"
}

# Every operation in turn: test_checkpoint_faults and test_save_errors, inside one process. Here the whole program.
stride=9
[ "$full" = 0 ] || stride=5
for kind in kill-before kill-torn kill-after; do
    offset=1
    [ "$kind" = kill-before ] || offset=3
    [ "$kind" != kill-after ] || offset=5
    hit=0
    for ((operation = offset; operation < 200; operation += stride)); do
        killed_at 1 "$kind" "$operation"
        [ "$reached" = 1 ] || break
        hit=$((hit + 1))
    done
    [ "$hit" -ge 3 ] || fail "only $hit operations of a save were hit by $kind"
    for operation in $([ "$full" = 0 ] && echo $((2 * offset + 1)) || seq "$offset" 4 25); do
        killed_at 2 "$kind" "$operation"
    done
done
finish
