#!/usr/bin/env bash
# checkpoint.init_from takes weights and biases, starts step, data and optimizer afresh; another vocabulary is
# refused unless asked for.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"
make_data
make_config deepseek_v3

expect_rc 0 train_on 2 2 "$work/first" run.steps=5 router.bias_update_speed=0.01
expect_rc 0 train_on 1 1 "$work/plain" run.steps=1 model.num_nextn_predict_layers=0
expect_rc 0 train_on 1 1 "$work/second" run.steps=1 checkpoint.init_from="$work/first" router.bias_update_speed=0 \
    optimizer.lr=0
expect_rc 0 "$binary" eval "$work/first" --data "$work/valid.h5" --json
sed -n 's/.*"loss_hex":"\([^"]*\).*/\1/p' "$out" >"$work/a"
expect_rc 0 "$binary" eval "$work/second" --data "$work/valid.h5" --json
sed -n 's/.*"loss_hex":"\([^"]*\).*/\1/p' "$out" >"$work/b"
expect_same "$(cat "$work/a")" "$(cat "$work/b")" "loss of the weights taken over, router biases included"
expect_same "$(metric "$work/second" step)" 1 "steps start from 1"

expect_rc 0 train_on 1 1 "$work/other" run.steps=1 checkpoint.init_from="$work/first" model.rope_theta=77
expect_text "other than there: model.rope_theta 1e+04 -> 77"
expect_error 65 "set model.num_nextn_predict_layers: 0" train_on 1 1 "$work/deeper" run.steps=1 \
    checkpoint.init_from="$work/plain" model.num_nextn_predict_layers=1

echo "more than the model has"
refused() { # DIR key=value ...: of the run in DIR nothing changes
    local dir=$1 before
    shift
    before=$(ls "$dir/checkpoints")
    expect_error 65 "has $more tensors that the model has not, the first $named: a checkpoint of another model" \
        train_on 2 2 "$dir" run.steps=7 checkpoint.keep_last=1 "$@"
    expect_error 65 "has $more tensors that the model has not, the first $named: a checkpoint of another model" \
        train_on 1 1 "$work/cut" run.steps=1 checkpoint.init_from="$dir" "$@"
    expect_same "$before" "$(ls "$dir/checkpoints")" "checkpoints after a refusal"
    rm -rf "$work/cut"
}
count() { # DIR FRAGMENT: tensors of its checkpoint with that at their beginning
    python3 -c 'import glob, json, sys
names = [t["name"] for t in json.load(open(glob.glob(sys.argv[1] + "/checkpoints/*/manifest.json")[0]))["tensors"]]
print(sum(n.startswith(sys.argv[2]) for n in names))' "$@"
}
named=model.layers.3.eh_proj.weight more=$(count "$work/first" model.layers.3.)
refused "$work/first" model.num_nextn_predict_layers=0
expect_error 65 "has $more tensors" "$binary" eval "$work/first" model.num_nextn_predict_layers=0
named=model.layers.2.input_layernorm.weight more=$(count "$work/plain" model.layers.2.)
expect_same "$more" 38 "tensors of a layer"
refused "$work/plain" model.num_nextn_predict_layers=0 model.num_hidden_layers=2
# What belongs to a weight, or to another optimizer, is not of another model.
expect_rc 0 train_on 1 1 "$work/rich" run.steps=1 optimizer.ema=0.9 optimizer.moments=bf16 train.precision=bf16
expect_rc 0 train_on 2 2 "$work/rich" run.steps=2 optimizer.freeze="*embed*" optimizer.name=muon

echo "another vocabulary"
grown=$((257 + 70))
expect_error 65 "checkpoint.resize_vocab: true keeps the rows in common" train_on 1 1 "$work/grown" run.steps=1 \
    checkpoint.init_from="$work/first" model.vocab_size=$grown
resized() { # RANKS,EP FROM TO VOCAB: one step that changes nothing
    expect_rc 0 train_on "${1%,*}" "${1#*,}" "$3" run.steps=1 checkpoint.init_from="$2" model.vocab_size="$4" \
        checkpoint.resize_vocab=true optimizer.lr=0 router.bias_update_speed=0
}
for layout in 1,1 2,2; do
    dir=$work/resized-${layout/,/-}
    resized "$layout" "$work/first" "$dir" $grown
    h5dump -d 'model.embed_tokens.weight[0,0;;256,3;]' "$dir/checkpoints/00000001/model.h5" | grep '^ *(' \
        >"$work/rows-${layout/,/-}"
    resized "$layout" "$dir" "$dir-back" 257
    expect_rc 0 "$binary" eval "$dir-back" --data "$work/valid.h5" --json
    expect_same "$(cat "$work/a")" "$(sed -n 's/.*"loss_hex":"\([^"]*\).*/\1/p' "$out")" "loss, grown and shrunk at $layout"
done
h5dump -d 'model.embed_tokens.weight[0,0;;256,3;]' "$work/first/checkpoints/00000005/model.h5" | grep '^ *(' >"$work/rows"
for layout in 1-1 2-2; do
    expect_same "$(cat "$work/rows")" "$(cat "$work/rows-$layout")" "rows in common at $layout"
done
expect_same "$(metric "$work/resized-1-1" loss_hex)" "$(metric "$work/resized-2-2" loss_hex)" \
    "loss with fresh rows at both layouts"
finish
