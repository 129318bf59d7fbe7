#!/usr/bin/env bash
# Mixtures, packing and fill-in-the-middle by the program: the same data on every layout and after every stop, what a
# resume with other data says and does, packed loss, filled middles, and what is refused.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"
cd "$work"

python3 - <<'PY'
import json
words = "the int of return void struct char if else for while define include static const".split()
state = 1
def text(count):
    global state
    parts = []
    for _ in range(count):
        state = (state * 6364136223846793005 + 1442695040888963407) % 2**64
        parts.append(words[(state >> 33) % len(words)] + ("\n" if (state >> 40) % 7 == 0 else " "))
    return "".join(parts)
for name, documents in (("a", 120), ("b", 40), ("c", 8)):
    with open(name + ".jsonl", "w") as f:
        for i in range(documents):
            f.write(json.dumps({"text": text(5 + i * 7 % 40)}) + "\n")
with open("other.jsonl", "w") as f:
    for i in range(40):
        f.write(json.dumps({"text": text(30)}) + "\n")
# Samples of their own, with prompts whose labels do not count, and the same ones a file each.
samples = []
for i, tokens in enumerate((30, 9, 3, 2, 40)):
    samples.append({"tokens": [(7 * i + 3 * j * j) % 250 for j in range(tokens)],
                    "loss_mask": [1 if j >= min(i, 1) else 0 for j in range(tokens)]})
for i, sample in enumerate(samples):
    open(f"one{i}.jsonl", "w").write(json.dumps(sample) + "\n")
open("packed.jsonl", "w").write("".join(json.dumps(s) + "\n" for s in samples))
PY
for name in a b c other; do
    "$binary" prepare --tokenizer bytes --output $name.h5 $name.jsonl >prepared
done
for name in packed one0 one1 one2 one3 one4; do
    "$binary" prepare --tokenizer none --vocab-size 257 --output $name.h5 $name.jsonl >prepared
done
make_config deepseek_v3
mix='data.train=[{path: a.h5, weight: 0.6, fim: 0.5}, {path: b.h5, weight: 0.3}, {path: c.h5, weight: 0.1, epochs: 3}]'
fim="model.vocab_size=260 data.fim.prefix=257 data.fim.middle=258 data.fim.suffix=259"

# train RANKS DIR [key=value ...]
train() {
    local count=$1 dir=$2
    shift 2
    # shellcheck disable=SC2086
    ranks "$count" "$binary" train tiny.yaml "run.dir=$dir" data.valid=null $fim "$@"
}

# place DIR STEP: where the data is, and what of each source was read.
place() {
    python3 - "$1/checkpoints/$(printf %08d "$2")/state.json" <<'PY'
import json, sys
state = json.load(open(sys.argv[1]))
print(state["position"], *(f"{s['path']}:{s['now']['epoch']}:{s['now']['done']}:{s['now']['tokens']}"
                           for s in state["data"]["sources"]))
PY
}
tokens_read() {
    place "$1" "$2" | tr ' ' '\n' | sed -n 's/.*:\([0-9]*\)$/\1/p' | paste -sd+ | bc
}

echo "the same batches on every layout, and after every stop"
expect_rc 0 train 1 straight "$mix" run.steps=7
expect_text "a.h5: 50 % of its documents with the middle to fill in (tokens 257 259 258)"
for stop in 1,2 2,4 4,7; do
    expect_rc 0 train "${stop%,*}" stopped "$mix" "run.steps=${stop#*,}"
done
expect_same "$(place straight 7)" "$(place stopped 7)" "the data after 7 steps"
close_to 1e-4 "$(metric straight loss)" "$(metric stopped loss)" "losses of a run that was stopped and moved"
expect_same "$(tokens_read straight 7)" $((7 * 8 * 32)) "tokens read"
grep -q '"data_wait":' straight/metrics.jsonl || fail "no data_wait in phase_ms"

echo "other batches, another length, another source"
other='data.train=[{path: b.h5, weight: 1}, {path: other.h5, weight: 1}, {path: a.h5, weight: 2}]'
expect_rc 0 train 2 stopped "$other" run.steps=10 train.global_batch=4 train.sequence_length=48
expect_text "other.h5 starts at its beginning"
expect_text "c.h5 is left in epoch"
expect_text "epochs under way are read on as they were begun"
before=$(place straight 7) after=$(place stopped 10)
python3 - "$before" "$after" <<'PY' || fail "'$before' does not go on as '$after'"
import sys
places = [{p.split(":")[0]: int(p.split(":")[3]) for p in text.split()[1:]} for text in sys.argv[1:]]
read = {name: places[1][name] - places[0].get(name, 0) for name in places[1]}
print(read)
sys.exit(not (sum(read.values()) == 3 * 4 * 48 and all(v > 0 for v in read.values())))
PY
mv other.h5 renamed.h5
expect_rc 0 train 1 stopped "${other//other.h5/renamed.h5}" run.steps=11 train.global_batch=4 train.sequence_length=48
! grep -q "starts at its beginning" "$out" || fail "a renamed file is taken for a new one"
cp a.h5 kept.h5
cp b.h5 copy.h5
"$binary" prepare --tokenizer bytes --output a.h5 a.jsonl b.jsonl >prepared
expect_rc 0 train 1 stopped "data.train=[{path: copy.h5}, {path: b.h5}, {path: renamed.h5}, {path: a.h5, weight: 2}]" run.steps=12 \
    train.global_batch=4 train.sequence_length=48
expect_text "; copy.h5 starts at its beginning"
! grep -q "; b.h5 starts" "$out" || fail "b.h5 has lost its place to a copy of it"
expect_text "a.h5: ITS CONTENTS CHANGED since the checkpoint"
grep -q "^switchyard: warning: other settings" "$err" || fail "no warning on stderr"
mv kept.h5 a.h5

echo "a file moves, and another takes its name"
mv b.h5 moved.h5
"$binary" prepare --tokenizer bytes --output b.h5 b.jsonl a.jsonl b.jsonl >prepared
expect_rc 0 train 1 stopped "data.train=[{path: b.h5}, {path: moved.h5}]" run.steps=13 train.global_batch=4 train.sequence_length=48
expect_text "; b.h5 starts at its beginning"
! grep -q "; moved.h5 starts\|CONTENTS CHANGED" "$out" || fail "moved.h5 does not go on as b.h5"
mv moved.h5 b.h5

echo "a middle is filled in"
expect_rc 0 "$binary" generate straight --fim-prefix "int x" --fim-suffix " void" --count 3
[ "$(head -c 5 "$out")" = "int x" ] && grep -q " void$" "$out" || fail "the middle is not between its sides"
expect_rc 0 "$binary" generate straight --fim-prefix "i" --fim-suffix "v" --count 1 --json
expect_text '{"tokens":[257,105,259,118,258,'
# without ids the tokens are found by the names that tokenizers give them; <|endoftext|> is 0
for names in "<｜fim▁begin｜> <｜fim▁hole｜> <｜fim▁end｜>" "<fim_prefix> <fim_suffix> <fim_middle>"; do
    read -r prefix suffix middle <<<"$names"
    "$binary" tokenizer train --vocab-size 270 --special "$middle" --special "$prefix" --special "$suffix" --output fim.json a.jsonl >trained
    "$binary" prepare --tokenizer fim.json --output fim.h5 a.jsonl >prepared
    expect_rc 0 "$binary" train tiny.yaml run.dir="$middle" data.valid=null data.train=fim.h5 data.fim.rate=1 model.vocab_size=270 run.steps=1
    expect_text "(tokens 2 3 1)"
done
expect_rc 0 "$binary" generate "$middle" --fim-prefix "" --fim-suffix "" --count 1 --json
expect_text '{"tokens":[2,3,1,'

echo "packed documents have the loss they have alone"
expect_rc 0 train 1 packed data.train=packed.h5 run.steps=2 data.packing=best_fit train.global_batch=4
expect_text "5 documents packed into 3 rows, 75.0 % of them filled; 1 longer than 33 tokens cut (7 tokens not used), 0 of"
losses=""
for i in 0 1 2 3 4; do
    expect_rc 0 "$binary" eval packed --data one$i.h5 --json data.packing=best_fit
    losses="$losses $(tr -d '\r' <"$out")"
done
expect_rc 0 "$binary" eval packed --data packed.h5 --json
python3 - "$(cat "$out")" "$losses" <<'PY' || fail "packed loss: $(cat "$out"); alone: $losses"
import json, sys
packed, alone = json.loads(sys.argv[1]), [json.loads(x) for x in sys.argv[2].split()]
labels = sum(x["labels"] for x in alone)
mean = sum(x["loss"] * x["labels"] for x in alone) / labels
print(f"packed {packed['loss']:.9f} of {packed['labels']} labels, alone {mean:.9f} of {labels}")
sys.exit(not (labels == packed["labels"] and abs(mean - packed["loss"]) <= 1e-6 * mean))
PY

echo "what is refused"
refused() {
    local rc=$1 text=$2
    shift 2
    expect_error "$rc" "$text" "$binary" train tiny.yaml run.dir=refused data.valid=null "$@"
}
"$binary" prepare --tokenizer "$source_dir/tests/tokenizers/files/gpt2.json" --output gpt2.h5 c.jsonl >prepared
refused 65 "a.h5 has ids of tokenizer bytes" 'data.train=[{path: a.h5}, {path: gpt2.h5}]' model.vocab_size=100000
refused 65 "c.h5: its tokens need a vocabulary of 257, model.vocab_size is 200" model.vocab_size=200 data.train=c.h5
refused 65 "tokens hold no sample of 4000" \
    'data.train=[{path: a.h5}, {path: c.h5}]' train.sequence_length=4000 model.max_position_embeddings=4000
refused 64 "data.fim.prefix" data.train=a.h5 data.fim.rate=0.5
refused 64 "id 257 is not below model.vocab_size 257" data.train=a.h5 data.fim.rate=0.5 data.fim.prefix=257 \
    data.fim.middle=258 data.fim.suffix=259
refused 64 "must be three tokens" data.train=a.h5 data.fim.rate=0.5 data.fim.prefix=1 data.fim.middle=2 data.fim.suffix=1
refused 64 "c.h5: its epochs 0.001 is less than one sample of 32 tokens" 'data.train=[{path: a.h5}, {path: c.h5, epochs: 0.001}]'
refused 64 "c.h5: its tokens 31 is less than one sample of 32 tokens" 'data.train=[{path: a.h5, tokens: 99}, {path: c.h5, tokens: 31}]'
refused 64 "end the data after" 'data.train=[{path: c.h5, epochs: 1}]' run.steps=1000
[ ! -e refused ] || fail "a refused run left a folder"
finish
