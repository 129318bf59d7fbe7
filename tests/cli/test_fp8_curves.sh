#!/usr/bin/env bash
# What FP8 costs in loss: a small model of each family learns quickstart's text for 300 steps, in bf16 and in FP8 from
# the same start on the same batches; means over the last 50 steps agree to 0.25 % (DeepSeek-V3's own figure at scale).
# docs/fp8.md has the curves and says why the rate and the batch are what they are. Without SWITCHYARD_CURVES=FOLDER,
# which keeps the curves of all families, one family; SWITCHYARD_FP32=1 makes those in fp32 too: what
# scripts/loss-curves.py draws.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"
curves=${SWITCHYARD_CURVES:-$work}
families=deepseek_v3
[ -z "${SWITCHYARD_CURVES:-}" ] || families="mixtral deepseek_v2 deepseek_v3"
"$source_dir/scripts/quickstart-data.sh" "$binary" "$work/data" >/dev/null

# learn FAMILY PRECISION: one rank with one thread.
learn() {
    local config=$1
    [ "$1" != mixtral ] || config=mixtral-8x7b
    "$binary" train "$source_dir/configs/tiny-${config/_/-}.yaml" "run.dir=$curves/$1-$2" "train.precision=$2" \
        "data.train=$work/data/train.h5" data.valid=null run.threads=1 run.pin=false log.every_steps=0 \
        model.num_hidden_layers=2 model.hidden_size=128 model.intermediate_size=256 \
        train.micro_batch=8 train.global_batch=16 optimizer.lr=3e-4 schedule.warmup_steps=50 >"$work/$1-$2.log" 2>&1
}

pids=() precisions="bf16 fp8"
[ "${SWITCHYARD_FP32:-0}" -eq 0 ] || precisions="$precisions fp32"
for precision in $precisions; do
    ( # two at a time
        for family in $families; do
            learn $family $precision || { cat "$work/$family-$precision.log"; exit 1; }
        done
    ) &
    pids+=($!)
done
for pid in "${pids[@]}"; do
    wait "$pid" || fail "a run failed"
done
python3 - "$curves" $families <<'PY' || fail "fp8 is not within 0.25 % of bf16"
import json, sys
worst = 0
for family in sys.argv[2:]:
    mean = {}
    for precision in ("bf16", "fp8"):
        losses = [json.loads(line)["loss"] for line in open(f"{sys.argv[1]}/{family}-{precision}/metrics.jsonl")]
        assert len(losses) == 300 and losses[-1] < 0.7 * losses[0], (family, precision, len(losses))
        mean[precision] = sum(losses[-50:]) / 50
    share = mean["fp8"] / mean["bf16"] - 1
    worst = max(worst, abs(share))
    print(f"{family}: bf16 {mean['bf16']:.4f}, fp8 {mean['fp8']:.4f}: {100 * share:+.3f} %")
sys.exit(worst > 0.0025)
PY
finish
