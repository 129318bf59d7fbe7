#!/usr/bin/env bash
# generate and eval of every family: batches of prompts, the key/value cache, multiple choice.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"
make_data
make_config
cd "$work"

deepseek() { # FAMILY LINES...: a tiny config of that family
    cat <<YAML
run:        {dir: $work/$1, seed: 7, steps: 8, threads: 1, pin: false}
model:
  family: $1
  vocab_size: 257
  hidden_size: 32
  intermediate_size: 48
  moe_intermediate_size: 24
  num_hidden_layers: 2
  num_attention_heads: 4
  n_routed_experts: 4
  num_experts_per_tok: 2
  first_k_dense_replace: 1
  kv_lora_rank: 16
  qk_nope_head_dim: 8
  qk_rope_head_dim: 4
  v_head_dim: 8
  max_position_embeddings: 128
$2
train:      {sequence_length: 32, micro_batch: 2, global_batch: 8, precision: fp32}
optimizer:  {lr: 3e-3}
data:       {train: $work/train.h5, valid: $work/valid.h5}
checkpoint: {every_steps: 0}
log:        {every_steps: 0}
YAML
}
deepseek deepseek_v2 "" >deepseek_v2.yaml
deepseek deepseek_v3 "  q_lora_rank: 12
  num_nextn_predict_layers: 1" >deepseek_v3.yaml
sed "s|dir: $work/run|dir: $work/mixtral|" tiny.yaml >mixtral.yaml

printf 'int \nreturn void\n\nstruct char if else for while define include' >prompts.txt
for family in mixtral deepseek_v2 deepseek_v3; do
    echo "$family: a prompt alone and in a batch"
    expect_rc 0 "$binary" train $family.yaml run.steps=8
    for how in "--temperature 0" "--temperature 1.2 --top-k 30 --top-p 0.9 --seed 3"; do
        : >alone
        while IFS= read -r line || [ -n "$line" ]; do
            expect_rc 0 "$binary" generate $family --prompt "$line" --count 50 --json $how
            cat "$out" >>alone
        done <prompts.txt
        expect_same 4 "$(wc -l <alone)" "lines of four prompts"
        expect_rc 0 "$binary" generate $family --prompts prompts.txt --count 50 --json $how
        cmp -s alone "$out" || fail "$family: a batch differs from its prompts alone ($how)"
        expect_rc 0 "$binary" generate $family --prompt "int " --prompt "return void" --prompt "" \
            --prompt "struct char if else for while define include" --count 50 --json $how
        cmp -s alone "$out" || fail "$family: --prompt four times differs from --prompts ($how)"
    done
    expect_rc 0 ranks 2 "$binary" generate $family --prompts prompts.txt --count 50 --json \
        --temperature 0 parallel.ep=2
    cp "$out" two
    expect_rc 0 "$binary" generate $family --prompts prompts.txt --count 50 --json --temperature 0
    cmp -s two "$out" || fail "$family: two ranks differ from one"
    expect_rc 0 "$binary" generate $family --prompt "int " --count 90 --temperature 0 \
        train.sequence_length=100
    expect_rc 0 "$binary" generate $family --prompt "int " --prompt "void" --count 5
    expect_text "--- 2 of 2 ---"

    echo "$family: multiple choice"
    cat >choices.jsonl <<'JSON'
{"question": "int the of ", "choices": ["return", "#@~^`|"], "answer": 0}

{"question": "", "choices": ["#@", "while define", "%%%%%%"], "answer": 1}
{"question": [105, 110, 116, 32], "choices": [[1, 2, 3], [118, 111, 105, 100, 32]], "answer": 0}
JSON
    expect_rc 0 "$binary" eval $family --choices choices.jsonl --json
    cp "$out" one
    python3 - one <<'PY' || fail "$family: eval --choices is not what it should be: $(cat one)"
import json, sys
r = json.load(open(sys.argv[1]))
assert r["questions"] == 3
assert r["correct_normalised"] == 2 and abs(r["accuracy_normalised"] - 2 / 3) < 1e-12, r
assert r["accuracy"] == r["correct"] / 3
PY
    expect_rc 0 ranks 2 "$binary" eval $family --choices choices.jsonl --json parallel.ep=2
    cmp -s one "$out" || fail "$family: two ranks answer otherwise than one"
    expect_rc 0 "$binary" eval $family --choices choices.jsonl
    expect_text "over 3 questions of choices.jsonl"
done

echo "kernels of latent attention"
expect_rc 0 "$binary" bench deepseek_v3.yaml --kernels
expect_text "attention_backward"

echo "bad questions and prompts: one line, with the number of the line"
bad_choice() { # FRAGMENT LINE
    printf '%s\n%s\n' '{"question": "a", "choices": ["b", "c"], "answer": 1}' "$2" >bad.jsonl
    expect_error 65 "bad.jsonl:2: $1" "$binary" eval mixtral --choices bad.jsonl
}
bad_choice "not JSON" '{"question": "a"'
bad_choice "needs \"question\"" '{"question": "a", "choices": ["b"], "answer": 0}'
bad_choice "needs \"question\"" '{"choices": ["b", "c"], "answer": 0}'
bad_choice "needs \"question\"" '["a"]'
bad_choice '"answer" must be a number from 0 to 1' '{"question": "a", "choices": ["b", "c"], "answer": 2}'
bad_choice '"answer" must be a number from 0 to 1' '{"question": "a", "choices": ["b", "c"]}'
bad_choice "choice 1 is empty" '{"question": "a", "choices": ["b", ""], "answer": 0}'
bad_choice "choice 0 is neither" '{"question": "a", "choices": [7, "b"], "answer": 0}'
bad_choice "the question has no tokens" '{"question": [], "choices": [[1], [2]], "answer": 0}'
bad_choice "token 1 of choice 1 is no id from 0 to 256" '{"question": [1], "choices": [[1], [2, 257]], "answer": 0}'
bad_choice "choice 0 has 33 tokens, more than train.sequence_length 32" \
    '{"question": "a", "choices": ["123456789012345678901234567890123", "b"], "answer": 0}'
: >empty.jsonl
expect_error 65 "empty.jsonl: no questions" "$binary" eval mixtral --choices empty.jsonl
expect_error 74 "nowhere.jsonl: cannot open" "$binary" eval mixtral --choices nowhere.jsonl
expect_error 64 "not both" "$binary" eval mixtral --choices choices.jsonl --data valid.h5
expect_error 65 "empty.jsonl: no prompts" "$binary" generate mixtral --prompts empty.jsonl
expect_error 74 "nowhere.txt" "$binary" generate mixtral --prompts nowhere.txt
expect_error 64 "--prompt" "$binary" generate mixtral --prompt a --prompts prompts.txt
expect_error 64 "max_position_embeddings" "$binary" generate deepseek_v2 --prompt a train.sequence_length=129

echo "a run without config.yaml is what its newest checkpoint says; a folder without a checkpoint is none"
cp -r mixtral bare
rm bare/config.yaml
expect_rc 0 "$binary" generate mixtral --prompt "int " --count 4 --temperature 0
cp "$out" wanted
expect_rc 0 ranks 2 "$binary" generate bare --prompt "int " --count 4 --temperature 0
tr -d '\r' <"$out" | cmp - wanted || fail "another text without config.yaml"
expect_rc 0 "$binary" eval bare
mkdir -p empty/checkpoints nothing
for folder in empty nothing; do
    expect_error 65 "$folder: no checkpoint here" "$binary" eval $folder
    expect_error 65 "$folder: no checkpoint here" ranks 2 "$binary" generate $folder --prompt a
done
for manifest in bare/checkpoints/*/manifest.json; do echo >"$manifest"; done
expect_error 65 "bare: no checkpoint here can be read; the newest: bare/checkpoints/" "$binary" eval bare

echo "a file none of whose labels counts"
python3 - <<'PY'
import json
for name, mask in ("unmasked", 1), ("masked", 0):
    with open(name + ".jsonl", "w") as out:
        print(json.dumps({"tokens": list(range(100)), "loss_mask": [mask] * 100}), file=out)
PY
for name in masked unmasked; do
    expect_rc 0 "$binary" prepare --tokenizer none --vocab-size 257 --output $name.h5 $name.jsonl
done
expect_error 65 "masked.h5: none of its labels counts" "$binary" eval mixtral --data masked.h5
expect_error 65 "masked.h5: none of its labels counts" ranks 2 "$binary" eval mixtral --data masked.h5 parallel.ep=2
expect_rc 0 "$binary" eval mixtral --data unmasked.h5
expect_text "over 96 labels"
expect_rc 0 "$binary" train mixtral.yaml run.dir=no-labels run.steps=1 data.valid=masked.h5 eval.every_steps=1
expect_same null "$(metric no-labels valid_loss)" "validation loss on a file without labels"

echo "text needs the bytes tokenizer, which the checkpoint names"
printf '%s\n' '{"question": [1], "choices": [[2], [3]], "answer": 0}' >ids.jsonl
text_refused() { # PLACE: as it should; and ids are taken
    expect_error 64 "use --tokens" "$binary" generate "$1" --prompt "int "
    expect_error 64 "use --tokens" ranks 2 "$binary" generate "$1" --prompts prompts.txt parallel.ep=2
    expect_error 64 "arrays of token ids" "$binary" eval "$1" --choices choices.jsonl
    expect_rc 0 "$binary" generate "$1" --tokens 1,2 --count 2
    expect_rc 0 "$binary" eval "$1" --choices ids.jsonl
}
expect_rc 0 "$binary" train mixtral.yaml run.dir=ids run.steps=2 data.train=unmasked.h5 data.valid=null
text_refused ids # 257 ids, but of no tokenizer
text_refused ids/checkpoints/00000002
expect_rc 0 "$binary" train mixtral.yaml run.dir=wide run.steps=2 model.vocab_size=300
expect_rc 0 "$binary" generate wide --prompt "int " --count 2
expect_rc 0 "$binary" eval wide --choices choices.jsonl
# An import has no tokenizer's name: its vocabulary speaks.
for place in ids wide; do
    expect_rc 0 "$binary" export $place/checkpoints/00000002 $place-hf
    expect_rc 0 "$binary" import $place-hf $place-imported
done
text_refused wide-imported
expect_rc 0 "$binary" generate ids-imported --prompt "int " --count 2
expect_error 64 "sample.every_steps: samples are text" "$binary" train mixtral.yaml run.dir=refused \
    run.steps=2 data.train=unmasked.h5 sample.every_steps=1
expect_error 64 "sample.every_steps: samples are text" ranks 2 "$binary" train mixtral.yaml run.dir=ids --fresh \
    run.steps=2 data.train=unmasked.h5 sample.every_steps=1 parallel.ep=2
[ ! -e refused ] && [ ! -e ids.old-1 ] || fail "a run refused for its samples made or moved a folder"
finish
