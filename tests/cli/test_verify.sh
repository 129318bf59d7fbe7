#!/usr/bin/env bash
# verify: layouts that compute what one rank does, and ranks made to compute something else.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"
make_data

# agrees FAMILY RANKS EP [key=value ...]
agrees() {
    local count=$2 ep=$3
    make_config "$1"
    shift 3
    expect_rc 0 ranks "$count" "$binary" verify "$work/tiny.yaml" "parallel.ep=$ep" "$@"
    expect_text "verified: this layout computes what one rank does"
    expect_text "$count ranks, ep $ep"
}

echo "right layouts"
agrees deepseek_v3 4 2 router.bias_update_speed=0.01 train.precision=bf16
agrees mixtral 2 1 optimizer.name=muon
agrees mixtral 2 1 parallel.tp=2 train.precision=bf16
expect_text "allowed is twice what rounding changes"
if [ "$full" = 1 ]; then
    agrees mixtral 4 4 router.capacity_factor=1 train.recompute=block
    agrees mixtral 2 2 optimizer.moments=bf16 optimizer.ema=0.9 train.precision=bf16
    agrees deepseek_v2 4 2 router.dispatch=padded
    agrees deepseek_v2 1 1 optimizer.freeze='model.layers.0.*'
fi
[ ! -e "$work/run.verify" ] || fail "the checkpoints of verify are still there"
[ ! -e "$work/run" ] || fail "verify made a run directory"

echo "a rank whose gradients are 1 % too large"
make_config deepseek_v3
expect_rc 1 ranks 2 "$binary" verify "$work/tiny.yaml" parallel.ep=2 debug.fault=gradient:1:1
expect_text "BAD  gradients"
expect_text "first: gradient (times 1 - beta1) of lm_head.weight"
expect_text "ok   tokens per expert"
expect_rc 1 ranks 2 "$binary" verify "$work/tiny.yaml" parallel.ep=2 debug.fault=gradient:1:0 --json
python3 - "$out" <<'PY' || fail "verify --json is not what it should be"
import json, sys
report = json.load(open(sys.argv[1]))
rows = {row["what"]: row for row in report["rows"]}
assert not report["good"] and report["ranks"] == 2 and "lm_head" in report["first"], report
assert rows["loss"]["good"] and not rows["gradients"]["good"], rows
# 1 % of the half of the batch that this rank has, before clipping
assert 1e-3 < rows["gradients"]["difference"] < 0.1, rows
PY

echo "before training"
expect_rc 0 train_on 2 2 "$work/first" run.steps=2 run.verify=true
expect_text "verified"
has_steps "$work/first" 2 || fail "nothing was trained"
expect_error 1 "run.verify: this layout does not compute what one rank does" \
    train_on 2 2 "$work/never" run.verify=true debug.fault=gradient:1:1
[ ! -e "$work/never" ] || fail "a run directory was made in spite of it"

echo "in the way"
mkdir "$work/run.verify"
expect_error 64 "in the way of verify" "$binary" verify "$work/tiny.yaml"
finish
