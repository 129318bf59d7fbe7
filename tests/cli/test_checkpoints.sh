#!/usr/bin/env bash
# ckpt ls, verify, diff, export-h5 and rm; what h5dump reads; checkpoints of every kind that was
# ever written.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"
kept=$source_dir/tests/golden/checkpoints
make_data
make_config deepseek_v3
common="train.precision=bf16 checkpoint.every_steps=2 checkpoint.keep_last=9"
run=$work/run-2
expect_rc 0 train_on 2 2 "$run" $common run.steps=6
newest=$run/checkpoints/00000006

echo "ls and verify"
expect_rc 0 "$binary" ckpt ls "$run"
expect_same "$(wc -l <"$out")" 3 "checkpoints listed"
for deep in "" --deep; do
    expect_rc 0 "$binary" ckpt verify "$run" $deep
    expect_same "$(grep -c ': whole: ' "$out")" 3 "whole checkpoints"
done
expect_rc 0 "$binary" ckpt verify "$newest" --deep --json
python3 - "$out" <<'PY' || fail "ckpt verify --json: $(cat "$out")"
import json, sys
[one] = json.load(open(sys.argv[1]))
sys.exit(not (one["valid"] and one["deep"] and one["problems"] == [] and one["step"] == 6 and one["tensors"] > 100))
PY
expect_error 74 "no such folder" "$binary" ckpt verify "$work/nothing"
expect_error 65 "no checkpoint here" "$binary" ckpt diff "$run" "$run/checkpoints"

echo "diff"
expect_rc 0 "$binary" ckpt diff "$run" "$newest"
expect_text "0 tensors differ"
expect_rc 1 "$binary" ckpt diff "$run/checkpoints/00000004" "$run" --json
python3 - "$out" <<'PY' || fail "ckpt diff --json"
import json, sys
report = json.load(open(sys.argv[1]))
gate = [t for t in report["tensors"] if t["name"] == "master/model.layers.1.mlp.gate.weight"][0]
sys.exit(not (report["same"] == 0 and report["different"] == len(report["tensors"]) and gate["a"] == gate["b"] == "float32 [8, 32]"
              and gate["first"] == [0, 0] and gate["first_a"] != gate["first_b"] and 0 < gate["relative"] < 1
              and gate["most"] >= abs(gate["first_a"] - gate["first_b"])))
PY
# The values are those that HDF5 reads.
expect_rc 1 "$binary" ckpt diff "$run/checkpoints/00000004" "$run"
for i in 1 2; do
    at=$([ $i = 1 ] && echo "$run/checkpoints/00000004" || echo "$newest")
    value=$(h5dump -m "%.9g" -d '/master/model.norm.weight[0;;1;]' "$at/model.h5" | sed -n 's/^ *(0): //p' | head -n 1)
    said=$(grep '^master/model.norm.weight: ' "$out" | sed 's/.*first at \[0\]: \([^ ]*\) and \([^;]*\);.*/\'$i'/')
    expect_same "$value" "$said" "value $i that diff prints"
done

echo "export-h5"
expect_rc 0 "$binary" ckpt export-h5 "$run" "$work/all.h5" --json
expect_rc 0 "$binary" ckpt export-h5 "$newest" "$work/weights.h5" --weights
expect_error 64 "is there already" "$binary" ckpt export-h5 "$newest" "$work/all.h5"
expect_same "$(ls -A "$work" | grep -c '^\.tmp')" 0 "files left by export-h5"
h5dump -n "$work/weights.h5" | grep -q "master/" && fail "--weights exports masters"
for tensor in model.norm.weight lm_head.weight master/lm_head.weight \
    moment2/model.layers.1.mlp.experts.5.up_proj.weight model.layers.1.mlp.gate.e_score_correction_bias; do
    h5dump -y -d "/$tensor" "$newest/model.h5" | sed -n '/DATA {/,/}/p' >"$work/seen"
    h5dump -y -d "/$tensor" "$work/all.h5" | sed -n '/DATA {/,/}/p' >"$work/exported"
    cmp -s "$work/seen" "$work/exported" && [ -s "$work/seen" ] || fail "h5dump of $tensor: view and export differ"
done

echo "columns divided over ranks: HDF5 and the exporter see the matrices whole"
expect_rc 0 "$binary" ckpt export-h5 "$kept/v2" "$work/columns.h5"
for tensor in $(h5dump -n "$work/columns.h5" | sed -n 's/^ *dataset *\///p' | grep "proj\|w[123]"); do
    h5dump -y -d "/$tensor" "$kept/v2/model.h5" | sed -n '/DATA {/,/}/p' >"$work/seen"
    h5dump -y -d "/$tensor" "$work/columns.h5" | sed -n '/DATA {/,/}/p' >"$work/exported"
    cmp -s "$work/seen" "$work/exported" && [ -s "$work/seen" ] || fail "h5dump of $tensor: view and export differ"
done
expect_error 64 "parallel.tp 2 does not divide model.num_key_value_heads 1" "$binary" train \
    "$kept/v1_without_tensor_hashes" parallel.ep=1 parallel.tp=2 run.dir="$work/none" data.train="$kept/tokens.h5"

echo "damage is named, by tensor"
cp -r "$run" "$work/hurt"
python3 - "$work/hurt/checkpoints/00000006" <<'PY'
import json, sys
manifest = json.load(open(sys.argv[1] + "/manifest.json"))
tensor = [t for t in manifest["tensors"] if t["name"] == "lm_head.weight"][0]
file, _, _, offset = tensor["pieces"][0]
with open(sys.argv[1] + "/" + manifest["files"][file]["name"], "r+b") as f:
    f.seek(offset + 1)
    byte = f.read(1)[0]
    f.seek(offset + 1)
    f.write(bytes([byte ^ 4]))
PY
expect_rc 65 "$binary" ckpt verify "$work/hurt"
expect_text "damaged in block 0 (bytes from 0): tensors lm_head.weight"
expect_text "1 of 3 checkpoints damaged"
expect_rc 65 "$binary" ckpt diff "$work/hurt/checkpoints/00000006" "$run"
expect_text "lm_head.weight"
expect_rc 65 "$binary" ckpt export-h5 "$work/hurt/checkpoints/00000006" "$work/hurt.h5"
[ ! -e "$work/hurt.h5" ] || fail "a damaged checkpoint was exported"
expect_rc 0 train_on 1 1 "$work/hurt" $common run.steps=6
expect_text "resuming at step 4"
expect_rc 0 "$binary" ckpt ls "$work/hurt"
expect_text "step        6  set aside, a later save has its place: $work/hurt/checkpoints/00000006.replaced-1"
expect_rc 0 "$binary" ckpt ls "$work/hurt" --json
python3 -c 'import json, sys
all = json.load(open(sys.argv[1]))
sys.exit([x["step"] for x in all if x["valid"]] != [6, 4, 2] or [x["step"] for x in all if x.get("replaced")] != [6])' "$out" ||
    fail "ckpt ls --json with one set aside: $(cat "$out")"

echo "one that is gone when it is looked at, as a link to nothing is"
cp -r "$run" "$work/gone"
rm -r "$work/gone/checkpoints/00000006"
ln -s nowhere "$work/gone/checkpoints/00000006"
expect_rc 0 "$binary" ckpt ls "$work/gone"
expect_same "$(wc -l <"$out")" 2 "checkpoints listed beside one that is gone"
expect_rc 0 "$binary" ckpt verify "$work/gone"
expect_same "$(grep -c ': whole: ' "$out")" 2 "whole checkpoints beside one that is gone"
expect_rc 0 train_on 1 1 "$work/gone" $common run.steps=5
expect_text "resuming at step 4"

echo "rm"
expect_error 64 "1 of them are there" "$binary" ckpt rm "$run" 2 5
expect_error 64 "is no step" "$binary" ckpt rm "$run" two
expect_error 64 "name steps" "$binary" ckpt rm "$run"
expect_rc 0 "$binary" ckpt rm "$run" 2
expect_error 64 "no whole checkpoint would stay" "$binary" ckpt rm "$run" 4 6
truncate -s 100 "$newest/model.h5"
expect_rc 0 "$binary" ckpt rm "$run" --damaged
expect_same "$(ls -A "$run/checkpoints" | tr '\n' ' ')" "00000004 LATEST " "checkpoints after rm"
expect_rc 0 "$binary" ckpt rm "$run" 4 --force
expect_same "$(ls -A "$run/checkpoints" | tr '\n' ' ')" "LATEST " "checkpoints after rm --force"

echo "bench --checkpoint"
expect_rc 0 ranks 2 "$binary" bench "$work/tiny.yaml" --checkpoint --steps 1 --json parallel.ep=2 \
    train.precision=bf16 --load "$work/hurt/checkpoints/00000004"
python3 - "$out" <<'PY' || fail "bench --checkpoint: $(cat "$out")"
import json, sys
figures = json.load(open(sys.argv[1]))
rates = [figures[name + "_gb_per_s"] for name in ("raw_write", "written", "save", "raw_read", "load", "load_other")]
shares = [figures[name] for name in ("written_of_raw_write", "save_of_raw_write_and_read", "load_of_raw_read", "other_over_load")]
sys.exit(not (all(x > 0 for x in rates + shares) and figures["bytes"] > figures["loaded_bytes"] > 0
              and figures["written_gb_per_s"] > figures["save_gb_per_s"]))
PY
expect_error 64 "bench: --checkpoint takes" "$binary" bench "$work/tiny.yaml" --checkpoint --steps 101
[ ! -e "$work/run.bench" ] || fail "bench --checkpoint leaves its folder"
mkdir "$work/run.bench"
expect_error 64 "is there already" "$binary" bench "$work/tiny.yaml" --checkpoint --steps 1

echo "checkpoints of every kind that was ever written"
while read -r name loss tensors; do
    expect_rc 0 "$binary" ckpt verify "$kept/$name" --deep
    expect_text "$tensors tensors"
    expect_rc 0 "$binary" eval "$kept/$name" --data "$kept/tokens.h5" --json
    close_to 1e-4 "$loss" "$(sed -n 's/.*"loss":\([^,]*\),.*/\1/p' "$out")" "$name: loss"
    mkdir -p "$work/old-$name/checkpoints"
    cp -r "$kept/$name" "$work/old-$name/checkpoints/00000004"
    for n in 1 2; do
        expect_rc 0 ranks $n "$binary" train "$kept/$name" "run.dir=$work/old-$name" "run.steps=$((4 + n))" \
            "parallel.ep=$n" parallel.tp=1 "data.train=$kept/tokens.h5"
        expect_text "resuming at step $((3 + n))"
    done
done <<'TABLE'
v1_without_tensor_hashes 3.45271718 64
v1 3.45185144 171
v1_columns_by_row 3.45290137 64
v2 3.45290137 64
TABLE
# The same state, its columns written either way.
expect_rc 0 "$binary" ckpt diff "$kept/v1_columns_by_row" "$kept/v2"
expect_text "0 tensors differ"
finish
