#!/usr/bin/env bash
# plan: every shipped config in 2 s, its memory against a run's, search, JSON, what is refused.
set -u
source "$(dirname "$0")/common.sh"
cd "$work" || exit 1

# Full-size configs on a cluster, tiny ones here: an object with every figure, in 2 s of processor time.
cat >plans.py <<'EOF'
import glob, json, resource, subprocess, sys
binary, folder = sys.argv[1:3]
def run(*arguments):
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    text = subprocess.run([binary, "plan", *arguments, "--json"], check=True, capture_output=True).stdout
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    assert seconds < 2, (arguments, seconds)
    return json.loads(text)
def positive(value, path=""):
    if isinstance(value, dict):
        for key, inner in value.items():
            positive(inner, path + "." + key)
    elif isinstance(value, (int, float)):
        assert value >= 0, (path, value)
    else:
        assert value is not None, path
full = ["mixtral-8x7b", "mixtral-8x22b", "deepseek-v2-lite", "deepseek-v2", "deepseek-v3"]
for path in sorted(glob.glob(folder + "/configs/*.yaml")):
    name = path.split("/")[-1][:-5]
    big = name in full
    where = [] if big else ["cluster.peak_tflops=0.5"]
    plan = run(path, *where)
    positive(plan)
    memory = plan["memory"]
    kinds = ["weights", "gradients", "masters", "moments", "activations", "shared", "exchange", "scratch"]
    assert sum(memory[k + "_bytes"] for k in kinds) == memory["arena_bytes"], name
    host = 0 if big else memory["staging_bytes"]
    assert memory["total_bytes"] == memory["arena_bytes"] + memory["outside_bytes"] + host, name
    step = plan["step"]
    parts = sum(step[k] for k in ("kernels", "exposed", "bubble", "reduce", "optimizer"))
    assert abs(parts - step["seconds"]) < 0.01 * step["seconds"], (name, parts, step["seconds"])
    assert 0 < plan["speed"]["mfu"] < 1, name
search = run(folder + "/configs/mixtral-8x7b.yaml", "--search")
rows = search["results"]
assert search["fitting"] > 0 and len(rows) == search["layouts"]
assert [r["fits"] for r in rows] == sorted((r["fits"] for r in rows), reverse=True)
speeds = [r["tokens_per_s"] for r in rows if r["fits"]]
assert speeds == sorted(speeds, reverse=True)
assert all(r["why"] for r in rows if not r["fits"])
axes = ["tp", "cp", "etp", "zero"]
for row in [rows[0]] + [next(r for r in rows if r["fits"] and "parallel.%s=" % axis in r["overrides"]) for axis in axes]:
    plan = run(folder + "/configs/mixtral-8x7b.yaml", *row["overrides"].split())
    assert plan["fits"] and plan["trains"] == row["trains"], row
    assert abs(plan["speed"]["tokens_per_s"] / row["tokens_per_s"] - 1) < 1e-6, "overrides are not the plan"
# Of a pipeline: schedules of many micro-batches are played in part, and axes of the config that a row has not are named.
small = ["parallel.pp=2", "cluster.nodes=1", "cluster.gpus_per_node=4", "cluster.gpu=h100", "run.device=cuda", "train.global_batch=64"]
rows = run(folder + "/configs/bench-mixtral.yaml", *small, "--search")["results"]
for pp in (1, 2):
    row = next(r for r in rows if r["fits"] and "parallel.pp=%d" % pp in r["overrides"])
    plan = run(folder + "/configs/bench-mixtral.yaml", *small, *row["overrides"].split())
    assert plan["layout"]["pp"] == pp and plan["memory"]["total_bytes"] == row["memory_bytes"], (row, plan["memory"])
    assert abs(plan["speed"]["tokens_per_s"] / row["tokens_per_s"] - 1) < 1e-3, row
EOF
expect_rc 0 python3 plans.py "$binary" "$source_dir"

# A run of 13 million parameters, with saves beside it and without: reserved to the byte; the largest size of the process
# up to the last step within 5 %, whatever the size of its token file (32 MB, read as it is needed); its checkpoint.
python3 - <<'EOF'
import os, struct
tokens = 1 << 24
ids = bytearray(2 * tokens) # uint16, below 256
ids[0::2] = os.urandom(tokens)
open("data.bin", "wb").write(struct.pack("<3i", 20240520, 1, tokens).ljust(1024, b"\0") + ids)
EOF
settings=(data.train=data.bin data.valid=null parallel.ep=1 run.steps=5 schedule.warmup_steps=0 eval.every_steps=0 sample.every_steps=0
    run.threads=1 train.global_batch=4 train.micro_batch=4)
for every in 2 0; do
    own=("${settings[@]}" "checkpoint.every_steps=$every" "run.dir=$work/run$every")
    expect_rc 0 "$binary" train "$source_dir/configs/quickstart.yaml" "${own[@]}"
    cp "$out" "log$every"
    expect_rc 0 "$binary" plan "$source_dir/configs/quickstart.yaml" "${own[@]}" cluster.peak_tflops=0.1 --json
    cp "$out" "plan$every.json"
done
cat >compare.py <<'EOF'
import glob, json, os, re
plans = [json.load(open("plan%d.json" % every)) for every in (0, 2)]
logs = [open("log%d" % every).read() for every in (0, 2)]
peaks = [[json.loads(line)["memory_bytes"] for line in open("run%d/metrics.jsonl" % every)] for every in (0, 2)]
memory = [plan["memory"] for plan in plans]
for log, m in zip(logs, memory):
    said = int(re.search(r"; (\d+) MiB per rank", log).group(1))
    assert said == round(m["arena_bytes"] / 2**20), said
for i in (0, 1):
    assert abs(memory[i]["peak_bytes"] / peaks[i][4] - 1) < 0.05, (memory[i]["peak_bytes"], peaks[i])
assert peaks[1][4] > peaks[0][4] + memory[1]["staging_bytes"], peaks # a save was written beside it
copy = int(re.search(r"beside the training: (\d+) MiB of host memory", logs[1]).group(1))
assert copy == round(memory[1]["staging_bytes"] / 2**20) and memory[0]["staging_bytes"] == 0, copy
saved = sum(os.path.getsize(f) for f in glob.glob("run2/checkpoints/00000004/shard-*.h5"))
assert abs(plans[1]["checkpoint"]["bytes"] / saved - 1) < 0.02, (plans[1]["checkpoint"]["bytes"], saved)
assert memory[1]["staging_bytes"] < 1.01 * saved + 2**21, (memory[1]["staging_bytes"], saved) # once the state, rounded up
EOF
expect_rc 0 python3 compare.py

# DeepSeek-V3 as published, for people; the budget and its price.
v3=("$source_dir/configs/deepseek-v3.yaml" train.precision=fp8 parallel.pp=16 parallel.schedule=dualpipe train.batch_ramp.start=15360 cluster.nodes=256 cluster.gpu=h800)
expect_rc 0 "$binary" plan "${v3[@]}" --tokens 14.8T --price 2
expect_text "2048 ranks: 256 x 8 h800"
expect_text "pp 16 (dualpipe)"
expect_text "warning: does not train: parallel.schedule dualpipe: planned only"
expect_text "planned as if what comes back were added up in each node"
expect_text "DOES NOT FIT"

# What the config itself names: those 2048, and in their 80 GB if blocks are computed twice, with a schedule that trains.
expect_rc 0 "$binary" plan "$source_dir/configs/deepseek-v3.yaml"
expect_text "2048 ranks: 256 x 8 h800"
expect_rc 0 "$binary" plan "$source_dir/configs/deepseek-v3.yaml" train.recompute=block parallel.schedule=1f1b
expect_text "pp 16 (1f1b)"
! grep -qE "DOES NOT FIT|does not train" "$out" "$err" || { fail "it does not fit, or does not train"; show_last; }

# Warnings of layouts that will be slow, and what cannot be.
expect_rc 0 "$binary" plan "${v3[@]}" parallel.ep=32
expect_text "n_group 8 is not the 4 nodes of an ep group"
expect_rc 0 "$binary" plan "${v3[@]}" parallel.tp=16
expect_text "parallel.tp 16 is more than a node's 8 ranks"
expect_rc 0 "$binary" plan "${v3[@]}" parallel.cp=8 train.sequence_length=131072
expect_text "cp 8"
! grep -q "does not train: parallel.cp" "$out" "$err" || { fail "cp in FP8 does not train"; show_last; }
ring() { sed -n 's/.*go round in \([0-9.]*\) ms.*/\1/p' "$out"; }
codes=$(ring)
expect_rc 0 "$binary" plan "${v3[@]}" parallel.cp=8 train.sequence_length=131072 train.precision=bf16
awk -v codes="$codes" -v act="$(ring)" 'BEGIN { exit !(codes > 0.7 * act && codes < 0.85 * act) }' ||
    fail "latents of FP8 go round in $codes ms, of bf16 in $(ring)" # 656 bytes a token instead of 1152, both ways, and gradients of 2304
expect_rc 64 "$binary" plan "${v3[@]}" parallel.tp=3
expect_text "parallel.tp 3 does not divide model.num_attention_heads 128"
expect_rc 0 "$binary" plan "$source_dir/configs/mixtral-8x7b.yaml" cluster.nodes=4 cluster.gpus_per_node=4 cluster.gpu=h100
expect_text "routing is not limited to groups"
expect_error 64 "x tp 1 does not divide the 800 ranks" "$binary" plan "${v3[@]}" cluster.nodes=100
expect_rc 0 "$binary" plan "${v3[@]}" model.num_nextn_predict_layers=16 parallel.pp=64 parallel.ep=8 cluster.nodes=64 # modules on several stages
expect_error 64 "train.global_batch 15360 is not a multiple of train.micro_batch 256" "$binary" plan "${v3[@]}" train.micro_batch=256
expect_error 64 "parallel.pp 64 is more than the model's 62 blocks" "$binary" plan "${v3[@]}" parallel.pp=64 parallel.ep=1 cluster.nodes=8
expect_error 64 "pipeline dualpipe needs" "$binary" plan "${v3[@]}" train.global_batch=3840 train.batch_ramp.start=3840 train.batch_ramp.increment=3840 parallel.schedule=dualpipe
expect_error 64 "a100 has no products in FP8" "$binary" plan "${v3[@]}" cluster.gpu=a100
expect_error 64 "cluster.gpu custom needs" "$binary" plan "${v3[@]}" cluster.gpu=custom
expect_rc 0 "$binary" plan "${v3[@]}" cluster.gpu=custom cluster.peak_tflops=500 cluster.memory_gb=64 cluster.memory_gb_s=2000 parallel.pp=1 cluster.nodes=128
mixtral=$source_dir/configs/mixtral-8x7b.yaml
expect_error 64 "parallel.virtual_stages 9 is more than the model's 32 blocks" "$binary" plan "$mixtral" parallel.pp=4 parallel.virtual_stages=9
expect_error 64 "virtual_stages 2 is of parallel.schedule 1f1b" "$binary" plan "$mixtral" parallel.pp=4 parallel.virtual_stages=2 parallel.schedule=zero_bubble
expect_rc 0 "$binary" plan "$mixtral" parallel.pp=4 parallel.virtual_stages=2
expect_text "pp 4 (interleaved)"
# What plan refuses, search does not offer: lengths and widths that axes do not divide.
expect_rc 0 "$binary" plan "$source_dir/configs/bench-mixtral.yaml" --search run.device=cuda cluster.gpu=h100 cluster.gpus_per_node=8 train.sequence_length=1000 model.intermediate_size=1500 --rows 40
expect_text "parallel.tp 4 does not divide"
expect_text "parallel.etp 8 does not divide"
expect_rc 0 "$binary" plan "$source_dir/configs/deepseek-v3.yaml" parallel.ep=2
if grep -q "nan" "$out"; then
    fail "a schedule's share of nothing"
fi
expect_rc 0 "$binary" plan "$mixtral" --search --stages parallel.schedule=zero_bubble
expect_text "parallel.schedule=zero_bubble"
expect_rc 0 "$binary" plan "$mixtral" cluster.gpus_per_node=6 cluster.nodes=4 train.global_batch=1152
expect_text "ep 8 spans 2 nodes"
expect_rc 0 "$binary" plan "$source_dir/configs/deepseek-v2-lite.yaml" parallel.pp=16 cluster.nodes=16 cluster.gpus_per_node=8 train.global_batch=15360 parallel.schedule=dualpipe --json
cp "$out" plan.json
expect_rc 0 python3 -c 'import json, sys; b = json.load(open(sys.argv[1]))["blocks_of_stages"]; assert sum(b) == 27 and min(b) == 1, b' plan.json
cat >held.py <<'EOF'
import json, subprocess, sys
def plan(pipeline):
    text = subprocess.run([*sys.argv[1:], "parallel.schedule=" + pipeline, "--json"], check=True, capture_output=True).stdout
    return json.loads(text)
for pipeline in ("1f1b", "dualpipe"): # two bytes a weight
    p = plan(pipeline)
    assert abs(p["memory"]["weights_bytes"] / 2 / p["parameters"]["per_rank"] - 1) < 0.001, pipeline
EOF
expect_rc 0 python3 held.py "$binary" plan "$mixtral" parallel.pp=4 parallel.tp=2
# Passes one behind the other: a pair takes as long as both, what they have on their way is there once.
cat >pairs.py <<'EOF'
import json, subprocess, sys
def plan(*keys):
    text = subprocess.run([*sys.argv[1:], *keys, "--json"], check=True, capture_output=True).stdout
    return json.loads(text)
staged = ("parallel.pp=4", "parallel.schedule=dualpipe_v")
on, auto, off = (plan(*staged, "parallel.overlap=" + way) for way in ("on", "auto", "off"))
assert on["step"] == auto["step"] != off["step"], (on["step"], off["step"])
assert off["memory"]["arena_bytes"] < on["memory"]["arena_bytes"] == auto["memory"]["arena_bytes"]
by_host, asked = plan(*staged, "run.comm=mpi"), plan(*staged, "run.comm=mpi", "parallel.overlap=on")
assert by_host["memory"]["arena_bytes"] == off["memory"]["arena_bytes"] < asked["memory"]["arena_bytes"], "auto, where nothing is hidden"
for p in (off, by_host, plan(*staged, "parallel.zero=3")):
    one = p["micro_batch_seconds"]
    assert abs(one["pair"] / (one["forward"] + one["backward"] + one["weight"]) - 1) < 1e-9, one
# Without stages: kept and on its way twice; inside a node it does not pay.
on, auto = (plan("parallel.overlap=" + way) for way in ("on", "auto"))
for kind in ("activations", "shared"):
    assert on["memory"][kind + "_bytes"] == 2 * auto["memory"][kind + "_bytes"], kind
assert 1 < on["memory"]["exchange_bytes"] / auto["memory"]["exchange_bytes"] < 1.7 # rows alone
assert on["step"]["seconds"] > auto["step"]["seconds"], (on["step"], auto["step"])
EOF
expect_rc 0 python3 pairs.py "$binary" plan "$mixtral" parallel.ep=8
# Where tokens cross the network it pays.
expect_rc 0 "$binary" plan "$source_dir/configs/deepseek-v3.yaml" --search --rows 1 cluster.nodes=64 parallel.pp=1
expect_text "parallel.overlap=on"
expect_error 64 "parallel.overlap on: a rank has one micro-batch a step" "$binary" plan "$mixtral" parallel.ep=8 parallel.overlap=on \
    train.micro_batch=1 train.global_batch=64
# A pipeline's schedules side by side, its stages by hand, its step as a trace.
expect_rc 0 "$binary" plan "${v3[@]}" --json
cp "$out" plan.json
expect_rc 0 python3 - <<'EOF'
import json
rows = {(r["pipeline"], r["virtual_stages"]): r for r in json.load(open("plan.json"))["schedules"]}
kept = {name: rows[name, 1]["micro_batches_kept"] for name in ("1f1b", "zero_bubble", "dualpipe", "dualpipe_v")}
assert kept == {"1f1b": 16, "zero_bubble": 16, "dualpipe": 17, "dualpipe_v": 16.5}, kept
bubble = [rows[name, 1]["bubble_seconds"] for name in ("dualpipe", "zero_bubble", "1f1b")]
assert bubble == sorted(bubble), bubble
assert "multiple of its 16 ranks" in rows["1f1b", 2]["why"]
EOF
expect_rc 0 "$binary" plan "$mixtral" parallel.pp=4 parallel.stages=9,8,8,7 --timeline step.json --json
cp "$out" plan.json
expect_rc 0 python3 - <<'EOF'
import json
plan, trace = json.load(open("plan.json")), json.load(open("step.json"))
assert plan["blocks_of_stages"] == [9, 8, 8, 7]
end = max(e["ts"] + e["dur"] for e in trace if e["ph"] == "X") / 1e6
step = plan["step"]
assert abs(end / (step["kernels"] + step["exposed"] + step["bubble"]) - 1) < 1e-6, end
for rank in range(4): # a rank does one thing at a time, and all of it: forward and backward of each micro-batch
    mine = [e for e in trace if e["ph"] == "X" and e["tid"] == rank]
    assert all(a["ts"] + a["dur"] <= b["ts"] + 0.002 for a, b in zip(mine, mine[1:])), rank
    for cat in "FB":
        ways = sum(e["cat"] in (cat, "F&B") for e in mine)
        assert ways == plan["layout"]["micro_batches"], (rank, cat, ways)
EOF
expect_error 64 "parallel.stages names 3 stages, the schedule has 4" "$binary" plan "$mixtral" parallel.pp=4 parallel.stages=9,8,8 parallel.schedule=1f1b
expect_error 64 "parallel.stages has 33 blocks, the model 32" "$binary" plan "$mixtral" parallel.pp=4 parallel.stages=9,8,8,8 parallel.schedule=1f1b
expect_error 64 "parallel.stages: 1.5 is no number of blocks" "$binary" plan "$mixtral" parallel.pp=2 parallel.stages=1.5,31
expect_error 74 "no/such/step.json" "$binary" plan "$mixtral" parallel.pp=4 --timeline no/such/step.json
expect_error 64 "--timeline are of one plan" "$binary" plan "$mixtral" --search --timeline step.json
expect_error 64 "--stages and --rows are of --search" "$binary" plan "$mixtral" --stages
expect_error 64 "not of --search" "$binary" plan "$mixtral" --search --price 2
expect_error 64 "needs a number such as 14.8T" "$binary" plan "${v3[@]}" --tokens many
expect_error 64 "did you mean '--price'" "$binary" plan "${v3[@]}" --prize 3
expect_error 64 "parallel.schedule dualpipe: planned only" "$binary" train "$source_dir/configs/quickstart.yaml" sample.every_steps=0 parallel.pp=2 parallel.schedule=dualpipe
expect_error 64 "parallel.pp 2 x tp 1 x cp 1 does not divide the 1 ranks" "$binary" train "$source_dir/configs/quickstart.yaml" sample.every_steps=0 parallel.pp=2
finish
