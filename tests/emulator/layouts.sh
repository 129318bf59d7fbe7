#!/usr/bin/env bash
# layouts.sh SOURCE_DIR SWITCHYARD_EMULATED: with run.deterministic: layout emulated GPUs compute the same bits on every
# layout of ranks, by NCCL and staged, exactly and padded, in other orders of threads, and across a resume elsewhere.
set -euo pipefail
. "$1/tests/cli/common.sh"
. "$1/tests/emulator/models.sh"
make_data
steps=3

# layout RANKS,EP NAME [key=value ...]: trains there.
layout() {
    local at=$1 name=$2
    shift 2
    expect_rc 0 train_on "${at%,*}" "${at#*,}" "$work/$name" run.device=cuda run.deterministic=layout train.global_batch=12 \
        schedule.warmup_steps=0 "$@"
}

# same NAME WHAT: the bits of the first run of the model.
same() {
    all_bits "$work/$1" >"$work/these.txt"
    cmp -s "$work/first.txt" "$work/these.txt" ||
        { fail "$family, $2: other bits"; diff "$work/first.txt" "$work/these.txt" | head -n 4 || true; }
    rm -rf "${work:?}/$1"
}

# everywhere WHAT LAYOUTS [key=value ...]: the first of the layouts against each of the others.
everywhere() {
    local what=$1 layouts=$2 at
    shift 2
    family=$what
    rm -f "$work/first.txt"
    for at in $layouts; do
        layout "$at" at "$@"
        [ -e "$work/first.txt" ] || all_bits "$work/at" >"$work/first.txt"
        same at "at $at"
    done
}

# What the widths of FP8 need.
narrow=(train.precision=fp8 model.qk_rope_head_dim=16 model.q_lora_rank=32 model.intermediate_size=48)

config_of mixtral >"$work/tiny.yaml"
everywhere "mixtral, fp32" "1,1 2,1 2,2 3,1 4,2 4,4"
everywhere "mixtral, bf16" "1,1 2,2 4,1" train.precision=bf16 train.recompute=experts
config_of v2 >"$work/tiny.yaml"
everywhere "v2, fp32" "1,1 2,2 4,2"
everywhere "v2, bf16" "1,1 3,1 4,4" train.precision=bf16
config_of v3 >"$work/tiny.yaml"
everywhere "v3, fp32" "1,1 4,4"
everywhere "v3, fp8" "1,1 2,2 3,1 4,2" "${narrow[@]}"
everywhere "v3, muon" "1,1 2,2" optimizer.name=muon train.precision=bf16
everywhere "v3, bf16" "1,1 2,2 4,2" train.precision=bf16

# The last one's bits: otherwise sent, in another order of threads and blocks, in two parts.
layout 2,2 padded train.precision=bf16 router.dispatch=padded
same padded "padded"
layout 2,2 staged train.precision=bf16 run.comm=mpi
same staged "staged"
EMU_SEED=5 layout 2,1 seed train.precision=bf16
same seed "another seed"
layout 4,2 parts train.precision=bf16 run.steps=2
layout 1,1 parts train.precision=bf16
same parts "two steps at 4,2 and one at 1,1"
finish
