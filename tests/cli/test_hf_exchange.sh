#!/usr/bin/env bash
# Weights that transformers saved go in, train as PyTorch trains them, and come out bit by bit.
# tests/golden/make_hf.py made hf_tiny and says what is in it.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"
tiny=$source_dir/tests/golden/hf_tiny

# expected NAME CURVE: its values.
expected() {
    python3 -c 'import json, sys; print(*json.load(open(sys.argv[1]))[sys.argv[2]])' \
        "$tiny/$1/expected.json" "$2"
}

# same_tensors A B: two folders of safetensors hold the same names, types, shapes and bytes.
same_tensors() {
    python3 - "$1" "$2" <<'PY' || fail "tensors of $1 and $2 differ"
import json, pathlib, sys

def tensors(folder):
    found = {}
    for path in pathlib.Path(folder).glob("*.safetensors"):
        data = path.read_bytes()
        start = 8 + int.from_bytes(data[:8], "little")
        for name, t in json.loads(data[8:start]).items():
            if name != "__metadata__":
                begin, end = t["data_offsets"]
                found[name] = t["dtype"], t["shape"], data[start + begin:start + end]
    return found

a, b = map(tensors, sys.argv[1:])
bad = [name for name in sorted(a.keys() | b.keys()) if a.get(name) != b.get(name)]
print(*bad, sep="\n")
sys.exit(bool(bad) or not a)
PY
}

# train_from NAME RANKS EP: twenty steps from the imported weights.
train_from() {
    local name=$1 dir=$work/run-$1-$2
    cp "$tiny/$name/train.yaml" "$work/$name.yaml"
    expect_rc 0 ranks "$2" "$binary" train "$work/$name.yaml" "model.hf_config=$tiny/$name" \
        "run.dir=$dir" "data.train=$work/tokens.h5" "checkpoint.init_from=$work/$name.ckpt" \
        "parallel.ep=$3"
    close_to 1e-4 "$(expected "$name" loss)" "$(metric "$dir" loss | tr '\n' ' ')" \
        "losses of $name on $2 ranks, and PyTorch's"
}

expect_rc 0 "$binary" prepare --tokenizer none --vocab-size 40 --output "$work/tokens.h5" \
    "$tiny/tokens.jsonl"

for name in mixtral deepseek_v2 deepseek_v3 deepseek_v3_mtp; do
    echo "$name: in, out, and both trained"
    expect_rc 0 "$binary" import "$tiny/$name" "$work/$name.ckpt"
    expect_rc 0 "$binary" export "$work/$name.ckpt" "$work/exports/$name"
    same_tensors "$tiny/$name" "$work/exports/$name"
    expect_rc 0 "$binary" export "$work/$name.ckpt" "$work/exports/$name-bf16" --dtype bf16
    train_from "$name" 1 1
    train_from "$name" 2 2
    expect_same "$(metric "$work/run-$name-1" loss_hex | head -n 1)" \
        "$(metric "$work/run-$name-2" loss_hex | head -n 1)" "first loss of $name on 1 and 2 ranks"
    expect_rc 0 "$binary" export "$work/run-$name-1" "$work/trained-$name" --dtype f32
    expect_rc 0 "$binary" import "$work/trained-$name" "$work/trained-$name.ckpt"
done
close_to 1e-4 "$(expected deepseek_v3_mtp mtp_loss)" \
    "$(metric "$work/run-deepseek_v3_mtp-1" mtp_loss | tr '\n' ' ')" "losses of the prediction module"

echo "what comes out is what transformers loaded when the hashes were made"
(cd "$work/exports" && sha256sum --quiet -c "$tiny/exports.sha256") || fail "exported files differ"

echo "config.json of both generations, fused and sharded weights"
for name in mixtral deepseek_v2 deepseek_v3; do
    cp -r "$tiny/$name" "$work/$name-old"
    mv "$work/$name-old/config_old.json" "$work/$name-old/config.json"
    expect_rc 0 "$binary" import "$work/$name-old" "$work/$name-old.ckpt"
    expect_rc 0 "$binary" export "$work/$name-old.ckpt" "$work/again-$name"
    diff -r -I pad_token_id "$work/exports/$name" "$work/again-$name" || fail "$name depends on its config.json"
done
for form in fused sharded; do
    expect_rc 0 ranks 2 "$binary" import "$tiny/mixtral_$form" "$work/$form.ckpt"
    expect_rc 0 "$binary" export "$work/$form.ckpt" "$work/again-$form"
    diff -r "$work/exports/mixtral" "$work/again-$form" || fail "mixtral_$form is another mixtral"
done
finish
