#!/usr/bin/env bash
# What a run does about numbers that go wrong, copies that differ and ranks that are slow; and its profile.
# test_health.sh SOURCE BINARY [INJECTIONS]: that many NaNs on a random rank of a random step (docs/reliability.md).
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"
make_data
make_config
injections=${3:-0}
skips="" backs=10
if [ "$full" = 1 ]; then
    skips="3 4 5" backs="9 10 13"
    [ "$injections" -gt 0 ] || injections=5
fi

losses() { metric "$1" loss_hex; }

# tensors_equal A B: the newest checkpoints of two runs hold the same bits.
tensors_equal() {
    expect_rc 0 "$binary" ckpt diff "$1" "$2"
}

echo "an update left out: the batch is consumed, nothing else changes, and a resume goes on alike"
expect_rc 0 train_on 2 2 "$work/skip" run.steps=8 checkpoint.every_steps=2 debug.fault=nan:4:1 guard.on_nonfinite=skip
expect_text "step 4: loss "
expect_text "gradient norm nan: not finite: its update is left out (1 in a row, 1 of the run)"
expect_same "$(metric "$work/skip" skipped | tr -d '}\n')" "00011111" "updates left out, by step"
for stop in $skips; do
    expect_rc 0 train_on 2 2 "$work/skip-$stop" run.steps=$stop debug.fault=nan:4:1 guard.on_nonfinite=skip
    expect_rc 0 train_on 2 2 "$work/skip-$stop" run.steps=8 debug.fault=nan:4:1 guard.on_nonfinite=skip
    expect_same "$(losses "$work/skip-$stop")" "$(losses "$work/skip")" "losses of a run resumed behind step $stop"
    tensors_equal "$work/skip-$stop" "$work/skip"
done

spikes="guard.on_spike=rollback guard.spike_window=8 guard.spike_factor=6 checkpoint.every_steps=4 checkpoint.keep_last=3 debug.fault=spike:11:0 run.steps=16"
echo "back to a checkpoint, past the batches since: the same, however often the run is stopped"
expect_rc 0 train_on 2 2 "$work/back" $spikes
expect_text "is a spike: the last 8 updates make"
expect_text "back to step 8, passing over the 24 samples since (rollback 1 of the run)"
expect_same "$(metric "$work/back" step | tr '\n' ' ')" "$(seq -s ' ' 16) " "steps"
expect_same "$(metric "$work/back" rollbacks | tr -d '}\n')" "0000000011111111" "rollbacks, by step"
expect_rc 0 train_on 2 2 "$work/clean" run.steps=16
expect_same "$(losses "$work/back" | head -n 8)" "$(losses "$work/clean" | head -n 8)" "losses before"
[ "$(losses "$work/back" | sed -n 9p)" != "$(losses "$work/clean" | sed -n 9p)" ] || fail "the same batch again"
for stop in $backs; do
    # A signal saves at any step; here the run ends there.
    expect_rc 0 train_on 2 2 "$work/back-$stop" $spikes run.steps=$stop
    expect_rc 0 train_on 2 2 "$work/back-$stop" $spikes
    expect_same "$(losses "$work/back-$stop")" "$(losses "$work/back")" "losses of a run stopped behind step $stop"
    tensors_equal "$work/back-$stop" "$work/back"
done

echo "copies of weights that differ are found, and named"
expect_rc 77 train_on 2 1 "$work/weight" guard.replicas_every_steps=3 debug.fault=weight:6:1
expect_text "step 6: copies of model.embed_tokens.weight differ: at [0, 0] "
expect_text "rank 1 ($(hostname))"
expect_text "They were equal behind step 3"

echo "the profile, and the line"
expect_rc 0 train_on 2 2 "$work/profiled" run.steps=6 checkpoint.every_steps=2 debug.profile="$work/trace.json" debug.profile_from=2 debug.profile_steps=4
grep -Eq ' a2a [0-9]+% mfu [0-9.]+% mem [0-9.]+[kMG]B ETA' "$out" || { fail "a2a, mfu, mem are not in the line"; show_last; }
grep -Eq '"exchange":[0-9.e-]+' "$work/profiled/metrics.jsonl" || fail "no exchange in phase_ms"
python3 - "$work/trace.json" <<'PY' || fail "the profile is not what it should be"
import json, sys
trace = json.load(open(sys.argv[1]))
spans = [e for e in trace["traceEvents"] if e["ph"] == "X"]
names = {e["name"] for e in spans}
for rank in (0, 1):
    own = [e for e in spans if e["pid"] == rank]
    assert {e["args"]["step"] for e in own if e["cat"] == "phase"} == {2, 3, 4, 5}
    a2a = [e for e in own if e["name"] == "all_to_all" and e["args"]["group"] != "world"]
    assert a2a and all(e["args"]["group"] == "ep" and e["args"]["ranks"] == 2 for e in a2a)
    assert {e["args"].get("layer") for e in a2a} >= {0, 1}
    assert any(e["tid"] == 2 and e["args"]["bytes"] > 0 for e in a2a), "no rows on their way to experts"
    assert all(e["dur"] >= 0 and e["ts"] > -1e6 for e in own)
    about = trace["otherData"][f"rank {rank}"]
    assert about["lost"] == 0 and about["spans"] == len(own), about
    assert about["clock_offset_us"] == 0 and about["communication_ms"] > 0 and about["phases_ms"] > 0
    assert 0 <= about["hidden_communication"] < 1, about
    # a message lies in a phase of its step
    phases = [e for e in own if e["cat"] == "phase"]
    assert all(any(p["ts"] - 1 <= e["ts"] and e["ts"] + e["dur"] <= p["ts"] + p["dur"] + 1 for p in phases) for e in a2a)
assert {"data", "forward and backward", "reduce", "optimizer"} <= names, names
assert {"attention", "router", "experts"} <= names, names
assert any(e["tid"] == 1 for e in spans), "nothing of the writer"
PY
echo "stages: waits for them are idle; exchanges of a pair's passes stand in rows of their own; what is hidden"
expect_rc 0 train_on 4 2 "$work/staged" run.steps=3 parallel.pp=2 parallel.schedule=dualpipe_v model.num_hidden_layers=4 train.micro_batch=1 data.valid=null \
    debug.profile="$work/stages.json" debug.profile_from=2 debug.profile_steps=2
expect_text "% of communication hidden; means of a rank: hidden "
expect_rc 0 "$binary" report "$work/staged" --output "$work/page.html"
grep -q '<th>profile</th><td>{.*hidden_communication.*idle_ms' "$work/page.html" || fail "the report says nothing of hidden communication"
python3 - "$work/stages.json" <<'PY' || fail "the profile of stages is not what it should be"
import json, sys
trace = json.load(open(sys.argv[1]))
for rank in range(4):
    spans = [e for e in trace["traceEvents"] if e["ph"] == "X" and e["pid"] == rank]
    names = {e["tid"]: e["args"]["name"] for e in trace["traceEvents"] if e["name"] == "thread_name" and e["pid"] == rank}
    assert names[2] == "messages under way" and names[3] == "messages under way, 2" and set(names) >= {e["tid"] for e in spans}, names
    for row in set(names) - {0, 1}: # one behind the other
        at = sorted((e["ts"], e["ts"] + e["dur"]) for e in spans if e["tid"] == row)
        assert at and all(a[1] <= b[0] + 0.002 for a, b in zip(at, at[1:])), (rank, row)
    letters = [e for e in spans if e["name"] in ("send", "receive")]
    assert letters and all(e["args"]["group"] == "pp" and e["args"]["peer"] == 1 - rank // 2 for e in letters)
    about = trace["otherData"][f"rank {rank}"]
    assert about["idle_ms"] > 0 and about["exposed_ms"] > 0 and about["hidden_ms"] > 0, about
    assert abs(about["idle_ms"] + about["exposed_ms"] - about["communication_ms"]) < 0.01 + 1e-5 * about["communication_ms"], about
    share = about["hidden_ms"] / (about["hidden_ms"] + about["exposed_ms"])
    assert abs(about["hidden_communication"] - share) < 1e-4, about
PY
expect_rc 77 train_on 2 2 "$work/diverged" run.steps=9 debug.fault=nan:4:1 debug.profile="$work/diverged.json" debug.profile_steps=100
expect_text "step 4: loss "
python3 - "$work/diverged.json" <<'PY' || fail "no profile of a run that diverged"
import json, sys
trace = json.load(open(sys.argv[1]))
for rank in (0, 1):
    assert {e["args"]["step"] for e in trace["traceEvents"] if e["ph"] == "X" and e["pid"] == rank} == {2, 3, 4}
assert list(trace["otherData"]) == ["rank 0", "rank 1"]
PY
expect_error 74 "debug.profile: $work/none/trace.json: cannot write" "$binary" train "$work/tiny.yaml" run.dir="$work/unprofiled" debug.profile="$work/none/trace.json"

if [ "$injections" -gt 0 ]; then
    echo "$injections NaNs"
    RANDOM=11
    caught=0
    for trial in $(seq "$injections"); do
        count=$((2 * (RANDOM % 2 + 1))) step=$((RANDOM % 8 + 2)) before=$failures
        dir=$work/nan-$trial
        expect_rc 77 train_on $count 2 "$dir" run.steps=12 "debug.fault=nan:$step:$((RANDOM % count))" checkpoint.every_steps=1 checkpoint.async=false
        expect_text "step $step: loss "
        expect_same "$(metric "$dir" step | tail -n 1)" $((step - 1)) "last step before the NaN"
        [ ! -e "$dir/checkpoints/$(printf %08d "$step")" ] || fail "a step with NaN was saved"
        rm -rf "$dir"
        caught=$((caught + (before == failures)))
    done
    echo "$caught of $injections caught in their step, with nothing of it saved"
fi
if [ "$full" = 1 ]; then
    echo "enough tried"
    expect_rc 77 train_on 2 2 "$work/tried" run.steps=200 optimizer.lr=100 optimizer.clip_norm=0 model.initializer_range=10 guard.on_nonfinite=skip guard.tries=2 checkpoint.async=false
    expect_text "2 updates left out in a row did not help (guard.tries)"
    expect_rc 77 train_on 2 2 "$work/stopped" $spikes guard.on_spike=stop
    expect_text "step 11: gradient norm"

    echo "back to the start, where there is no checkpoint yet"
    expect_rc 0 train_on 2 2 "$work/start" run.steps=6 checkpoint.every_steps=4 guard.on_nonfinite=rollback debug.fault=nan:3:0
    expect_text "back to step 0, passing over the 24 samples since"
    expect_same "$(ls "$work/start/checkpoints" | grep -c 00000000 || true)" 0 "checkpoints of step 0"

    echo "only what a stop has saved is left: back to that; behind one that was due, what a stop has saved goes"
    expect_rc 0 train_on 2 2 "$work/only" run.steps=3 checkpoint.every_steps=100 guard.on_nonfinite=rollback
    expect_rc 0 train_on 2 2 "$work/only" run.steps=6 checkpoint.every_steps=100 guard.on_nonfinite=rollback debug.fault=nan:5:0
    expect_text "back to step 3, passing over"
    expect_rc 0 train_on 2 2 "$work/gone" run.steps=6 checkpoint.every_steps=4 checkpoint.keep_last=9 guard.on_nonfinite=rollback
    expect_rc 0 train_on 2 2 "$work/gone" run.steps=8 checkpoint.every_steps=4 checkpoint.keep_last=9 guard.on_nonfinite=rollback debug.fault=nan:7:0
    expect_text "back to step 4, passing over"
    expect_same "$(ls "$work/gone/checkpoints" | grep -E '^[0-9]+$' | tr '\n' ' ')" "00000004 00000008 " "checkpoints"

    echo "a checkpoint given up that cannot be removed at once, and a run that ends in that moment: it is gone before"
    expect_rc 0 train_on 2 2 "$work/held" $spikes run.steps=10
    program=$binary
    binary=$(dirname "$binary")/tests/failing_delete
    DELETE_FAILS=/checkpoints/00000010 expect_rc 85 train_on 2 2 "$work/held" $spikes
    binary=$program
    expect_text "00000010: not renamed"
    expect_text "saved step 8"
    expect_same "$(ls "$work/held/checkpoints" | grep -E '^[0-9]+$' | tr '\n' ' ')" "00000004 00000008 " "checkpoints"
    expect_rc 0 train_on 2 2 "$work/held" $spikes
    expect_same "$(losses "$work/held")" "$(losses "$work/back")" "losses of a run stopped where it went back"

    echo "before a save, too; and copies of biases"
    expect_rc 77 train_on 2 2 "$work/saved" guard.replicas_every_steps=1000 checkpoint.every_steps=2 debug.fault=weight:4:0
    expect_text "step 4: copies of "
    [ ! -e "$work/saved/checkpoints/00000004" ] || fail "it was saved"

    make_config deepseek_v3
    expect_rc 77 train_on 2 2 "$work/bias" run.steps=8 guard.replicas_every_steps=5 debug.fault=bias:3:1
    expect_text "step 5: copies of e_score_correction_bias of [router, expert] differ: at [0, 0] "
    make_config
fi
finish
