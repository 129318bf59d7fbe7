#!/usr/bin/env bash
# Tokenizer files: ids are those that the tokenizers library gave (tests/tokenizers/make.py wrote them
# down), text comes back, and a model trained on them speaks and is asked in text.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"
files=$source_dir/tests/tokenizers/files
make_config
cd "$work"

echo "ids and text of every kind"
for file in "$files"/*.json; do
    name=$(basename "$file" .json)
    expect_rc 0 "$binary" tokenizer encode --tokenizer "$file" "$files/texts.jsonl"
    cmp "$out" "$files/$name.ids" || fail "$name: other ids than the tokenizers library's"
    [ "$(wc -l <"$out")" -gt 70 ] || fail "$name: few texts"
    [ "$name" != qwen2 ] || continue # its normalizer changes texts
    "$binary" tokenizer decode --json --tokenizer "$file" <"$files/$name.ids" >decoded
    python3 - "$files/texts.jsonl" decoded <<'PY' || fail "$name: decoding did not give the texts back"
import json, sys
texts = [json.loads(line)["text"] for line in open(sys.argv[1])]
sys.exit([json.loads(line) for line in open(sys.argv[2], encoding="utf-8")] != texts)
PY
done
gpt2=$files/gpt2.json
printf 'caf\xc3\xa9 \xff\xfe\0' >odd.txt
expect_rc 0 "$binary" tokenizer encode --tokenizer "$gpt2" odd.txt
"$binary" tokenizer decode --tokenizer "$gpt2" <"$out" | cmp - odd.txt || fail "bytes that are no UTF-8 don't come back"
"$binary" tokenizer encode --tokenizer bytes --json <odd.txt >ids
expect_same "[99,97,102,195,169,32,255,254,0]" "$(cat ids)" "ids of bytes"
expect_rc 0 "$binary" tokenizer decode --tokenizer bytes --tokens 104,105
expect_text hi

echo "a SentencePiece model"
model=$files/sentencepiece.model
"$binary" tokenizer encode --tokenizer "$model" odd.txt >"$out" 2>"$err" || true
if grep -q "built without SentencePiece" "$err"; then
    echo "skipped: built without SentencePiece"
else
    expect_rc 0 "$binary" tokenizer encode --tokenizer "$model" "$files/texts.jsonl"
    cmp "$out" "$files/sentencepiece.ids" || fail "other ids than the sentencepiece library's"
    printf 'the int of caf\xc3\xa9' >plain.txt
    "$binary" tokenizer encode --tokenizer "$model" plain.txt >ids
    "$binary" tokenizer decode --tokenizer "$model" <ids | cmp - plain.txt || fail "pieces don't give the text back"
    expect_error 65 "700000" "$binary" tokenizer decode --tokenizer "$model" --tokens 700000
    make_text pieces.txt 3000
    expect_rc 0 "$binary" prepare --tokenizer "$model" --output pieces.h5 pieces.txt
    expect_rc 0 "$binary" train tiny.yaml run.dir=pieces data.train=pieces.h5 data.valid=null model.vocab_size=600 run.steps=2
    cmp pieces/tokenizer.model "$model" || fail "the run keeps no copy of the model"
    expect_rc 0 "$binary" generate pieces --prompt "while for" --count 3
    expect_text "while for"
    expect_error 64 "was trained with 'sentencepiece:" "$binary" generate pieces --prompt a --tokenizer "$gpt2"
    head -c 4000 "$model" >cut.model
    expect_error 65 "cut.model: neither a tokenizer.json nor a SentencePiece model" "$binary" tokenizer encode --tokenizer cut.model odd.txt
fi

echo "what is wrong is said"
expect_error 64 "unknown action 'encoed'" "$binary" tokenizer encoed --tokenizer bytes
expect_error 64 "--tokenizer bytes|FILE is needed" "$binary" tokenizer encode odd.txt
expect_error 64 "not from 'odd.txt'" "$binary" tokenizer decode --tokenizer bytes odd.txt
expect_error 65 "'x' is no token id" "$binary" tokenizer decode --tokenizer bytes --tokens 1,x
expect_error 65 "700000" "$binary" tokenizer decode --tokenizer "$gpt2" --tokens 700000
expect_error 74 "nowhere.json" "$binary" tokenizer encode --tokenizer nowhere.json odd.txt
expect_error 74 "nowhere.txt" "$binary" tokenizer encode --tokenizer "$gpt2" nowhere.txt
echo '{"text": 5}' >bad.jsonl
expect_error 65 "bad.jsonl:1:" "$binary" tokenizer encode --tokenizer "$gpt2" bad.jsonl
sed 's/"type":"BPE"/"type":"WordPiece"/' "$gpt2" >wordpiece.json
expect_error 65 "wordpiece.json: model 'WordPiece' is not built: make the token file with scripts/prepare_hf.py" "$binary" prepare --tokenizer wordpiece.json --output x.h5 odd.txt

echo "prepare with a tokenizer file"
make_text train.txt 6000
expect_rc 0 "$binary" prepare --tokenizer "$gpt2" --output train.h5 train.txt "$files/texts.jsonl"
expect_rc 0 "$binary" prepare --tokenizer "$gpt2" --output other.h5 train.txt
# documents one after another, each with the end of document (id 1)
h5dump -d /tokens -y -w 0 train.h5 | sed -n '/DATA {/,/}/p' | tr -dc '0-9 ' | tr -s ' ' '\n' | sed '/^$/d' >tokens
"$binary" tokenizer encode --tokenizer "$gpt2" train.txt "$files/texts.jsonl" | sed '/^$/d; s/$/,1/' | tr ',' '\n' >expected
cmp tokens expected || fail "prepare and tokenizer encode disagree"
expect_same "$(stat -c %s "$gpt2")" "$(h5ls train.h5 | sed -n 's/^tokenizer_file.*{\([0-9]*\)}/\1/p')" "copy of the tokenizer file"
expect_error 64 "no token </none> ends a document" "$binary" prepare --tokenizer "$gpt2" --eos "</none>" --output x.h5 train.txt
sed 's/<|endoftext|>/<|closing|>/g; s|</s>|</sss>|g' "$gpt2" >endless.json
expect_error 64 "nothing says which token ends a document" "$binary" prepare --tokenizer endless.json --output x.h5 train.txt
expect_rc 0 "$binary" prepare --tokenizer endless.json --eos "<|closing|>" --output x.h5 train.txt
expect_error 64 "--vocab-size 500 is below the 7" "$binary" prepare --tokenizer "$gpt2" --vocab-size 500 --output x.h5 train.txt

echo "texts that are no UTF-8"
printf 'fine' >fine.txt
count() { sed -n 's/.*"'"$1"'":\([0-9]*\).*/\1/p' "$out"; }
expect_rc 0 "$binary" prepare --tokenizer "$gpt2" --output x.h5 --json odd.txt fine.txt
expect_same "1 1" "$(count documents) $(count skipped_invalid)" "documents kept and skipped"
expect_rc 0 "$binary" prepare --tokenizer "$gpt2" --invalid-utf8 replace --output x.h5 --json odd.txt
expect_same "1 0" "$(count documents) $(count skipped_invalid)" "documents kept and skipped, replacing"
printf 'caf\xc3\xa9 \xef\xbf\xbd\xef\xbf\xbd\0' >clean.txt
expect_rc 0 "$binary" prepare --tokenizer "$gpt2" --output y.h5 clean.txt
cmp x.h5 y.h5 || fail "U+FFFD does not stand where bytes were no UTF-8"
expect_error 65 "odd.txt: byte 6 (0xff) is no UTF-8" "$binary" prepare --tokenizer "$gpt2" --invalid-utf8 error --output z.h5 odd.txt
[ ! -e z.h5 ] || fail "a refused prepare left a file"
expect_error 64 "use skip or replace or error" "$binary" prepare --tokenizer "$gpt2" --invalid-utf8 ignore --output z.h5 odd.txt
expect_rc 0 "$binary" prepare --tokenizer bytes --invalid-utf8 error --output z.h5 odd.txt

echo "a model of such text"
expect_rc 0 "$binary" prepare --tokenizer "$gpt2" --output valid.h5 fine.txt train.txt
settings=(data.train=train.h5 data.valid=valid.h5 model.vocab_size=705 run.steps=4)
expect_rc 0 ranks 2 "$binary" train tiny.yaml run.dir=run "${settings[@]}" sample.every_steps=4 sample.prompt="the int" sample.tokens=5
expect_text "--- sample at step 4 ---"
grep -q "^the int" run/samples.txt || fail "the sample does not begin with its prompt"
cmp run/tokenizer.json "$gpt2" || fail "the run keeps no copy of the tokenizer"
grep -q '"eos_token": "<|endoftext|>"' run/tokenizer_config.json || fail "the run does not say what ends a document"
for place in run run/checkpoints/00000004; do
    expect_rc 0 "$binary" generate $place --prompt "while for" --count 3
    expect_text "while for"
done
ids=$("$binary" tokenizer encode --tokenizer "$gpt2" <<<"int")
expect_rc 0 "$binary" generate run --prompt "int"$'\n' --count 3 --temperature 0 --json
cp "$out" by-text
expect_rc 0 "$binary" generate run --tokens "$ids" --count 3 --temperature 0 --json
[ "$(wc -c <"$out")" -gt 10 ] && grep -qF "$(head -c 10 by-text)" "$out" || fail "text and its ids go on differently"
printf '%s\n' '{"question": "the int", "choices": [" of", " void"], "answer": 0}' >choices.jsonl
expect_rc 0 "$binary" eval run --choices choices.jsonl
mv run/tokenizer.json kept.json
expect_error 64 "give --tokenizer FILE" "$binary" generate run --prompt a
expect_error 64 "give --tokenizer FILE" "$binary" eval run --choices choices.jsonl
expect_rc 0 "$binary" generate run --prompt a --count 2 --tokenizer kept.json
expect_rc 0 "$binary" eval run --choices choices.jsonl --tokenizer kept.json
expect_error 64 "was trained with 'bpe:" "$binary" generate run --prompt a --tokenizer "$files/tekken.json"
expect_error 65 "model.vocab_size is 300" "$binary" train tiny.yaml run.dir=narrow "${settings[@]}" model.vocab_size=300
finish
