#!/usr/bin/env bash
# A rank that dies, crashes or hangs ends the job, and what is printed says which one, and where it was.
# test_watchdog.sh SOURCE BINARY [TRIALS]: that many random ones behind the fixed ones (docs/reliability.md).
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"
make_data
make_config
trials=${3:-0}
[ "$full" = 0 ] || [ "$trials" -gt 0 ] || trials=4

# no_survivors DIR: nothing that has DIR on its command line is left after 10 s.
no_survivors() {
    wait_for 10 bash -c '! pgrep -f "run.dir=$1 " >/dev/null' _ "$1" || fail "a rank of $1 survived"
}

# fails_with RC RANKS FAULT [key=value ...]: that fault ends the run with RC and one block of text.
fails_with() {
    local rc=$1 count=$2 fault=$3 dir=$work/run-${3//:/-}
    shift 3
    expect_rc "$rc" train_on "$count" 2 "$dir" checkpoint.every_steps=2 checkpoint.async=false run.steps=50 "debug.fault=$fault" "$@"
    no_survivors "$dir"
    [ "$(grep -c 'switchyard: .*rank' "$err")" -le 2 ] || { fail "more than one block"; show_last; }
}

echo "killed"
fails_with 137 2 kill:3:1
expect_text "switchyard: rank 1 of 2"
expect_text "is gone: it was in step 3"
expect_text "last checkpoint: step 2 in $work/run-kill-3-1/checkpoints; the same command resumes there"

echo "crashed"
fails_with 139 2 segv:5:0
expect_text "switchyard: rank 0 of 2"
expect_text "signal 11 (segmentation fault) in step 5; its calls:"
expect_text "last checkpoint: step 4"

echo "stopped"
fails_with 76 4 stop:3:2 watchdog.step_seconds=2 debug.profile="$work/hung.json"
expect_text "switchyard: hang: nothing moved for 2 s"
expect_text "1 of 4 ranks do not answer"
grep -E "rank 2 .*: step 3.*does not answer: stopped" "$err" >/dev/null || { fail "rank 2 is not named"; show_last; }
grep -E "rank 0 .*in (all_reduce|all_to_all|all_gather) of [a-z]+ \(" "$err" >/dev/null || fail "what rank 0 waits in is not said"
[ -s "$work/run-stop-3-2/health/00000.stack" ] || fail "no calls of rank 0"
python3 - "$work/hung.json" <<'PY' || fail "the profiles of those that waited are not what they should be"
import json, sys
for rank in (0, 1, 3):
    trace = json.load(open(f"{sys.argv[1]}.rank{rank}"))
    spans = [e for e in trace["traceEvents"] if e["ph"] == "X"]
    assert {e["pid"] for e in spans} == {rank} and list(trace["otherData"]) == [f"rank {rank}"]
    last = max(spans, key=lambda e: e["ts"] + e["dur"])
    assert last["cat"] == "message" and last["args"]["step"] == 3 and last["dur"] > 1.5e6, last
PY
expect_rc 0 train_on 2 2 "$work/run-stop-3-2" run.steps=4
expect_text "resuming at step 2"

echo "no false alarm: the whole job stopped for longer than the limit, then continued"
mpirun --allow-run-as-root --oversubscribe --bind-to none -q -np 2 "$binary" train "$work/tiny.yaml" "run.dir=$work/paused" \
    parallel.ep=2 run.steps=1000000 watchdog.step_seconds=2 >"$out" 2>"$err" </dev/null &
job=$!
wait_for 30 has_steps "$work/paused" 3 || fail "no steps within 30 s"
pkill -STOP -f "run.dir=$work/paused"
sleep 4
steps=$(wc -l <"$work/paused/metrics.jsonl")
pkill -CONT -f "run.dir=$work/paused"
wait_for 30 has_steps "$work/paused" $((steps + 50)) || fail "continued, it does not train on"
kill -USR1 "$job"
rc=0
wait "$job" || rc=$?
[ "$rc" -eq 85 ] || { fail "stopped and continued, it ended with $rc"; show_last; }

echo "no false alarm: one rank that computes for longer than the limit and exchanges nothing"
for batch in 1024 4096 16384 65536; do # how many take longer depends on the machine
    expect_rc 0 "$binary" train "$work/tiny.yaml" "run.dir=$work/alone-$batch" run.steps=1 train.global_batch=$batch train.sequence_length=256 watchdog.step_seconds=1
    longer=$(metric "$work/alone-$batch" step_ms | awk '{ print ($1 > 1500) }')
    [ "$longer" = 0 ] || break
done
expect_same "$longer" 1 "whether a step took longer than the limit"

echo "no false alarm: a save that takes longer than the limit, but goes on"
# In memory, where it can, every operation takes the drill's 50 ms and no more: a sync of a disk that others use may take
# longer than any limit that is to be tested in seconds.
memory=$(mktemp -d /dev/shm/switchyard-XXXXXX 2>/dev/null || echo "$work")
expect_rc 0 "$binary" train "$work/tiny.yaml" "run.dir=$memory/slow" run.steps=2 checkpoint.every_steps=1 checkpoint.async=false \
    model.hidden_size=512 model.intermediate_size=1024 debug.fault=io:slow:1+ watchdog.save_seconds=1
python3 -c 'import json, sys; sys.exit(not max(json.loads(line)["phase_ms"]["save"] for line in open(sys.argv[1])) > 1500)' "$memory/slow/metrics.jsonl" || fail "the save was too short to show anything"
rm -rf "$memory/slow"
rmdir "$memory" 2>/dev/null || true

echo "switched off"
expect_rc 0 train_on 1 1 "$work/off" run.steps=1 watchdog.enabled=false
[ ! -e "$work/off/health" ] || fail "a folder in spite of watchdog.enabled=false"

echo "time limit"
expect_rc 85 "$binary" train "$work/tiny.yaml" "run.dir=$work/limited" run.steps=1000000 run.time_limit=3s
expect_text "run.time_limit 3s: saved step"
expect_rc 0 "$binary" train "$work/tiny.yaml" "run.dir=$work/limited" run.steps=2 run.time_limit=1-00:00:00
expect_rc 85 train_on 2 2 "$work/pauses" run.steps=4 run.pause_at=2
expect_text "run.pause_at: saved step 2"
expect_rc 0 train_on 2 2 "$work/pauses" run.steps=4 run.pause_at=2
expect_text "resuming at step 2"
expect_error 64 "run.time_limit: 'soon' is no time" "$binary" train "$work/tiny.yaml" run.time_limit=soon
expect_error 64 "debug.fault" "$binary" train "$work/tiny.yaml" debug.fault=kill:0:0

if [ "$trials" -gt 0 ]; then
    echo "$trials random ones"
    RANDOM=7
    caught=0
    for trial in $(seq "$trials"); do
        kind=$(printf '%s\n' kill segv exit stop nan | sed -n "$((RANDOM % 5 + 1))p")
        count=$((2 * (RANDOM % 2 + 1)))
        before=$failures
        case $kind in kill) want=137 ;; segv) want=139 ;; exit) want=1 ;; stop) want=76 ;; nan) want=77 ;; esac
        fails_with $want $count "$kind:$((RANDOM % 20 + 2)):$((RANDOM % count))" watchdog.step_seconds=2
        rm -rf "$work"/run-"$kind"-*
        caught=$((caught + (before == failures)))
    done
    echo "$caught of $trials as expected: exit code, message, no survivor"
fi
finish
