#!/usr/bin/env bash
# tokenizer train: merges are those of the definition, computed the long way in Python; the file works; the same texts
# give the same file.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"
make_config
cd "$work"

echo "merges by the definition"
python3 - <<'PY'
import json, random
rng = random.Random(11)
syllables = ["ba", "aa", "na", "nana", "the", "re", "in", "g", "tion", "x", "0", "12", "...", "é", "漢字", "ÿ"]
words = ["".join(rng.choice(syllables) for _ in range(rng.randrange(1, 6))) for _ in range(150)]
text = lambda: "".join(rng.choice(words) + rng.choice([" ", " ", " ", "  ", "\n"]) for _ in range(900))
with open("texts.jsonl", "w") as out:
    out.writelines(json.dumps({"text": text()}) + "\n" for _ in range(3))
open("more.txt", "w").write(text() + "<pad> " * 50 + "a" * 9 + " " + "a" * 7)
PY
expect_rc 0 "$binary" tokenizer train --vocab-size 500 --pattern gpt2 --special "<pad>" --output ours.json texts.jsonl more.txt
expect_text "500 tokens: 2 special, 256 bytes, 242 of 24"
python3 - ours.json <<'PY' || fail "other merges than the definition's"
import collections, json, re, sys
ours = json.load(open(sys.argv[1]))
texts = [json.loads(line)["text"] for line in open("texts.jsonl")] + open("more.txt").read().split("<pad>")
letters = r"[^\W\d_]"
pattern = re.compile(rf" ?{letters}+| ?\d+| ?(?:[^\s\w]|_)+|\s+(?!\S)|\s+")
printable = [b for b in range(256) if 33 <= b <= 126 or b >= 161 and b != 173]
rest = [b for b in range(256) if b not in printable]
spell = {b: chr(b) for b in printable} | {b: chr(256 + i) for i, b in enumerate(rest)}
order = ["<|endoftext|>", "<pad>"] + sorted(spell.values())
ids = {token: i for i, token in enumerate(order)}
words = collections.Counter(tuple(spell[b] for b in word.encode()) for text in texts for word in pattern.findall(text))
merges = []
while len(ids) < 500:
    pairs = collections.Counter()
    for word, count in words.items():
        for pair in zip(word, word[1:]):
            pairs[pair] += count
    best = min(pairs, key=lambda p: (-pairs[p], ids[p[0]], ids[p[1]]))
    merges.append(list(best))
    ids.setdefault("".join(best), len(ids))
    changed = collections.Counter()
    for word, count in words.items():
        new, i = [], 0
        while i < len(word):
            both = word[i:i + 2] == best
            new.append("".join(best) if both else word[i])
            i += 1 + both
        changed[tuple(new)] += count
    words = changed
model = ours["model"]
for i, (a, b) in enumerate(zip(model["merges"], merges)):
    if a != b:
        print(f"merge {i}: {a}, the definition gives {b}")
        break
sys.exit(model["merges"] != merges or model["vocab"] != ids)
PY

echo "the file is used"
expect_rc 0 "$binary" tokenizer encode --tokenizer ours.json more.txt
cp "$out" ids
grep -q ',1,' ids || fail "the special token is not found in text"
[ "$(tr ',' '\n' <ids | wc -l)" -lt "$(($(wc -c <more.txt) / 2))" ] || fail "hardly anything was merged"
"$binary" tokenizer decode --tokenizer ours.json <ids | cmp - more.txt || fail "decoding does not give the text back"
head -c 5000 /dev/urandom >random.bin
"$binary" tokenizer encode --tokenizer ours.json random.bin >ids
"$binary" tokenizer decode --tokenizer ours.json <ids | cmp - random.bin || fail "random bytes do not come back"
expect_rc 0 "$binary" prepare --tokenizer ours.json --output data.h5 texts.jsonl more.txt
expect_rc 0 "$binary" train tiny.yaml run.dir=run data.train=data.h5 data.valid=null model.vocab_size=500 run.steps=2
expect_rc 0 "$binary" prepare --tokenizer bytes --output bytes.h5 more.txt
bytes="bytes.h5 has ids of tokenizer bytes, run"
expect_error 64 "$bytes was trained with bpe:" "$binary" eval run --data bytes.h5
expect_error 64 "$bytes/checkpoints/00000002 was trained with bpe:" "$binary" train tiny.yaml run.dir=run data.train=bytes.h5 data.valid=null model.vocab_size=500 run.steps=3
expect_error 65 "bytes.h5 of bytes:bytes" "$binary" train tiny.yaml run.dir=other data.train=data.h5 data.valid=bytes.h5 model.vocab_size=500
expect_rc 0 "$binary" generate run --prompt "the" --count 2

echo "ids of no tokenizer: that of the run, or of the weights, stays"
for _ in $(seq 200); do echo '{"tokens": [1, 5, 3, 9]}'; done >ids.jsonl
expect_rc 0 "$binary" prepare --tokenizer none --vocab-size 10 --output ids.h5 ids.jsonl
goes_on=(data.train=ids.h5 data.valid=null model.vocab_size=500)
expect_rc 0 ranks 2 "$binary" train tiny.yaml run.dir=run run.steps=3 "${goes_on[@]}"
expect_rc 0 "$binary" generate run --prompt "the" --count 2
expect_error 64 "$bytes/checkpoints/00000003 was trained with bpe:" "$binary" train tiny.yaml run.dir=run data.train=bytes.h5 data.valid=null model.vocab_size=500 run.steps=4
expect_rc 0 "$binary" train tiny.yaml run.dir=from run.steps=1 "${goes_on[@]}" checkpoint.init_from=run
expect_rc 0 "$binary" generate from --prompt "the" --count 2 --tokenizer ours.json
expect_error 64 "from was trained with 'bpe:" "$binary" generate from --prompt "the" --tokenizer bytes
expect_rc 0 "$binary" train tiny.yaml run.dir=from run.steps=2 data.train=data.h5 data.valid=null model.vocab_size=500
expect_rc 0 "$binary" generate from --prompt "the" --count 2

echo "the same texts, the same file"
mkdir folder
cp texts.jsonl more.txt folder
for pattern in deepseek-v3 llama3 qwen2 gpt2; do
    expect_rc 0 "$binary" tokenizer train --vocab-size 500 --pattern $pattern --output a.json texts.jsonl more.txt
    expect_rc 0 "$binary" tokenizer train --vocab-size 500 --pattern $pattern --output b.json more.txt texts.jsonl
    cmp a.json b.json || fail "$pattern: the order of the inputs matters"
    expect_rc 0 "$binary" tokenizer train --vocab-size 500 --pattern $pattern --output b.json folder
    cmp a.json b.json || fail "$pattern: a folder is read otherwise than its files"
    "$binary" tokenizer encode --tokenizer a.json more.txt >ids
    "$binary" tokenizer decode --tokenizer a.json <ids | cmp - more.txt || fail "$pattern: the text does not come back"
done
expect_rc 0 "$binary" tokenizer train --vocab-size 300 --special "</s>" --special "<s>" --output ended.json more.txt --json
expect_text '"vocab_size":300,'
expect_same "</s> <s>" "$(python3 -c 'import json; print(*[t["content"] for t in json.load(open("ended.json"))["added_tokens"]])')" "special tokens where one ends documents"
echo "one word" >little.txt
expect_rc 0 "$binary" tokenizer train --vocab-size 4000 --output little.json little.txt
expect_text "fewer than the 4000 asked for"

echo "what is wrong is said"
expect_error 64 "--vocab-size N and --output FILE are needed" "$binary" tokenizer train more.txt
expect_error 64 "tokenizer train: too few arguments" "$binary" tokenizer train --vocab-size 300 --output x.json
expect_error 64 "a vocabulary of 256 has no room" "$binary" tokenizer train --vocab-size 256 --output x.json more.txt
expect_error 64 "no pattern 'gpt3'" "$binary" tokenizer train --vocab-size 300 --pattern gpt3 --output x.json more.txt
expect_error 64 "'<s>' is given twice" "$binary" tokenizer train --vocab-size 300 --special "<s>" --special "<s>" --output x.json more.txt
expect_error 64 "special token 'a'" "$binary" tokenizer train --vocab-size 300 --special a --output x.json more.txt
expect_error 74 "nowhere.txt" "$binary" tokenizer train --vocab-size 300 --output x.json nowhere.txt
: >empty.txt
expect_error 65 "the inputs hold no text" "$binary" tokenizer train --vocab-size 300 --output x.json empty.txt
echo '{"text": ' >bad.jsonl
expect_error 65 "bad.jsonl:1" "$binary" tokenizer train --vocab-size 300 --output x.json bad.jsonl
expect_error 74 "no/x.json" "$binary" tokenizer train --vocab-size 300 --output no/x.json more.txt
[ ! -e x.json ] || fail "a refused request left a file"
finish
