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
    assert memory["total_bytes"] == memory["arena_bytes"] + memory["outside_bytes"], name
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
best = run(folder + "/configs/mixtral-8x7b.yaml", *rows[0]["overrides"].split())
assert best["fits"] and abs(best["speed"]["tokens_per_s"] / speeds[0] - 1) < 1e-6, "overrides are not the plan"
EOF
expect_rc 0 python3 plans.py "$binary" "$source_dir"

# A run of 13 million parameters: reserved to the byte, the process within 5 %, its checkpoint.
expect_rc 0 "$binary" prepare --tokenizer bytes --output data.h5 "$source_dir"/trainer/plan/*.c
settings=(data.train=data.h5 data.valid=null parallel.ep=1 run.steps=2 schedule.warmup_steps=0 eval.every_steps=0 sample.every_steps=0
    run.threads=1 run.dir="$work/run")
expect_rc 0 "$binary" train "$source_dir/configs/quickstart.yaml" "${settings[@]}"
cp "$out" log
expect_rc 0 "$binary" plan "$source_dir/configs/quickstart.yaml" "${settings[@]}" cluster.peak_tflops=0.1 --json
cp "$out" plan.json
expect_rc 0 python3 - <<'EOF'
import glob, json, os, re
plan = json.load(open("plan.json"))
said = int(re.search(r"; (\d+) MiB per rank", open("log").read()).group(1))
assert said == round(plan["memory"]["arena_bytes"] / 2**20), said
peak = json.loads(open("run/metrics.jsonl").readlines()[-1])["memory_bytes"]
assert abs(plan["memory"]["peak_bytes"] / peak - 1) < 0.05, (plan["memory"]["peak_bytes"], peak)
saved = sum(os.path.getsize(f) for f in glob.glob("run/checkpoints/*/shard-*.h5"))
assert abs(plan["checkpoint"]["bytes"] / saved - 1) < 0.02, (plan["checkpoint"]["bytes"], saved)
EOF

# DeepSeek-V3 as published, for people; the budget and its price.
v3=("$source_dir/configs/deepseek-v3.yaml" train.precision=fp8 parallel.pp=16 cluster.nodes=256 cluster.gpu=h800)
expect_rc 0 "$binary" plan "${v3[@]}" --tokens 14.8T --price 2
expect_text "2048 ranks: 256 x 8 h800"
expect_text "pp 16 (dualpipe)"
expect_text "warning: parallel.pp 16: planned only"
expect_text "DOES NOT FIT"

# Warnings of layouts that will be slow, and what cannot be.
expect_rc 0 "$binary" plan "${v3[@]}" parallel.ep=32
expect_text "n_group 8 is not the 4 nodes of an ep group"
expect_rc 0 "$binary" plan "${v3[@]}" parallel.tp=16
expect_text "parallel.tp 16 is more than a node's 8 ranks"
expect_rc 64 "$binary" plan "${v3[@]}" parallel.tp=3
expect_text "parallel.tp 3 does not divide model.num_attention_heads 128"
expect_rc 0 "$binary" plan "$source_dir/configs/mixtral-8x7b.yaml" cluster.nodes=4 cluster.gpus_per_node=4 cluster.gpu=h100
expect_text "routing is not limited to groups"
expect_error 64 "x tp 1 does not divide the 800 ranks" "$binary" plan "${v3[@]}" cluster.nodes=100
expect_rc 0 "$binary" plan "${v3[@]}" model.num_nextn_predict_layers=16 parallel.pp=64 parallel.ep=8 cluster.nodes=64 # modules on several stages
expect_error 64 "train.global_batch 15360 is not a multiple of train.micro_batch 256" "$binary" plan "${v3[@]}" train.micro_batch=256
expect_error 64 "parallel.pp 64 is more than the model's 62 blocks" "$binary" plan "${v3[@]}" parallel.pp=64 parallel.ep=1 cluster.nodes=8
expect_error 64 "cluster.pipeline dualpipe needs" "$binary" plan "${v3[@]}" train.global_batch=3840 train.batch_ramp.start=3840 train.batch_ramp.increment=3840 cluster.pipeline=dualpipe
expect_error 64 "a100 has no products in FP8" "$binary" plan "${v3[@]}" cluster.gpu=a100
expect_error 64 "cluster.gpu custom needs" "$binary" plan "${v3[@]}" cluster.gpu=custom
expect_rc 0 "$binary" plan "${v3[@]}" cluster.gpu=custom cluster.peak_tflops=500 cluster.memory_gb=64 cluster.memory_gb_s=2000 parallel.pp=1 cluster.nodes=128
mixtral=$source_dir/configs/mixtral-8x7b.yaml
expect_error 64 "cluster.virtual_stages 9 is more than the model's 32 blocks" "$binary" plan "$mixtral" parallel.pp=4 cluster.virtual_stages=9
expect_error 64 "virtual_stages 2 is of cluster.pipeline 1f1b" "$binary" plan "$mixtral" parallel.pp=4 cluster.virtual_stages=2 cluster.pipeline=zero_bubble
expect_rc 0 "$binary" plan "$mixtral" parallel.pp=4 cluster.virtual_stages=2
expect_text "pp 4 (1f1b)"
expect_rc 0 "$binary" plan "$mixtral" --search --stages cluster.pipeline=zero_bubble
expect_text "cluster.pipeline=zero_bubble"
expect_rc 0 "$binary" plan "$mixtral" cluster.gpus_per_node=6 cluster.nodes=4 train.global_batch=1152
expect_text "ep 8 spans 2 nodes"
expect_rc 0 "$binary" plan "$source_dir/configs/deepseek-v2-lite.yaml" parallel.pp=16 cluster.nodes=16 cluster.gpus_per_node=8 train.global_batch=15360 cluster.pipeline=dualpipe --json
cp "$out" plan.json
expect_rc 0 python3 -c 'import json, sys; b = json.load(open(sys.argv[1]))["blocks_of_stages"]; assert sum(b) == 27 and min(b) == 1, b' plan.json
cat >held.py <<'EOF'
import json, subprocess, sys
def plan(pipeline):
    text = subprocess.run([*sys.argv[1:], "cluster.pipeline=" + pipeline, "--json"], check=True, capture_output=True).stdout
    return json.loads(text)
for pipeline in ("1f1b", "dualpipe"): # two bytes a weight
    p = plan(pipeline)
    assert abs(p["memory"]["weights_bytes"] / 2 / p["parameters"]["per_rank"] - 1) < 0.001, pipeline
EOF
expect_rc 0 python3 held.py "$binary" plan "$mixtral" parallel.pp=4 parallel.tp=2
expect_error 64 "--stages and --rows are of --search" "$binary" plan "$mixtral" --stages
expect_error 64 "not of --search" "$binary" plan "$mixtral" --search --price 2
expect_error 64 "needs a number such as 14.8T" "$binary" plan "${v3[@]}" --tokens many
expect_error 64 "did you mean '--price'" "$binary" plan "${v3[@]}" --prize 3
expect_error 64 "key 'parallel.pp': not built in this version" "$binary" train "$source_dir/configs/quickstart.yaml" parallel.pp=2
finish
