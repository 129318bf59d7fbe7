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
finish
