#!/usr/bin/env bash
# Token files of other programs in training and evaluation: the same losses as the same tokens in ours; a vocabulary
# that does not fit is said.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"
make_config
cd "$work"

# The same documents three times: .jsonl, Megatron's two files, llm.c's one (whose documents begin with 50256).
python3 - <<'PY'
import json, random
from struct import pack
rng = random.Random(5)
documents = [[rng.choice([0, rng.randrange(300)]) for _ in range(rng.randrange(1, 90))] for _ in range(120)]
def write(name, documents):
    lengths = [len(d) for d in documents]
    tokens = [t for d in documents for t in d]
    with open(name + ".jsonl", "w") as out:
        out.writelines(json.dumps({"tokens": d}) + "\n" for d in documents)
    starts = [sum(lengths[:i]) for i in range(len(lengths))]
    n = len(documents)
    open(name + ".bin", "wb").write(pack(f"<{len(tokens)}i", *tokens))
    open(name + ".idx", "wb").write(b"MMIDIDX\0\0" + pack("<QBQQ", 1, 4, n, n + 1) + pack(f"<{n}i{n}q{n + 1}q", *lengths, *[4 * s for s in starts], *range(n + 1)))
    return tokens
write("plain", documents)
tokens = write("begun", [[50256] + d for d in documents])
open("gpt2.bin", "wb").write(pack("<3i", 20240520, 1, len(tokens)).ljust(1024, b"\0") + pack(f"<{len(tokens)}H", *tokens))
PY
"$binary" prepare --tokenizer none --vocab-size 300 --output plain.h5 plain.jsonl >/dev/null
"$binary" prepare --tokenizer none --vocab-size 50257 --output begun.h5 begun.jsonl >/dev/null

settings=(data.mask_documents=true run.steps=3 data.valid=null)
losses() {
    expect_rc 0 "$binary" train tiny.yaml run.dir="run-$1" "data.train=$1" model.vocab_size="$2" "${settings[@]}"
    metric "run-$1" loss_hex | tr '\n' ' '
}
expected=$(losses plain.h5 300)
for name in plain.bin plain.idx plain; do
    expect_same "$expected" "$(losses $name 300)" "losses of $name"
done
expect_same "$(losses begun.h5 50257)" "$(losses gpt2.bin 50257)" "losses of gpt2.bin"
expect_rc 0 "$binary" eval run-plain.h5 --data plain.h5 --json
cp "$out" ours
expect_rc 0 "$binary" eval run-plain.h5 --data plain.bin --json
expect_same "$(grep -o '"loss[^,]*' ours)" "$(grep -o '"loss[^,]*' "$out")" "evaluation of plain.bin"

echo "what does not fit is said"
expect_error 65 "gpt2.bin: its tokens need a vocabulary of 50257, model.vocab_size is 300" "$binary" train tiny.yaml run.dir=small data.train=gpt2.bin model.vocab_size=300 "${settings[@]}"
expect_error 65 "gpt2.bin: its tokens need a vocabulary of 50257" "$binary" eval run-plain.h5 --data gpt2.bin
head -c 1000 plain.bin >cut.bin
cp plain.idx cut.idx
expect_error 65 "cut.bin: 1000 bytes, but cut.idx says" "$binary" eval run-plain.h5 --data cut.bin
expect_error 74 "nowhere.bin" "$binary" eval run-plain.h5 --data nowhere.bin

echo "reads that fail, and that are only interrupted"
python3 - <<'PY'
import random
from array import array
from struct import pack
rng = random.Random(6)
tokens = array("H", [rng.randrange(300) for _ in range(400000)]) # more than is kept of a file
open("large.bin", "wb").write(pack("<3i", 20240520, 1, len(tokens)).ljust(1024, b"\0") + tokens.tobytes())
PY
large() { "$binary" train tiny.yaml data.valid=null data.train=large.bin model.vocab_size=300 run.steps=20 "$@"; }
expect_rc 0 large run.dir=large
for kind in eintr short; do
    expect_rc 0 large run.dir=large-$kind debug.fault=read:$kind:2+
    expect_same "$(metric large loss_hex)" "$(metric large-$kind loss_hex)" "losses beside $kind"
done
for at in 1 30; do
    expect_error 74 "large.bin: cannot read: Input/output error" large run.dir=eio-$at debug.fault=read:eio:$at
    expect_error 65 "large.bin: ends at byte" large run.dir=cut-$at debug.fault=read:cut:$at
    steps=$(metric eio-$at step | wc -l)
    [ "$steps" = 0 ] || expect_same "$(metric large loss_hex | head -n "$steps")" "$(metric eio-$at loss_hex)" "losses before a failed read"
    [ "$at" = 1 ] || [ "$steps" -ge 1 ] || fail "the 30th read is not behind the first step"
    expect_rc 0 large run.dir=eio-$at
    expect_same "$(metric large loss_hex)" "$(metric eio-$at loss_hex)" "losses with a disk that reads again"
done
expect_rc 74 ranks 2 "$binary" train tiny.yaml data.valid=null data.train=large.bin model.vocab_size=300 run.dir=two parallel.ep=2 debug.fault=read:eio:3
expect_text "large.bin: cannot read: Input/output error"
expect_error 64 "debug.fault" large run.dir=odd debug.fault=read:enospc:1

echo "a file that is cut while it is read"
cp large.bin shrinks.bin
"$binary" train tiny.yaml data.valid=null data.train=shrinks.bin model.vocab_size=300 run.dir=shrinks run.steps=1000000 >"$out" 2>"$err" </dev/null &
runner=$!
last="train data.train=shrinks.bin"
wait_for 60 has_steps shrinks 3 || { fail "no third step"; show_last; }
: >shrinks.bin
rc=0
wait "$runner" || rc=$?
expect_same "$rc" 65 "exit code of a run whose data is cut"
expect_text "shrinks.bin: ends at byte"
expect_same "$(wc -l <"$err")" 1 "lines about data that is cut"
finish
