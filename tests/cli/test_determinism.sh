#!/usr/bin/env bash
# run.deterministic: layout: losses, norms, routing and every tensor of the checkpoint are the same bits on every layout
# of ranks, and across a resume on another one; a program whose sums depend on the order is caught.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"
make_data
base=$work/first

# config_of FAMILY: 12 units of one sequence, so that 1, 2, 3 and 4 ranks have as many each.
config_of() {
    make_config "$1"
    sed -i 's/micro_batch: 2, global_batch: 8/micro_batch: 1, global_batch: 12/' "$work/tiny.yaml"
}

# Widths that FP8 takes.
widths_of() {
    case $1 in
    deepseek_v2) echo model.moe_intermediate_size=48 model.qk_rope_head_dim=16 ;;
    deepseek_v3) echo model.moe_intermediate_size=32 model.qk_rope_head_dim=16 model.q_lora_rank=48 ;;
    esac
}

# layout RANKS,EP NAME [key=value ...]: trains there.
layout() {
    local at=$1 name=$2
    shift 2
    expect_rc 0 train_on "${at%,*}" "${at#*,}" "$work/$name" run.deterministic=layout "$@"
}

# same_as_first NAME WHAT
same_as_first() {
    all_bits "$work/$1" >"$work/these.txt"
    cmp -s "$base.txt" "$work/these.txt" ||
        { fail "$2: other bits"; diff "$base.txt" "$work/these.txt" | head -n 4 || true; }
}

# everywhere WHAT LAYOUTS [key=value ...]: the first of the layouts against each of the others.
everywhere() {
    local what=$1 layouts=$2 at first=yes
    shift 2
    echo "$what: $layouts"
    for at in $layouts; do
        layout "$at" "at-$at" "$@"
        if [ -n "$first" ]; then
            all_bits "$work/at-$at" >"$base.txt"
        else
            same_as_first "at-$at" "$what at $at"
        fi
        rm -rf "$work/at-$at"
        first=
    done
}

if [ "$full" != 1 ]; then
    config_of deepseek_v3
    everywhere deepseek_v3 "1,1 2,2" run.steps=2
    finish
    exit
fi

for family in mixtral deepseek_v2 deepseek_v3; do
    config_of $family
    for precision in fp32 bf16 fp8; do
        # shellcheck disable=SC2046
        everywhere "$family, $precision" "1,1 2,1 2,2 3,1 4,1 4,2 4,4" run.steps=30 train.precision=$precision \
            $([ $precision != fp8 ] || widths_of $family)
    done
done

# The last was deepseek_v3.
everywhere "rounds" "1,1 4,4 2,2" run.steps=5 router.buffer_factor=1 model.initializer_range=0.5
everywhere "padded dispatch" "1,1 2,2 4,2" run.steps=5 train.precision=bf16 router.dispatch=padded
everywhere "three experts' ranks" "1,1 3,3" run.steps=5 model.n_routed_experts=12
everywhere "gradients of chosen experts alone" "1,1 2,2 3,3 4,2" run.steps=5 model.n_routed_experts=24 \
    router.sequence_loss_coef=0 router.capacity_factor=1
everywhere "muon" "1,1 2,2 4,2" run.steps=10 optimizer.name=muon
everywhere "the rest" "1,1 2,2 3,1" run.steps=5 router.capacity_factor=1 router.z_loss_coef=1e-3 \
    train.recompute=experts optimizer.moments=bf16 optimizer.ema=0.9 'optimizer.freeze=model.layers.0.*,*experts.3.*,*experts.5.up_proj*'

echo "threads"
layout 1,1 one-thread run.steps=5
all_bits "$work/one-thread" >"$base.txt"
layout 2,2 two-threads run.steps=5 run.threads=2
same_as_first two-threads "two threads a rank"

echo "resume on another layout"
layout 1,1 straight run.steps=30
all_bits "$work/straight" >"$base.txt"
layout 4,2 resumed run.steps=15
layout 3,1 resumed run.steps=30
same_as_first resumed "15 steps at 4,2 and 15 at 3,1"

echo "a sum that depends on the order"
program=$binary
binary=$(dirname "$binary")/tests/order_dependent
layout 1,1 mutant-1 run.steps=3
all_bits "$work/mutant-1" >"$base.txt"
layout 2,1 mutant-2 run.steps=3
all_bits "$work/mutant-2" >"$work/these.txt"
! cmp -s "$base.txt" "$work/these.txt" || fail "sums in f32 were not caught"
binary=$program

echo "what is not a number ends the run"
expect_error 77 "elements of gradients are NaN or infinity" train_on 2 2 "$work/nan" run.deterministic=layout \
    run.steps=5 debug.fault=nan:2:1

# The second rank is held to AVX2: another one only where the first has more.
expect_rc 0 "$binary" doctor
if grep -q '^ *isa  *AVX-512' "$out"; then
    echo "ranks that compute differently"
    expect_error 64 "ranks compute differently" mpirun --allow-run-as-root --oversubscribe --bind-to none -q \
        -np 1 "$binary" train "$work/tiny.yaml" run.deterministic=layout "run.dir=$work/unlike" : \
        -np 1 -x ONEDNN_MAX_CPU_ISA=AVX2 -x DNNL_MAX_CPU_ISA=AVX2 \
        "$binary" train "$work/tiny.yaml" run.deterministic=layout "run.dir=$work/unlike"
else
    echo "left out: ranks that compute differently: no AVX-512 here"
fi

echo "the shipped config, at 1, 2 and 4 ranks"
for np in 1 2 4; do
    expect_rc 0 ranks $np "$binary" train "$source_dir/configs/tiny-deepseek-v3.yaml" run.deterministic=layout \
        run.steps=5 schedule.warmup_steps=1 train.micro_batch=1 "data.train=$work/train.h5" data.valid=null "run.dir=$work/shipped-$np"
    metric "$work/shipped-$np" loss_hex >"$work/shipped-$np.txt"
    cmp -s "$work/shipped-1.txt" "$work/shipped-$np.txt" || fail "configs/tiny-deepseek-v3.yaml: loss_hex at $np ranks"
done
finish
