#!/usr/bin/env bash
# The layout of ranks changes neither data nor loss: (ranks, ep) against one rank.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"
make_data
make_config
layouts="1,1 2,1 2,2 4,1 4,2 4,4"

# every_layout NAME [key=value ...]: trains it on each layout into $work/NAME-RANKS-EP.
every_layout() {
    local name=$1 layout
    shift
    for layout in $layouts; do
        expect_rc 0 train_on "${layout%,*}" "${layout#*,}" "$work/$name-${layout/,/-}" "$@"
    done
}

# first FIELD DIR: of step 1.
first() {
    metric "$2" "$1" | head -n 1
}

# same_first_loss NAME: bit for bit.
same_first_loss() {
    local layout
    for layout in $layouts; do
        expect_same "$(first loss_hex "$work/$1-1-1")" "$(first loss_hex "$work/$1-${layout/,/-}")" \
            "$1: loss of step 1 at 1,1 and $layout"
        close_to 1e-5 "$(first grad_norm "$work/$1-1-1")" "$(first grad_norm "$work/$1-${layout/,/-}")" \
            "$1: gradient norm of step 1 at 1,1 and $layout"
    done
}

echo "dropless, 20 steps"
every_layout plain
same_first_loss plain
for layout in $layouts; do
    dir=$work/plain-${layout/,/-}
    expect_same "$(metric "$dir" step | tr '\n' ' ')" "$(seq 20 | tr '\n' ' ')" "steps at $layout"
    close_to 1e-5 "$(metric "$work/plain-1-1" loss)" "$(metric "$dir" loss)" \
        "losses of 20 steps at 1,1 and $layout"
    close_to 1e-9 "$(metric "$work/plain-1-1" lr)" "$(metric "$dir" lr)" "lr at $layout"
done
close_to 0.5 "$(first loss "$work/plain-1-1")" 5.55 "first loss near ln 257"
python3 - "$(first loss "$work/plain-1-1")" "$(metric "$work/plain-1-1" loss | tail -n 1)" <<'PY' ||
import sys
sys.exit(float(sys.argv[2]) > 0.8 * float(sys.argv[1]))
PY
    fail "20 steps learned nothing"

echo "smallest receive buffer and imbalance: extra rounds, the same loss"
every_layout rounds run.steps=3 router.buffer_factor=1 model.initializer_range=0.5 \
    router.batch_loss_coef=0
same_first_loss rounds
for layout in $layouts; do
    most=$(metric "$work/rounds-${layout/,/-}" extra_rounds | sort -n | tail -n 1)
    case $layout in
    *,1) ;;
    *) [ "$most" -gt 0 ] || fail "no extra rounds at $layout" ;;
    esac
done

echo "capacity: dropped tokens are the same ones"
every_layout capacity run.steps=3 router.capacity_factor=1
same_first_loss capacity
for layout in $layouts; do
    dropped=$(first dropped_fraction "$work/capacity-${layout/,/-}")
    expect_same "$(first dropped_fraction "$work/capacity-1-1")" "$dropped" "dropped at $layout"
    case $dropped in 0 | 0.0) fail "nothing dropped at $layout" ;; esac
done

echo "the rest of the model's switches, two layouts"
layouts="1,1 4,2"
every_layout switches run.steps=3 data.mask_documents=true model.sliding_window=9 \
    router.z_loss_coef=1e-3 model.router_jitter_noise=0.1 train.recompute=experts \
    optimizer.decay=all
same_first_loss switches
every_layout block run.steps=5 train.recompute=block
every_layout none run.steps=5
for layout in $layouts; do
    expect_same "$(metric "$work/block-${layout/,/-}" loss_hex)" \
        "$(metric "$work/none-${layout/,/-}" loss_hex)" "recompute block and none at $layout"
done

echo "two runs, one threads and two: the same bits"
for precision in fp32 bf16; do
    for layout in 1,1 2,2 4,2; do
        for again in a b; do
            expect_rc 0 train_on "${layout%,*}" "${layout#*,}" \
                "$work/twice-$precision-${layout/,/-}$again" train.precision=$precision run.steps=10
        done
        expect_same "$(metric "$work/twice-$precision-${layout/,/-}a" loss_hex)" \
            "$(metric "$work/twice-$precision-${layout/,/-}b" loss_hex)" "two $precision runs at $layout"
    done
    for threads in 1 2 3; do
        expect_rc 0 train_on 1 1 "$work/threads-$precision-$threads" train.precision=$precision \
            run.steps=10 run.threads=$threads
        expect_same "$(metric "$work/threads-$precision-1" loss_hex)" \
            "$(metric "$work/threads-$precision-$threads" loss_hex)" "$precision, 1 and $threads threads"
    done
done
finish
