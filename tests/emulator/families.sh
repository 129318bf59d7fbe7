#!/usr/bin/env bash
# families.sh SOURCE_DIR SWITCHYARD_EMULATED: every family trains on emulated GPUs as on the CPU, in f32 to 1e-5 per
# loss, whatever is switched on; checkpoints go from one device to the other. SWITCHYARD_FULL=1: 4 ranks, more switches.
set -euo pipefail
. "$1/tests/cli/common.sh"
. "$1/tests/emulator/models.sh"
make_data
steps=4

# run_on RANKS DEVICE NAME [key=value ...]: trains the family; one rank holds ep 1, more hold ep = ranks.
run_on() {
    local count=$1 device=$2 name=$3
    shift 3
    expect_rc 0 train_on "$count" "$count" "$work/$family-$name" "run.device=$device" "$@"
}

# same_curve A B WHAT [TOLERANCE]: losses and gradient norms of two runs of the family.
same_curve() {
    local field
    for field in loss aux_loss grad_norm; do
        close_to "${4:-1e-5}" "$(metric "$work/$family-$1" $field)" "$(metric "$work/$family-$2" $field)" "$family, $3: $field"
    done
}

# both NAME [key=value ...]: one rank of each device, the same.
both() {
    local name=$1
    shift
    run_on 1 cpu "$name-cpu" "$@"
    run_on 1 cuda "$name-cuda" "$@"
    same_curve "$name-cpu" "$name-cuda" "$name"
}

curves() {
    local comm
    run_on 1 cpu cpu
    run_on 1 cuda cuda
    same_curve cpu cuda "one rank"
    for comm in $comms; do
        run_on 2 cuda "two-$comm" run.comm="$comm"
        same_curve cpu "two-$comm" "two ranks by $comm"
        run_on 2 cuda "padded-$comm" run.comm="$comm" router.dispatch=padded
        expect_same "$(metric "$work/$family-two-$comm" loss_hex)" "$(metric "$work/$family-padded-$comm" loss_hex)" \
            "$family: losses of exact and padded dispatch by $comm"
    done
    [ "$full" -eq 0 ] || { run_on 4 cuda four; same_curve cpu four "four ranks"; }
}

# count_of WHAT LAYERS STEPS [key=value ...]: of two ranks together, as the emulator counts them; a run is made once.
count_of() {
    local what=$1 layers=$2 count=$3
    shift 3
    local counts="$work/counts-$layers-$count-${*//[^a-z]/}"
    if [ ! -e "$counts" ]; then
        EMU_COUNTS=1 EMU_SEED=3 run_on 2 cuda counted run.comm=nccl "model.num_hidden_layers=$layers" "run.steps=$count" "$@" >&2
        rm -rf "$work/$family-counted"
        cp "$err" "$counts"
    fi
    grep -o "[0-9]* $what" "$counts" | awk '{sum += $1} END {print sum + 0}'
}

# per_step WHAT LAYERS [key=value ...]: what two steps more add, of both ranks: a step's of one, times 4.
per_step() {
    local what=$1 layers=$2
    shift 2
    echo $(($(count_of "$what" "$layers" 6 "$@") - $(count_of "$what" "$layers" 4 "$@")))
}

# Padded dispatch: graphs hold the experts, and the host waits at the end of a step only, however many layers
# there are. Exact: it waits in each; and kernels run beside messages (shared experts, weight gradients).
waits() {
    local padded exact
    padded=$(per_step waits 2 router.dispatch=padded)
    exact=$(per_step waits 2)
    expect_same "$padded" "$(per_step waits 3 router.dispatch=padded)" "$family: waits of 2 and 3 layers, padded"
    [ "$padded" -lt "$exact" ] || fail "$family: $padded waits with padded dispatch, $exact with exact"
    # 2 layers, both passes, 2 micro-batches a rank
    expect_same "$(per_step graphs 2 router.dispatch=padded)" $((2 * 2 * 2 * 4)) "$family: graphs launched"
    [ "$(count_of overtakes 2 4)" -gt 0 ] || fail "$family: no kernel ran beside a message"
}

# Saved by one device, gone on with by the other; the text that comes out.
move() {
    local from text
    for from in cpu cuda; do
        local to=cuda
        [ $from = cpu ] || to=cpu
        run_on 1 $from "move-$from" run.steps=2
        run_on 1 $to "move-$from" run.steps=$steps
        same_curve cpu "move-$from" "saved on $from, resumed on $to"
    done
    text=(generate "$work/$family-cpu" --prompt "int " --count 6 --temperature 0)
    expect_rc 0 "$binary" "${text[@]}" run.device=cpu
    cp "$out" "$work/said"
    expect_rc 0 "$binary" "${text[@]}" run.device=cuda
    cmp -s "$out" "$work/said" || fail "$family: text on the two devices differs"
}

# Of fp8, in full: the same bits staged through the host; a tile that is not finite stops the run on this device, too.
staged_and_wild() {
    run_on 2 cuda fp8-cuda-mpi "${keys[@]}" run.comm=mpi router.dispatch=padded debug.profile="$work/mpi.json" \
        debug.profile_from=2 debug.profile_steps=1
    coded_messages "$work/mpi.json" 512 $slots 32 # to both ranks
    expect_same "$(metric "$work/$family-fp8-cuda-two" loss_hex)" "$(metric "$work/$family-fp8-cuda-mpi" loss_hex)" "$family, fp8: by mpi"
    [ $family != v3 ] || expect_rc 77 train_on 2 2 "$work/$family-fp8-wild" run.device=cuda "${keys[@]}" run.steps=30 optimizer.lr=100 \
        optimizer.weight_decay=10 optimizer.clip_norm=0 schedule.kind=constant
    [ $family != v3 ] || expect_text "FP8 tiles with NaN or infinity"
}

# FP8 sums differently on the two devices: losses to 1e-3, norms of gradients to 2e-2. Of 512 tokens a step: of 64, one
# token that goes to another expert is that much, and in bf16 too the devices are 1.4e-3 apart.
fp8() {
    local device name slots=3 # experts of a token: on one rank at most
    [ $family != mixtral ] || slots=2
    local keys=(train.precision=fp8 run.steps=5 model.intermediate_size=48 optimizer.lr=3e-4 train.sequence_length=64
        train.micro_batch=4 train.global_batch=8)
    [ $family = mixtral ] || keys+=(model.qk_rope_head_dim=16)
    [ $family != v3 ] || keys+=(model.q_lora_rank=32)
    [ "$full" -eq 1 ] || keys+=(run.steps=2) # the second has what the first one's gradients did
    for device in cpu cuda; do
        run_on 1 $device "fp8-$device" "${keys[@]}"
        run_on 2 $device "fp8-$device-two" "${keys[@]}"
    done
    # The same codes on one rank and on two: the same bits forward, and, in full, by both wires.
    expect_same "$(metric "$work/$family-fp8-cuda" loss_hex | head -n 1)" "$(metric "$work/$family-fp8-cuda-two" loss_hex | head -n 1)" \
        "$family, fp8: first loss of two ranks"
    [ "$full" -eq 0 ] || staged_and_wild
    EMU_COUNTS=1 run_on 2 cuda fp8-cuda-padded "${keys[@]}" router.dispatch=padded
    coded_messages "$err" 256 $slots 32 # to one rank
    expect_same "$(metric "$work/$family-fp8-cuda-two" loss_hex)" "$(metric "$work/$family-fp8-cuda-padded" loss_hex)" "$family, fp8: padded"
    for name in cpu-two cuda cuda-two; do
        close_to 1e-3 "$(metric "$work/$family-fp8-cpu" loss)" "$(metric "$work/$family-fp8-$name" loss)" "$family, fp8: $name"
        close_to 2e-2 "$(metric "$work/$family-fp8-cpu" grad_norm)" "$(metric "$work/$family-fp8-$name" grad_norm)" "$family, fp8, norms: $name"
    done
}

for family in mixtral v2 v3; do
    echo "$family"
    config_of $family >"$work/tiny.yaml"
    [ "$full" = 0 ] && [ $family != v3 ] || fp8
    comms=nccl
    [ $family != mixtral ] || comms="nccl mpi"
    curves
    case $family in
    mixtral)
        waits
        both dropped router.dispatch=padded router.capacity_factor=1.1
        both capacity router.capacity_factor=1.1 router.z_loss_coef=0.01
        both jitter model.router_jitter_noise=0.1 train.recompute=block
        ;;
    v2) move ;;
    v3)
        both muon optimizer.name=muon optimizer.ema=0.9 train.recompute=experts
        [ "$full" -eq 0 ] || { move; both norms train.recompute=norms data.mask_documents=true; }
        ;;
    esac
done
finish
