#!/usr/bin/env bash
# axes.sh SOURCE_DIR SWITCHYARD_EMULATED: stages, divided heads and divided sequences, parts of experts, gradients and weights
# in shares, with experts on other ranks, train on emulated GPUs as one CPU rank does: in f32 to 1e-5 per loss, by NCCL and staged.
set -euo pipefail
. "$1/tests/cli/common.sh"
. "$1/tests/emulator/models.sh"
make_data
steps=3
more=() # keys of every run

# layout RANKS EP NAME KEY...: trains there, and compares with one CPU rank's.
layout() {
    local count=$1 ep=$2 name=$3 field
    shift 3
    expect_rc 0 train_on "$count" "$ep" "$work/$name" run.device=cuda "${more[@]}" "$@"
    for field in loss aux_loss grad_norm; do
        close_to "$tolerance" "$(metric "$work/cpu" $field)" "$(metric "$work/$name" $field)" "$family, $name at $count, ${more[*]}: $field"
    done
    rm -rf "${work:?}/$name"
}

# against FAMILY TOLERANCE KEY...: the run that others are compared with.
against() {
    family=$1 tolerance=$2
    shift 2
    more=("$@")
    echo "$family ${more[*]}"
    config_of "$family" >"$work/tiny.yaml"
    rm -rf "$work/cpu"
    expect_rc 0 train_on 1 1 "$work/cpu" "${more[@]}"
}

for family in mixtral v3; do
    against $family 1e-5
    for comm in nccl mpi; do
        layout 2 1 "pp-$comm" parallel.pp=2 run.comm=$comm
        layout 2 2 "tp-$comm" parallel.tp=2 run.comm=$comm
        layout 2 2 "cp-$comm" parallel.cp=2 run.comm=$comm
    done
    layout 2 1 etp parallel.etp=2
    layout 2 2 zero2 parallel.zero=2
    layout 2 1 zero3 parallel.zero=3 run.comm=mpi
    layout 4 2 pp parallel.pp=2
    layout 4 2 tp parallel.tp=2
    layout 4 2 cp parallel.cp=2
    for comm in nccl mpi; do # two machines of two ranks
        layout 4 4 "nodes-$comm" parallel.node_dispatch=hierarchical parallel.ranks_per_node=2 run.comm=$comm
    done
done
# Two machines of two ranks: every bit of what goes from rank to rank.
for family in mixtral v3; do
    config_of $family >"$work/tiny.yaml"
    for way in flat "hierarchical parallel.ranks_per_node=2"; do
        # shellcheck disable=SC2086 # two keys
        expect_rc 0 train_on 4 4 "$work/${way%% *}" run.device=cuda train.precision=bf16 parallel.node_dispatch=$way
        [ "$way" = flat ] || expect_text "ep spans 2 nodes of 2 ranks"
    done
    for field in loss_hex aux_loss grad_norm; do
        expect_same "$(metric "$work/flat" $field)" "$(metric "$work/hierarchical" $field)" "$family, by machines: $field"
    done
    rm -rf "${work:?}/flat" "${work:?}/hierarchical"
done
# Passes side by side, of stages and without, and one behind the other: every bit.
# same RANKS EP KEY-A KEY-B KEYS...: both ways have the same bits. Leaves the runs in a and b.
same() {
    local ranks=$1 ep=$2 a=$3 b=$4 field
    shift 4
    expect_rc 0 train_on "$ranks" "$ep" "$work/a" run.device=cuda "$a" "$@"
    expect_rc 0 train_on "$ranks" "$ep" "$work/b" run.device=cuda "$b" "$@"
    for field in loss_hex aux_loss grad_norm; do
        expect_same "$(metric "$work/a" $field)" "$(metric "$work/b" $field)" "$family, $a and $b, $*: $field"
    done
}
# beside RANKS COMM KEYS...
beside() {
    local ranks=$1 comm=$2
    shift 2
    same "$ranks" 2 parallel.overlap=on parallel.overlap=off run.comm="$comm" train.global_batch=8 "$@"
    off=$(metric "$work/b" memory_bytes | tail -n 1)
    rm -rf "${work:?}/a" "${work:?}/b"
}
for family in mixtral v3; do
    config_of $family >"$work/tiny.yaml"
    for comm in nccl mpi; do
        beside 2 $comm train.micro_batch=2
        beside 4 $comm parallel.pp=2 parallel.schedule=dualpipe_v model.num_hidden_layers=4
    done
done
# Staged, nothing would be hidden: auto has no memory for it.
expect_rc 0 train_on 4 2 "$work/auto" run.device=cuda run.comm=mpi parallel.pp=2 parallel.schedule=dualpipe_v \
    model.num_hidden_layers=4 train.global_batch=8
expect_same "$(metric "$work/auto" memory_bytes | tail -n 1)" "$off" "memory of auto and of off"
rm -rf "${work:?}/auto"
against v3 1e-5 train.recompute=block data.mask_documents=true
layout 4 2 pp-tp parallel.pp=2 parallel.tp=2
layout 4 2 pp-cp parallel.pp=2 parallel.cp=2 run.comm=mpi
layout 4 4 tp-cp parallel.tp=2 parallel.cp=2
layout 4 2 etp-zero3 parallel.etp=2 parallel.zero=3
# In FP8, latents go round as codes; cp's tolerance: tests/parallel/test_context.c. Gathered weights have the same codes.
steps=2
against v3 2e-2 train.precision=fp8 model.intermediate_size=48 model.qk_rope_head_dim=16 model.q_lora_rank=32 train.sequence_length=64
layout 2 2 cp-fp8 parallel.cp=2
same 2 1 parallel.zero=2 parallel.zero=3 "${more[@]}"
rm -rf "${work:?}/a" "${work:?}/b"
steps=3
# Pieces of 40 tokens, which tiles of 64 do not divide, and a window that hides some of them.
against mixtral 2e-3 train.precision=bf16 train.sequence_length=160 model.sliding_window=70 run.steps=2
layout 2 2 cp-window parallel.cp=2
finish
