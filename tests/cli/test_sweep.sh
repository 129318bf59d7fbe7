#!/usr/bin/env bash
# sweep: trials side by side are what they are alone, whatever happens to others; it goes on where it stopped.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"
make_data
make_config
cd "$work"

# sweep_file NAME LINES...: NAME.yaml with dir NAME.
sweep_file() {
    local name=$1
    shift
    printf '%s\n' "base: tiny.yaml" "dir: $name" "$@" >"$name.yaml"
}

# state SWEEP TRIAL
state() {
    sed -n 's/.*"state": "\([a-z]*\)".*/\1/p' "$1/$2.json"
}

echo "a grid with sabotaged trials"
sweep_file grid "set: {run.steps: 12, eval.every_steps: 4}" "parameters:" \
    "  optimizer.lr: [3e-3, 1e-3]" "  debug.fault: [null, 'kill:5:0', 'segv:5:0', 'nan:5:0']" \
    "launch: {ranks: 1, slots: 2}"
expect_rc 0 "$binary" sweep grid.yaml
for trial in 0000 0004; do
    expect_same "$(state grid $trial)" done "state of trial $trial"
done
expect_same "$(for t in 1 2 3 5 6 7; do state grid 000$t; done | sort -u)" failed "state of the sabotaged ones"
expect_text "6 of 8 trials failed"
expect_text "exit 137: signal 9 (Killed), and no word of why"
expect_text "exit 139"
expect_text "exit 77: step 5: loss"
lr=(3e-3 1e-3)
for i in 0 1; do
    expect_rc 0 "$binary" train tiny.yaml run.dir=solo-$i run.steps=12 eval.every_steps=4 "optimizer.lr=${lr[i]}" run.threads=1 run.pin=false
    expect_same "$(metric grid/000$((4 * i)) loss_hex)" "$(metric solo-$i loss_hex)" "losses of a trial and of its solo run"
done
python3 - <<'PY' || fail "results.csv is not what it should be"
import csv
rows = list(csv.DictReader(open("grid/results.csv")))
assert len(rows) == 8 and [r["state"] for r in rows].count("done") == 2, rows
assert rows[0]["state"] == "done" and rows[0]["optimizer.lr"] == "3e-3", rows[0]
assert float(rows[0]["valid_loss"]) < float(rows[1]["valid_loss"]), rows
PY
grep -q '<td>0000</td><td>done</td>' grid/results.html || fail "results.html lacks trial 0"
expect_rc 0 "$binary" train grid/best.yaml run.steps=13
[ -d grid-best ] || fail "best.yaml trained elsewhere"
expect_rc 0 "$binary" sweep grid.yaml
grep -q begins "$out" && fail "a finished sweep began a trial"
expect_rc 0 "$binary" sweep grid.yaml --retry
expect_same "$(grep -c begins "$out")" 6 "trials run again"

echo "stopped and continued"
cat >hold.sh <<'END'
[ -e held ] || { touch held; exec "$@" debug.fault=stop:5:0; } # the first trial waits in step 5 until it is let go
exec "$@"
END
sweep_file halted "set: {run.steps: 60}" "metric: loss" "method: random" "trials: 3" "seed: 5" \
    "parameters:" "  optimizer.lr: {low: 1e-4, high: 1e-2, scale: log}" "  train.micro_batch: {low: 1, high: 2}" \
    'launch: {ranks: 2, slots: 1, command: "bash hold.sh mpirun -q --oversubscribe --bind-to none --allow-run-as-root -np {ranks}"}'
"$binary" sweep halted.yaml >"$out" 2>"$err" &
sweep=$!
# asked DIR: the rank that waits has a signal to see to as soon as it goes on.
asked() {
    local rank
    for rank in $(pgrep -f "$binary train .*run.dir=$1 "); do
        grep -qE '^State:.T' "/proc/$rank/status" && grep -qE '^ShdPnd:.*[1-9a-f]' "/proc/$rank/status" && return 0
    done
    return 1
}
wait_for 30 has_steps halted/0000 4 || fail "no steps within 30 s"
expect_error 64 "lock" "$binary" sweep halted.yaml
kill -TERM "$sweep"
wait_for 30 asked halted/0000 || fail "the trial was not asked to stop within 30 s"
pkill -CONT -f "$binary train .*run.dir=halted/0000 "
rc=0
wait "$sweep" || rc=$?
expect_same "$rc" 85 "exit code of a stopped sweep"
expect_same "$(state halted 0000)" running "state of the trial that was interrupted"
expect_rc 0 "$binary" sweep halted.yaml
expect_text "trial 0000  begins   step"
expect_same "$(metric halted/0000 step | tr '\n' ' ')" "$(seq 60 | tr '\n' ' ')" "steps of the interrupted trial"
expect_same "$(for t in 0 1 2; do state halted 000$t; done | sort -u)" done "states at the end"
sed -i 's/seed: 5/seed: 6/' halted.yaml
expect_error 64 "made from another sweep file" "$binary" sweep halted.yaml

echo "stopped while a launcher is starting"
cat >late.sh <<'END'
trap : USR1 # as mpirun before its ranks are there: the signal is lost
touch starting
while [ ! -e go ]; do sleep 0.05; done
exec "$@"
END
sweep_file late "set: {run.steps: 1000000}" "metric: loss" "parameters: {optimizer.lr: [1e-3]}" 'launch: {command: "bash late.sh"}'
"$binary" sweep late.yaml >"$out" 2>"$err" &
sweep=$!
wait_for 30 test -e starting || fail "the launcher did not start within 30 s"
kill -TERM "$sweep"
sleep 0.5 # time to lose a signal in
touch go
rc=0
wait "$sweep" || rc=$?
expect_same "$rc $(state late 0000)" "85 running" "a sweep stopped while its trial started"
[ -f "late/0000/checkpoints/$(printf %08d "$(metric late/0000 step | tail -n 1)")/manifest.json" ] || fail "the trial did not save"

echo "all fail"
sweep_file lost "set: {run.steps: 5}" "metric: loss" "parameters: {debug.fault: ['nan:2:0', 'nan:3:0']}" "launch: {slots: 2}"
expect_error 77 "every trial failed; the first with exit code 77: step 2" "$binary" sweep lost.yaml --quiet
[ ! -e lost/best.yaml ] || fail "a best config of trials that all failed"
expect_rc 0 "$binary" sweep lost.yaml --table
sweep_file lost2 "set: {run.steps: 5}" "metric: loss" "parameters: {debug.fault: ['nan:2:0', 'kill:2:0']}" "launch: {slots: 2}"
expect_error 70 "every trial failed" "$binary" sweep lost2.yaml --quiet
cat >refuse.sh <<'END'
printf '%s\n' 'a line before' --------------- 'There are not enough slots available in the system to satisfy the 3' \
    'slots that were requested by the application:' '' '  ./train' '' 'Either request fewer' --------------- # as mpirun does
exit 1
END
sweep_file lost3 "metric: loss" "parameters: {optimizer.lr: [1e-3, 2e-3]}" 'launch: {command: "bash refuse.sh"}'
expect_error 70 "the first with exit code 1: There are not enough slots available in the system to satisfy the 3 slots that were requested by the application:" \
    "$binary" sweep lost3.yaml
expect_text "exit 1: There are not enough slots"
printf 'printf "asked\\nsrun: error: no nodes\\n\\n"\nexit 3\n' >refuse.sh
expect_error 70 "the first with exit code 3: srun: error: no nodes" "$binary" sweep lost3.yaml --retry

echo "values that are lists of maps; steps of each trial its own"
sweep_file nested "metric: loss" \
    "set: {data.valid: null, eval.every_steps: 0, sample.prompt: '\"a\" b', optimizer.freeze: [\"lm_head.weight\"]}" "parameters:" \
    "  data.train: [[{path: train.h5, weight: 2}, {path: \"valid.h5\", weight: 1, epochs: 100}], [{path: train.h5}]]" \
    "  run.steps: [3, 2]" "launch: {slots: 2}"
expect_rc 0 "$binary" sweep nested.yaml
expect_text "data.train=[{path: train.h5, weight: 2}, {path: 'valid.h5', weight: 1, epochs: 100}]  run.steps=3"
grep -q 'valid.h5' nested/0000/config.yaml || fail "the nested list did not reach the trial"
grep -qF 'prompt: "\"a\" b"' nested/0000/config.yaml || fail "quotes of a value did not reach the trial"
grep -qF 'freeze: ["lm_head.weight"]' nested/0000/config.yaml || fail "a list with quotes did not reach the trial"
rm nested/*.json
expect_rc 0 "$binary" sweep nested.yaml --table
for trial in 0000 0001 0002 0003; do expect_text "$trial   done"; done

echo "killed: its trials save and end"
no_trial() { ! pgrep -f "^$binary train .*run.dir=$1( |\$)"; }
for launch in "ranks: 1" 'ranks: 2, command: "mpirun -q --oversubscribe --bind-to none --allow-run-as-root -np {ranks}"'; do
    rm -rf gone
    sweep_file "$work/gone" "set: {run.steps: 1000000}" "metric: loss" "parameters: {optimizer.lr: [1e-3]}" "launch: {$launch}"
    "$binary" sweep gone.yaml >"$out" 2>"$err" &
    sweep=$!
    wait_for 30 has_steps gone/0000 3 || fail "no steps within 30 s"
    kill -KILL "$sweep"
    wait "$sweep" 2>/dev/null || true
    wait_for 30 no_trial "$work/gone/0000" || fail "the trial outlived its sweep ($launch)"
    [ -f "gone/0000/checkpoints/$(printf %08d "$(metric gone/0000 step | tail -n 1)")/manifest.json" ] || fail "the trial did not save ($launch)"
done

echo "killed, while its trial trains on"
name="or'p \"h\" %d"
# It stops itself in step 20, and is let go on when the next sweep waits for it. In a session of its own: the sweep's end
# reaches the launcher only, and the kernel wakes stopped processes, and ends them, whose parent was the last of theirs.
printf '%s\n' "base: tiny.yaml" "dir: $name" "set: {run.steps: 40}" "metric: loss" "parameters: {debug.fault: ['stop:20:0', null]}" "launch: {command: setsid -w}" >orphan.yaml
"$binary" sweep orphan.yaml >"$out" 2>"$err" &
sweep=$!
left_behind() { pgrep -f "^$binary train .*run.dir=$name/0000" || true; }
is_stopped() { [ "$(ps -o stat= -p "$(left_behind)" | cut -c 1)" = T ]; }
wait_for 30 is_stopped || fail "trial 0 did not stop within 30 s"
kill -KILL "$sweep"
wait "$sweep" 2>/dev/null || true
"$binary" sweep orphan.yaml >"$out" 2>"$err" &
sweep=$!
wait_for 60 grep -q "trial 0000 is trained already, waiting for it: .*/0000/lock: another run .*pid $(left_behind)" "$err" ||
    { fail "the next sweep does not wait"; show_last; }
[ ! -e "$name/0001" ] || fail "a trial began on the cores of one that was left behind"
kill -CONT "$(left_behind)" || fail "nothing was left behind"
wait "$sweep" || { fail "it ended with $?"; show_last; }
expect_same "$(for t in 0 1; do state "$name" 000$t; done | sort -u)" done "states after the sweep was killed"
expect_same "$(metric "$name/0000" step | tr '\n' ' ')" "$(seq 40 | tr '\n' ' ')" "steps of the trial that was left behind"
expect_rc 0 "$binary" train "$name/best.yaml" run.steps=1
[ -d "$name-best" ] || fail "best.yaml of a folder with quotes trained elsewhere"

echo "asha"
sweep_file asha "method: asha" "trials: 5" "set: {run.steps: 40, eval.every_steps: 5}" "parameters:" \
    "  optimizer.lr: {low: 1e-5, high: 1e-2, scale: log}" "launch: {ranks: 1, slots: 2}" "asha: {rungs: [10, 20], keep: 0.4}"
expect_rc 0 "$binary" sweep asha.yaml --quiet
python3 - <<'PY' || fail "asha did not choose as it should"
import glob, json
trials = [json.load(open(name)) for name in sorted(glob.glob("asha/0*.json"))]
states = [t["state"] for t in trials]
assert set(states) <= {"done", "stopped"} and "done" in states and "stopped" in states, states
best = min(trials, key=lambda t: t["rungs"][0])
assert best["state"] == "done" and best["step"] == 40 and len(best["rungs"]) == 2, best
assert all(t["step"] == (10, 20)[len(t["rungs"]) - 1] for t in trials if t["state"] == "stopped"), trials
worst = max(trials, key=lambda t: t["rungs"][0])
assert worst["state"] == "stopped" and len(worst["rungs"]) == 1, worst
PY

echo "as a job array"
sweep_file array "method: random" "trials: 3" "set: {run.steps: 2}" "metric: loss" "parameters:" "  optimizer.lr: {low: 1e-4, high: 1e-2}"
expect_rc 0 "$binary" sweep array.yaml --slurm
bash -n array/sweep.sbatch || fail "sweep.sbatch is not bash"
grep -q -- '--array=0-2%1' array/sweep.sbatch || fail "sweep.sbatch names other tasks"
expect_rc 0 env SLURM_ARRAY_TASK_ID=1 bash array/sweep.sbatch
expect_rc 0 "$binary" sweep array.yaml --table
expect_text "0001   done"
expect_text "0000   waiting"
sed -i 's/run.steps: 2/run.steps: 1000000/; s/dir: array/dir: array2/; s/metric: loss/&\nlaunch: {command: "env RANKS=x{ranks}y"}/' array.yaml
expect_rc 0 "$binary" sweep array.yaml --slurm
mkdir -p bin
printf '#!/bin/sh\necho "$@" >requeued\n' >bin/scontrol
chmod +x bin/scontrol
PATH=$PWD/bin:$PATH SLURM_ARRAY_TASK_ID=0 SLURM_JOB_ID=77 bash array2/sweep.sbatch >"$out" 2>"$err" &
task=$!
wait_for 30 has_steps array2/0000 3 || fail "no steps within 30 s"
tr '\0' '\n' <"/proc/$(pgrep -f "^$binary train .*run.dir=array2/0000")/environ" | grep -qx RANKS=x1y || fail "{ranks} inside a word of the launcher"
kill -USR1 "$task"
rc=0
wait "$task" || rc=$?
expect_same "$rc $(cat requeued)" "85 requeue 77" "a task whose time is over"

echo "bad files"
# refused WORDS LINES...
refused() {
    local words=$1
    shift
    sweep_file bad "$@"
    expect_error 64 "$words" "$binary" sweep bad.yaml
    [ ! -e bad ] || fail "a folder was made for a bad file"
}
refused "bad.yaml: trial 1: " "metric: loss" "parameters: {optimizer.lr: [1, -1]}"
refused "did you mean 'optimizer.lr'" "metric: loss" "parameters: {optimizer.rl: [1]}"
refused "bad.yaml:3:1: metrik: unknown key; did you mean 'metric'?" "metrik: loss" "parameters: {optimizer.lr: [1]}"
refused "a grid needs lists" "metric: loss" "parameters: {optimizer.lr: {low: 1, high: 2}}"
refused "low must be below high" "method: random" "trials: 2" "parameters: {optimizer.lr: {low: 2, high: 1}}"
refused "metric valid_loss: needs data.valid and eval.every_steps" "parameters: {optimizer.lr: [1]}"
refused "parameters is missing" "metric: loss"
refused "every trial has its own" "parameters: {run.dir: [a, b]}"
refused "asha.rungs and method: asha go together" "method: asha" "trials: 2" "parameters: {optimizer.lr: [1]}"
refused "bad.yaml:4:1: metric: stands there twice" "metric: loss" "metric: loss" "parameters: {optimizer.lr: [1]}"
refused "no valid_loss before step 20" "method: asha" "trials: 2" "set: {run.steps: 40, eval.every_steps: 20}" "asha: {rungs: [10]}" "parameters: {optimizer.lr: [1]}"
refused "is not below run.steps 8 of trial " "method: asha" "trials: 2" "metric: loss" "asha: {rungs: [10]}" "parameters: {run.steps: [8, 8]}"
refused "lists nested too deep" "metric: loss" "parameters: {data.train: [[[[[[[[[[[1]]]]]]]]]]]}"
refused "is not below run.steps" "method: asha" "trials: 2" "metric: loss" "asha: {rungs: [20]}" "parameters: {optimizer.lr: [1]}"
finish
