#!/usr/bin/env bash
# Training in FP8, every family: the same first loss on every layout of ranks, the same bits whatever is recomputed and
# after a resume; near bf16; what a run leaves behind is evaluated, continued, exported; what can't be is refused.
# The evidence over 300 steps is test_fp8_curves.sh.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"
make_data

# Widths that FP8 takes, and some of more than a tile of 128.
widths_of() {
    case $1 in
    mixtral) echo model.hidden_size=160 model.intermediate_size=144 ;;
    deepseek_v2) echo model.hidden_size=144 model.moe_intermediate_size=48 model.qk_rope_head_dim=16 ;;
    deepseek_v3)
        echo model.hidden_size=64 model.moe_intermediate_size=32 model.qk_rope_head_dim=16 \
            model.q_lora_rank=144 model.kv_lora_rank=32
        ;;
    esac
}

# fp8 RANKS,EP NAME [key=value ...]: trains the family.
fp8() {
    local layout=$1 name=$2
    shift 2
    # shellcheck disable=SC2046
    expect_rc 0 train_on "${layout%,*}" "${layout#*,}" "$work/$family-$name" train.precision=fp8 $(widths_of "$family") \
        run.threads=1 run.steps=3 "$@"
}

# of NAME FIELD [LINE]: all steps, or one.
of() {
    metric "$work/$family-$1" "$2" | sed -n "${3:-1,\$}p"
}

# same_first A B WHAT: forward of the first step, bit for bit.
same_first() {
    expect_same "$(of "$1" loss_hex 1)" "$(of "$2" loss_hex 1)" "$family: first loss, $3"
    expect_same "$(of "$1" mtp_loss 1)" "$(of "$2" mtp_loss 1)" "$family: first loss of prediction, $3"
}

# same_bits A B WHAT: all of it.
same_bits() {
    local field
    for field in loss_hex grad_norm aux_loss; do
        expect_same "$(of "$1" $field)" "$(of "$2" $field)" "$family: $field, $3"
    done
}

# counted NAME: what became of numbers on their way to codes.
counted() {
    grep -o '"fp8_[a-z]*":{[^}]*}' "$work/$family-$1/metrics.jsonl"
}

layouts() {
    local layout
    fp8 1,1 one
    for layout in 2,2 4,2 2,1; do
        fp8 $layout "at-$layout"
        same_first one "at-$layout" "1,1 and $layout"
        close_to 2e-3 "$(of one loss)" "$(of "at-$layout" loss)" "$family: losses at 1,1 and $layout"
        close_to 2e-2 "$(of one grad_norm)" "$(of "at-$layout" grad_norm)" "$family: norms at 1,1 and $layout"
    done
    fp8 1,1 crowded model.initializer_range=0.3 router.buffer_factor=1
    fp8 4,4 rounds model.initializer_range=0.3 router.buffer_factor=1
    same_first crowded rounds "extra rounds"
    [ "$(of rounds extra_rounds 1)" -gt 0 ] || fail "$family: no extra rounds"
    close_to 3e-2 "$(of crowded grad_norm 1)" "$(of rounds grad_norm 1)" "$family: norm with extra rounds"
    fp8 2,2 padded router.dispatch=padded
    same_bits at-2,2 padded "padded dispatch"
    expect_same "$(counted at-2,2)" "$(counted padded)" "$family: counters, padded dispatch"
    fp8 1,1 capacity-1 router.capacity_factor=1
    fp8 2,2 capacity-2 router.capacity_factor=1
    same_first capacity-1 capacity-2 "dropping"
    case $(of capacity-1 dropped_fraction 1) in 0 | 0.0) fail "$family: nothing dropped" ;; esac
}

recompute() {
    local mode
    for mode in norms experts block; do
        fp8 1,1 "again-$mode" train.recompute=$mode
        same_bits one "again-$mode" "recompute $mode"
    done
    fp8 4,2 again-ranks train.recompute=block
    same_bits at-4,2 again-ranks "recompute block on ranks"
    fp8 1,1 threads run.threads=3
    same_bits one threads "three threads"
}

# 4 steps, and 2 and 2.
resume() {
    fp8 2,2 straight run.steps=4 optimizer.moments=bf16
    fp8 2,2 halves run.steps=2 optimizer.moments=bf16
    fp8 2,2 halves run.steps=4 optimizer.moments=bf16
    expect_text "resuming at step 2"
    same_bits straight halves "resumed"
    cmp "$work/$family-straight/checkpoints/00000004/shard-00000.h5" \
        "$work/$family-halves/checkpoints/00000004/shard-00000.h5" || fail "$family: a resumed shard differs"
}

# Kinds of numbers in the metrics; near bf16, but not bf16.
figures() {
    local field
    for field in fp8_amax fp8_underflow fp8_saturated; do
        grep -q "\"$field\":{\"activations\":[0-9.e-]*,\"gradients\":[0-9.e-]*,\"weights\":[0-9.e-]*}" \
            "$work/$family-one/metrics.jsonl" || fail "$family: no $field"
    done
    # shellcheck disable=SC2046
    expect_rc 0 train_on 1 1 "$work/$family-bf16" train.precision=bf16 $(widths_of "$family") run.threads=1 run.steps=12
    ! grep -q fp8 "$work/$family-bf16/metrics.jsonl" || fail "$family: FP8 in the metrics of bf16"
    fp8 1,1 longer run.steps=12
    # Later steps of so small a model tell chaos, not precision.
    close_to 2e-3 "$(of bf16 loss | head -n 6)" "$(of longer loss | head -n 6)" "$family: losses in bf16 and fp8"
    close_to 0.05 "$(of bf16 grad_norm | head -n 6)" "$(of longer grad_norm | head -n 6)" "$family: norms in bf16 and fp8"
    [ "$(of bf16 loss_hex 1)" != "$(of longer loss_hex 1)" ] || fail "$family: fp8 is bf16"
}

# loss_of PLACE [key=value ...]: as hex, of the validation text.
loss_of() {
    expect_rc 0 "$binary" eval "$1" --json "data.valid=$work/valid.h5" "${@:2}"
    sed -n 's/.*"loss_hex":"\([^"]*\)".*/\1/p' "$out"
}

after() {
    local now
    now=$(loss_of "$work/$family-longer")
    close_to 0.2 "$(python3 -c "print(float.fromhex('$now'))")" "$(of longer loss 12)" "$family: eval"
    expect_rc 0 "$binary" generate "$work/$family-longer" --prompt "the int " --count 20 --temperature 0 --json
    cp "$out" "$work/said"
    expect_rc 0 "$binary" generate "$work/$family-longer" --prompt "the int " --count 20 --temperature 0 --json train.sequence_length=64
    expect_same "$(cat "$work/said")" "$(cat "$out")" "$family: text with more room"
    expect_rc 0 "$binary" export "$work/$family-longer" "$work/$family-hf" --dtype fp8
    grep -q weight_block_size "$work/$family-hf/config.json" || fail "$family: no blocks in config.json"
}

families=deepseek_v3 # has the parts of all
[ "$full" = 0 ] || families="mixtral deepseek_v2 deepseek_v3"
for family in $families; do
    echo "$family"
    make_config $family
    layouts
    recompute
    resume
    figures
    after
done

echo "switches"
family=mixtral
make_config
fp8 1,1 amax fp8.scales=amax
fp8 1,1 promoted fp8.accumulate=promoted
fp8 1,1 unpromoted fp8.accumulate=unpromoted
fp8 1,1 ends fp8.first_bf16=1
fp8 1,1 tail fp8.last_bf16=1
fp8 1,1 plain
[ "$(of ends loss_hex)" != "$(of tail loss_hex)" ] || fail "the first layer in bf16 is the last"
for name in amax promoted unpromoted ends tail; do
    [ "$(of plain loss_hex)" != "$(of $name loss_hex)" ] || fail "$name changed nothing"
    close_to 5e-3 "$(of plain loss)" "$(of $name loss)" "losses, $name"
done
fp8 2,2 jitter-2 model.router_jitter_noise=0.1 train.recompute=block fp8.last_bf16=1
fp8 1,1 jitter-1 model.router_jitter_noise=0.1 train.recompute=none fp8.last_bf16=1
close_to 2e-3 "$(of jitter-1 loss)" "$(of jitter-2 loss)" "losses with jitter"

echo "what travels"
fp8 2,2 sent router.dispatch=padded debug.profile="$work/sent.json" debug.profile_from=2 debug.profile_steps=1
coded_messages "$work/sent.json" 128 2 160

echo "exported codes are those trained with: evaluated in FP8 they are the same model"
for family in ${families//deepseek_v2/}; do
    make_config $family
    for scales in power_of_two amax; do
        # shellcheck disable=SC2046
        fp8 1,1 codes-$scales fp8.scales=$scales run.steps=2 model.hidden_size=128 model.intermediate_size=128 \
            model.num_key_value_heads=4 $([ $family = mixtral ] || echo model.kv_lora_rank=128 model.moe_intermediate_size=128)
        expect_rc 0 "$binary" export "$work/$family-codes-$scales" "$work/$family-hf-$scales" --dtype fp8
        expect_rc 0 "$binary" import "$work/$family-hf-$scales" "$work/$family-back-$scales"
    done
    # With the same micro-batches: losses of each are added up before they are added to the others'.
    expect_same "$(loss_of "$work/$family-codes-power_of_two")" \
        "$(loss_of "$work/$family-back-power_of_two" train.precision=fp8 train.sequence_length=32 train.micro_batch=2)" "$family: eval of exported codes"
    ! cmp -s "$work/$family-hf-amax/model.safetensors" "$work/$family-hf-power_of_two/model.safetensors" ||
        fail "$family: fp8.scales changed no export"
done

echo "what is not finite stops the run"
make_config
expect_rc 77 train_on 1 1 "$work/wild" train.precision=fp8 run.steps=200 optimizer.lr=100 optimizer.weight_decay=10 optimizer.clip_norm=0 schedule.kind=constant
expect_text "FP8 tiles with NaN or infinity"

echo "its kernels one by one"
# shellcheck disable=SC2046
expect_rc 0 "$binary" bench "$work/tiny.yaml" --kernels train.precision=fp8 $(widths_of mixtral)
expect_text "fp8_experts_weight"
if "$binary" --version | grep -q '^devices: .*cuda'; then
    expect_text "gemm_fp8_sm90_kernel"
fi

echo "refusals"
refused() {
    expect_error 64 "$1" "$binary" train "$work/tiny.yaml" "run.dir=$work/refused" "${@:2}"
}
refused "model.intermediate_size = 40: train.precision fp8 needs a multiple of 16" train.precision=fp8 model.intermediate_size=40
refused "fp8.scales: only train.precision fp8 has it" train.precision=bf16 fp8.scales=amax
refused "leave none of 2 layers in fp8" train.precision=fp8 fp8.first_bf16=1 fp8.last_bf16=1
refused "fp8.accumulate: models of a GPU are for run.device cpu" train.precision=fp8 fp8.accumulate=promoted run.device=cuda
[ ! -e "$work/refused" ] || fail "a refused run made its folder"
finish
