#!/usr/bin/env bash
# zero.sh SOURCE_DIR SWITCHYARD_EMULATED: gradients and weights in shares, and the sums of whole gradients a block at a
# time, on emulated GPUs: by NCCL they travel beside the kernels of other blocks, in whatever order the device runs both, and every bit is that of the staged transport, where
# the host waits for each. (That these train as one CPU rank does: axes.sh.)
set -euo pipefail
. "$1/tests/cli/common.sh"
. "$1/tests/emulator/models.sh"
make_data
steps=2

bits() { all_bits "$1" | sha256sum; }

# train COMM SEED RANKS EP KEY...: in $work/COMM; prints what the emulator counted of kernels that ran before a message
# that was started earlier, of all ranks.
train() {
    local comm=$1 seed=$2 count=$3 ep=$4
    shift 4
    rm -rf "${work:?}/$comm"
    EMU_COUNTS=1 EMU_SEED=$seed expect_rc 0 train_on "$count" "$ep" "$work/$comm" run.device=cuda "run.comm=$comm" "$@"
    grep -o "[0-9]* overtakes" "$err" | awk '{ sum += $1 } END { print sum + 0 }'
}

# beside LEAST RANKS EP KEY...: by NCCL the same bits in two orders, which are, of two ranks, those of the staged transport
# (of more it adds in another order); LEAST kernels at least run before messages.
beside() {
    local least=$1 count=$2 ep=$3 seed overtakes first=""
    shift 3
    echo "$family, $count ranks, ep $ep, $*"
    overtakes=$(train mpi 0 "$count" "$ep" "$@")
    for seed in 3 8; do
        overtakes=$(train nccl $seed "$count" "$ep" "$@")
        [ "$overtakes" -ge "$least" ] || fail "$family, $*: $overtakes kernels ran beside messages"
        [ -n "$first" ] || first=$(bits "$work/nccl")
        expect_same "$(bits "$work/nccl")" "$first" "$family, seed $seed, $*"
    done
    [ "$count" -gt 2 ] || expect_same "$first" "$(bits "$work/mpi")" "$family, nccl and staged, $*"
    for field in loss grad_norm; do
        close_to 1e-5 "$(metric "$work/mpi" $field)" "$(metric "$work/nccl" $field)" "$family, $*: $field"
    done
}

# What runs before a message where all is reduced behind backward. (z-loss: no kernels in graphs, which count as one.)
for family in mixtral v3; do
    config_of $family >"$work/tiny.yaml"
    none=$(train nccl 3 2 2 parallel.zero=1 router.dispatch=padded)
    beside $((none + 20)) 2 1 parallel.zero=1 router.z_loss_coef=0.001
    beside $((none + 20)) 2 1 parallel.zero=2
    beside $((none + 40)) 2 1 parallel.zero=3
    beside $((none + 40)) 2 2 parallel.zero=3 train.precision=bf16
    beside $((none + 40)) 2 2 parallel.zero=3 router.dispatch=padded
    beside $((none + 20)) 4 2 parallel.zero=2 train.recompute=block
done
beside $((none + 20)) 4 2 parallel.zero=1 router.z_loss_coef=0.001 run.deterministic=layout
beside $((none + 40)) 4 2 parallel.zero=3 parallel.tp=2
beside $((none + 40)) 4 1 parallel.zero=2 parallel.pp=2
finish
