#!/usr/bin/env bash
# A checkpoint of any layout (ranks, ep, tp, zero) loads on any other: weights, masters and moments bit for bit,
# the same place in the data, and the same loss of the next step. With SWITCHYARD_FULL=1 all 64
# ordered pairs of 8 layouts, else each to one other.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"
resave=$(dirname "$binary")/tests/resave
layouts=("1" "2 zero=2" "2 ep=2" "2 tp=2" "3 ep=3" "4 tp=2" "4 ep=2 zero=3" "4 ep=4")
make_data
make_config
sed -i -e 's/num_local_experts: 4/num_local_experts: 12/' \
    -e 's/micro_batch: 2, global_batch: 8/micro_batch: 1, global_batch: 12/' "$work/tiny.yaml"
common="optimizer.ema=0.9 schedule.kind=cosine"

# keys LAYOUT: parallel.ep=2 of "4 ep=2".
keys() {
    local key
    for key in ${1#* }; do
        [ "$key" = "$1" ] || echo "parallel.$key"
    done
}

# train_in LAYOUT DIR ARGUMENTS...
train_in() {
    local layout=$1 dir=$2
    shift 2
    ranks "${layout%% *}" "$binary" train "$work/tiny.yaml" "run.dir=$dir" $(keys "$layout") $common "$@"
}

folder() {
    echo "$work/at-${1//[ =]/-}"
}

# reshard FROM TO: sets $loss to that of the step after.
reshard() {
    local from dir=$work/moved
    from=$(folder "$1")
    rm -rf "$dir"
    expect_rc 0 ranks "${2%% *}" "$resave" "$work/tiny.yaml" "$from/checkpoints/00000003" "$dir/checkpoints" \
        $(keys "$2") $common
    expect_rc 0 "$binary" ckpt diff "$from" "$dir"
    grep -q '^0 tensors differ' "$out" || { fail "$1 to $2: tensors differ"; show_last; }
    expect_same "$(position "$from")" "$(position "$dir")" "$1 to $2: position in the data"
    expect_rc 0 train_in "$2" "$dir" run.steps=4
    expect_text "resuming at step 3"
    loss=$(metric "$dir" loss)
}

position() {
    python3 -c 'import json, sys; print(json.load(open(sys.argv[1]))["position"])' \
        "$1/checkpoints/00000003/state.json"
}

pairs=0
for i in "${!layouts[@]}"; do
    from=${layouts[$i]}
    dir=$(folder "$from")
    expect_rc 0 train_in "$from" "$dir" run.steps=3
    cp -r "$dir" "$dir-on"
    expect_rc 0 train_in "$from" "$dir-on" run.steps=4
    stays=$(metric "$dir-on" loss | tail -n 1)
    for j in "${!layouts[@]}"; do
        [ "$full" = 1 ] || [ "$j" = $(((i + 3) % 8)) ] || continue
        reshard "$from" "${layouts[$j]}"
        close_to 1e-6 "$stays" "$loss" "$from to ${layouts[$j]}: loss of the next step"
        pairs=$((pairs + 1))
    done
done
echo "$pairs pairs of layouts: every tensor the same, the next loss within 1e-6"
finish
