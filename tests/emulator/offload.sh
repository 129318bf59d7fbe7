#!/usr/bin/env bash
# offload.sh SOURCE_DIR SWITCHYARD_EMULATED: optimizer.offload on emulated GPUs. Masters, moments and average in the host's
# memory, brought through windows under seeded interleavings: every loss, norm and tensor of a checkpoint is that of a run
# without, and each resumes from the other's checkpoints.
set -euo pipefail
. "$1/tests/cli/common.sh"
. "$1/tests/emulator/models.sh"
make_data
steps=3
bits() { all_bits "$1" | sha256sum; }

# both RANKS EP KEY...: without and with offload, under two orders, the same bits in less of the GPU's memory.
both() {
    local count=$1 ep=$2 seed
    shift 2
    echo "$family, $count ranks, ep $ep, $*"
    rm -rf "$work/off" "$work/on"
    EMU_SEED=0 expect_rc 0 train_on "$count" "$ep" "$work/off" run.device=cuda "$@"
    for seed in 0 5; do
        rm -rf "$work/on"
        EMU_SEED=$seed expect_rc 0 train_on "$count" "$ep" "$work/on" run.device=cuda optimizer.offload=true "$@"
        expect_text "of the state in host memory per rank"
        expect_same "$(bits "$work/on")" "$(bits "$work/off")" "$family, seed $seed, $*"
    done
    [ "$(metric "$work/on" memory_bytes | tail -n 1)" -lt "$(metric "$work/off" memory_bytes | tail -n 1)" ] ||
        fail "$family, $*: the GPU has as much in its memory as without"
}

family=mixtral
config_of $family >"$work/tiny.yaml"
both 1 1 train.precision=bf16
both 1 1 train.precision=fp32 optimizer.moments=bf16 optimizer.clip_norm=0.01
both 1 1 train.precision=bf16 optimizer.name=muon optimizer.ema=0.9
both 2 2 train.precision=bf16 'optimizer.freeze=*embed*,*q_proj*' optimizer.ema=0.5
both 2 1 train.precision=fp32 parallel.zero=2 optimizer.ema=0.5 run.comm=mpi
both 2 2 train.precision=bf16 parallel.zero=3
both 1 1 train.precision=bf16 run.deterministic=layout
family=v3
config_of $family >"$work/tiny.yaml"
both 2 2 train.precision=bf16 parallel.zero=2 optimizer.name=muon optimizer.moments=bf16
both 2 1 train.precision=bf16 parallel.pp=2

# resumes KEY...: from step 2 on with the other, and to other moments, as one that goes on as it was.
resumes() {
    local first=$1 second=$2
    shift 2
    echo "resumes: $first, then $second, $*"
    rm -rf "$work/whole" "$work/other"
    expect_rc 0 train_on 2 2 "$work/whole" run.device=cuda run.steps=2 "optimizer.offload=$first" "$@"
    cp -r "$work/whole" "$work/other"
    expect_rc 0 train_on 2 2 "$work/whole" run.device=cuda run.steps=5 "optimizer.offload=$first" "${converted[@]}" "$@"
    expect_rc 0 train_on 2 2 "$work/other" run.device=cuda run.steps=5 "optimizer.offload=$second" "${converted[@]}" "$@"
    expect_text "resuming at step 2"
    expect_same "$(bits "$work/whole")" "$(bits "$work/other")" "resumed $first to $second, $*"
}
converted=()
resumes false true train.precision=bf16 parallel.zero=2
resumes true false train.precision=fp32 optimizer.ema=0.9
# Moments in two bytes become f32, and an average begins: on both sides.
converted=(optimizer.moments=fp32 optimizer.ema=0.9)
resumes true false train.precision=bf16 optimizer.moments=bf16
converted=()

echo "saves beside the training"
for async in false true; do
    rm -rf "${work:?}/$async"
    expect_rc 0 train_on 2 2 "$work/$async" run.device=cuda run.steps=6 checkpoint.every_steps=2 checkpoint.keep_last=9 \
        train.precision=bf16 optimizer.offload=true checkpoint.async=$async
done
for step in 2 4 6; do
    cmp "$work/false/checkpoints/0000000$step/shard-00001.h5" "$work/true/checkpoints/0000000$step/shard-00001.h5" ||
        fail "the shard of step $step differs"
done

echo "refused on a CPU"
expect_error 64 "optimizer.offload" "$binary" train "$work/tiny.yaml" "run.dir=$work/cpu" optimizer.offload=true
finish
