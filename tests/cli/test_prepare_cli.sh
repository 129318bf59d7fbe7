#!/usr/bin/env bash
# prepare: what goes in is what lies in the token file, the same bytes every time; generate --tokens.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"
make_config
cd "$work"

# dataset FILE NAME: its numbers, with spaces between.
dataset() {
    h5dump -d "/$2" -y -w 100000 "$1" 2>/dev/null | sed -n '/DATA {/,/}/p' | tr -c '0-9' ' ' |
        tr -s ' ' | sed 's/^ //; s/ $//'
}

# attribute FILE NAME
attribute() {
    h5dump -a "/$2" -y "$1" | sed -n '/DATA {/,/}/p' | sed -n '2s/^ *"\{0,1\}\([^"]*\)"\{0,1\}$/\1/p'
}

# bytes_of FILE: its bytes as numbers, and the end of the document.
bytes_of() {
    od -An -v -tu1 "$1"
    echo 256
}

echo "text files"
printf 'int a;\n' >one.txt
printf 'caf\xc3\xa9\0\xff' >two.txt
: >empty.txt
expect_rc 0 "$binary" prepare --tokenizer bytes --output text.h5 two.txt empty.txt one.txt
expect_text "2 documents"
expect_text "1 empty skipped"
expect_same "$(echo $(bytes_of two.txt) $(bytes_of one.txt))" "$(dataset text.h5 tokens)" "tokens of text"
expect_same "0 8 16" "$(dataset text.h5 document_offsets)" "documents of text"
expect_same 1 "$(attribute text.h5 format_version)" format_version
expect_same 257 "$(attribute text.h5 vocab_size)" vocab_size
expect_same 256 "$(attribute text.h5 eos_id)" eos_id
expect_same bytes "$(attribute text.h5 tokenizer)" tokenizer
! h5ls text.h5 | grep -q loss_mask || fail "text files have a loss mask"
h5ls -v text.h5/tokens | grep -q "native unsigned short" || fail "small vocabularies need no more than 16 bits"

echo "a folder: sorted, into subfolders, its own output left out"
mkdir -p folder/b
printf 'B' >folder/b/file.txt
printf 'A' >folder/a.txt
printf 'C' >folder/c.txt
for again in 1 2; do
    expect_rc 0 "$binary" prepare --tokenizer bytes --output folder/out.h5 folder
    expect_same "65 256 66 256 67 256" "$(dataset folder/out.h5 tokens)" "tokens of a folder, time $again"
done

echo ".jsonl"
printf '%s\n' '{"text":"hi"}' '' '{"tokens":[5,6,7],"loss_mask":[0,1,0]}' '{"tokens":[8]}' >docs.jsonl
expect_rc 0 "$binary" prepare --tokenizer bytes --output docs.h5 docs.jsonl one.txt
expect_same "104 105 256 5 6 7 8 $(echo $(bytes_of one.txt))" "$(dataset docs.h5 tokens)" "tokens of .jsonl"
expect_same "0 3 6 7 15" "$(dataset docs.h5 document_offsets)" "documents of .jsonl"
expect_same "1 1 1 0 1 0 1 1 1 1 1 1 1 1 1" "$(dataset docs.h5 loss_mask)" "loss mask of .jsonl"
printf '{"text":"\\u00e9\\u0000\\ud83d\\ude00"}' >escapes.jsonl # and no newline at the end
expect_rc 0 "$binary" prepare --tokenizer bytes --output escapes.h5 escapes.jsonl
expect_same "195 169 0 240 159 152 128 256" "$(dataset escapes.h5 tokens)" "escapes in .jsonl"

echo "tokenizer none"
printf '%s\n' '{"tokens":[0,1,65999]}' '{"tokens":[3]}' >ids.jsonl
expect_rc 0 "$binary" prepare --tokenizer none --vocab-size 66000 --output ids.h5 ids.jsonl
expect_same "0 1 65999 3" "$(dataset ids.h5 tokens)" "given ids"
expect_same "0 3 4" "$(dataset ids.h5 document_offsets)" "documents of given ids"
expect_same -1 "$(attribute ids.h5 eos_id)" "eos_id of given ids"
h5ls -v ids.h5/tokens | grep -q "native unsigned int" || fail "ids above 65535 need 32 bits"

echo "twice is the same file, and nothing lies beside it"
make_text "$work/train.txt" 20000
expect_rc 0 "$binary" prepare --tokenizer bytes --output first.h5 train.txt docs.jsonl folder/a.txt
sleep 1.1 # time stamps of HDF5 are in seconds
expect_rc 0 "$binary" prepare --tokenizer bytes --output new/folder/second.h5 train.txt docs.jsonl folder/a.txt
cmp first.h5 new/folder/second.h5 || fail "two outputs differ"
expect_same "second.h5" "$(ls -A new/folder)" "files beside the output"

echo "what is wrong is said, with its line, and leaves no file"
bad() { # RC FRAGMENT LINE
    printf '{"text":"fine"}\n%s\n' "$3" >bad.jsonl
    expect_error "$1" "$2" "$binary" prepare --tokenizer bytes --output bad.h5 bad.jsonl
    [ -z "$(ls -A | grep '^bad\.h5')" ] || fail "something is left of bad.h5"
}
bad 65 "bad.jsonl:2: not JSON" '{"text":'
bad 65 "bad.jsonl:2: not JSON" '{"text":"a","text":"b"}'
bad 65 'bad.jsonl:2: needs "text" or "tokens"' '{"txt":"a"}'
bad 65 'bad.jsonl:2: needs "text" or "tokens"' '[1,2]'
bad 65 "bad.jsonl:2:" '{"text":5}'
bad 65 "bad.jsonl:2: token 1" '{"tokens":[1,-1]}'
bad 65 "bad.jsonl:2: token 0" '{"tokens":[1.5]}'
bad 65 "bad.jsonl:2: token id 257" '{"tokens":[257]}'
bad 65 "bad.jsonl:2:" '{"tokens":[1,2],"loss_mask":[1]}'
bad 65 "bad.jsonl:2: loss_mask 0" '{"tokens":[1],"loss_mask":[2]}'
bad 65 "bad.jsonl:2:" '{"tokens":7}'
expect_error 74 "nowhere.txt" "$binary" prepare --tokenizer bytes --output x.h5 nowhere.txt
expect_error 65 "no tokens" "$binary" prepare --tokenizer bytes --output x.h5 empty.txt
mkdir hollow
expect_error 65 "no tokens" "$binary" prepare --tokenizer bytes --output x.h5 hollow
expect_error 65 "--tokenizer none" "$binary" prepare --tokenizer none --vocab-size 300 --output x.h5 one.txt
expect_error 64 "--vocab-size" "$binary" prepare --tokenizer none --output x.h5 ids.jsonl
expect_error 65 "65999" "$binary" prepare --tokenizer none --vocab-size 100 --output x.h5 ids.jsonl
expect_error 74 "tok.json" "$binary" prepare --tokenizer tok.json --output x.h5 one.txt
expect_error 64 "--output" "$binary" prepare --tokenizer bytes one.txt
expect_error 64 "at least one input" "$binary" prepare --tokenizer bytes --output x.h5
expect_error 64 "did you mean '--output'" "$binary" prepare --tokenizer bytes --outptu x.h5 one.txt
expect_error 74 "one.txt" "$binary" prepare --tokenizer bytes --output one.txt/x.h5 two.txt
expect_error 64 "both an input and the output" "$binary" prepare --tokenizer bytes --output one.txt one.txt two.txt
expect_error 64 "hollow: is a folder: name a file to write" "$binary" prepare --tokenizer bytes --output hollow one.txt
expect_error 64 "a pipe or a device" "$binary" prepare --tokenizer bytes --output <(true) one.txt
expect_error 64 "pattern 'b/'" "$binary" prepare --tokenizer bytes --exclude b/ --output x.h5 folder
expect_same "int a;" "$(tr -d '\0' <one.txt)" "an input named as output"
[ ! -e x.h5 ] || fail "a refused prepare left a file"
cp text.h5 kept.h5
expect_error 65 "bad.jsonl:2" "$binary" prepare --tokenizer bytes --output kept.h5 bad.jsonl
cmp text.h5 kept.h5 || fail "a failed prepare touched the file that was there"

echo "a pipe or a socket in a folder doesn't hang it, a link that leads nowhere doesn't stop it"
mkdir odd
printf 'A' >odd/a.txt
mkfifo odd/pipe
ln -s nowhere odd/broken
ln -s . odd/loop
expect_rc 0 timeout 10 "$binary" prepare --tokenizer bytes --output odd.h5 odd
expect_same "65 256" "$(dataset odd.h5 tokens)" "tokens of a folder with odd entries"

echo "conversations: the template's text, and what counts"
printf '%s\n' '{"messages":[{"role":"system","content":"S"},{"role":"user","content":"Q"},{"role":"assistant","content":"A"}]}' \
    '{"messages":[{"role":"user","content":"only asked"}]}' >chat.jsonl
expect_rc 0 "$binary" prepare --tokenizer bytes --chat-template deepseek_v2 --output chat.h5 chat.jsonl
expect_text "1 conversations without an answer"
printf 'S\n\nUser: Q\n\nAssistant: A' >chat.txt
expect_same "$(echo $(bytes_of chat.txt))" "$(dataset chat.h5 tokens)" "tokens of a conversation"
expect_same "$(printf '0 %.0s' $(seq 22))1 1 1" "$(dataset chat.h5 loss_mask)" "what counts of a conversation"
expect_rc 0 "$binary" prepare --tokenizer bytes --chat-template deepseek_v2 --loss all --output all.h5 chat.jsonl
! h5ls all.h5 | grep -q loss_mask || fail "a mask where everything counts"
expect_rc 0 "$binary" prepare --tokenizer bytes --chat-template mixtral --output chat.h5 chat.jsonl
printf ' [INST] S\n\nQ [/INST] A' >chat.txt
expect_same "$(echo $(bytes_of chat.txt))" "$(dataset chat.h5 tokens)" "tokens of a Mixtral conversation"
expect_error 65 "chat.jsonl:1: \"messages\" need --chat-template" "$binary" prepare --tokenizer bytes --output x.h5 chat.jsonl
expect_error 65 "chat.jsonl:1: \"messages\" need" "$binary" prepare --tokenizer bytes --bad-json skip --output x.h5 chat.jsonl
expect_error 64 "use mixtral" "$binary" prepare --tokenizer bytes --chat-template llama --output x.h5 chat.jsonl

echo "packed files, filters, duplicates; --json"
gzip -k docs.jsonl
mkdir -p mixed/skip
cp docs.jsonl.gz one.txt mixed
cp one.txt mixed/two.txt
cp one.txt mixed/skip
head -c 5000 /dev/zero >mixed/zeros
expect_rc 0 "$binary" prepare --tokenizer bytes --dedup --exclude skip --json --output mixed.h5 mixed
expect_same "104 105 256 5 6 7 8 $(echo $(bytes_of one.txt))" "$(dataset mixed.h5 tokens)" "tokens of packed and double files"
python3 - "$out" <<'PY' || fail "--json: $(cat "$out")"
import json, sys
figures = json.load(open(sys.argv[1]))
wanted = {"files": 4, "documents": 4, "tokens": 15, "skipped_binary": 1, "duplicates": 1, "bytes_per_token": 16 / 19}
sys.exit(any(abs(figures[key] - value) > 1e-4 for key, value in wanted.items()))
PY
expect_rc 0 "$binary" prepare --tokenizer bytes --glob '*.txt' --max-file-bytes 100 --output mixed.h5 mixed
expect_text "3 files"
head -c 2000000 docs.jsonl.gz >cut.jsonl.gz
truncate -s -5 cut.jsonl.gz
expect_error 65 "cut.jsonl.gz" "$binary" prepare --tokenizer bytes --output x.h5 cut.jsonl.gz
expect_error 64 "use error or skip" "$binary" prepare --tokenizer bytes --bad-json maybe --output x.h5 one.txt

echo "a line beyond --max-document-bytes is named, counted, and costs no memory"
{ printf '{"text":"a"}\n{"text":"'; head -c 60000000 /dev/zero | tr '\0' x; printf '"}\n{"text":"b"}\n'; } >long.jsonl
expect_rc 0 bash -c 'ulimit -v 500000; exec "$@"' - "$binary" prepare --tokenizer bytes --workers 2 \
    --max-document-bytes 1000000 --output long.h5 long.jsonl
expect_text "long.jsonl:2: skipped: longer than 1000000 bytes"
expect_text "1 too long"
expect_same "97 256 98 256" "$(dataset long.h5 tokens)" "the lines round a long one"
rm long.jsonl

echo "a line of a gigabyte, most of it a hole in the file, with what is allowed by default"
printf '{"text":"a"}\n{"text":"' >long.jsonl
truncate -s 1000000000 long.jsonl
printf '"}\n{"text":"b"}\n' >>long.jsonl
expect_rc 0 bash -c 'ulimit -v 1000000; exec "$@"' - "$binary" prepare --tokenizer bytes --workers 2 --output long.h5 long.jsonl
expect_text "long.jsonl:2: skipped: longer than 268435456 bytes"
expect_same "97 256 98 256" "$(dataset long.h5 tokens)" "the lines round a long one"
rm long.jsonl

echo "the same bytes over ranks and workers; killed and stopped, the same command goes on"
python3 - <<'PY'
import json, random
random.seed(3)
words = [str(i) for i in range(1000)]
with open("big.jsonl", "w") as out:
    for i in range(30000):
        out.write(json.dumps({"text": " ".join(random.choices(words, k=random.randrange(60)))}) + "\n")
    out.write(open("docs.jsonl").read())
PY
gzip -1k big.jsonl
request=(--tokenizer "$source_dir/tests/tokenizers/files/gpt2.json" --eos "</s>" --dedup big.jsonl one.txt big.jsonl.gz two.txt)
sed -i '$d' big.jsonl # the last line has no newline in one of them
expect_rc 0 "$binary" prepare --workers 1 --output big1.h5 "${request[@]}"
expect_text "duplicates"
expect_rc 0 ranks 2 "$binary" prepare --workers 2 --output big2.h5 "${request[@]}"
cmp big1.h5 big2.h5 || fail "two ranks write other bytes than one"
# started OUTPUT: in the background, with $pid, until its first journal is there; then it stands still. Without a pause
# between two looks: it is soon done.
started() {
    "$binary" prepare --workers 1 --journal-seconds 0 --output "$1" "${request[@]}" >"$out" 2>"$err" &
    pid=$!
    until [ -e "$1.journal" ]; do kill -0 "$pid" 2>/dev/null || break; done
    kill -STOP "$pid" || fail "no journal of $1"
}
started big3.h5
{ kill -KILL "$pid" && wait "$pid"; } 2>/dev/null || true
[ -e big3.h5.journal ] && [ ! -e big3.h5 ] || fail "prepare was not killed half-way"
expect_rc 0 ranks 3 "$binary" prepare --output big3.h5 "${request[@]}"
expect_text "going on there"
cmp big1.h5 big3.h5 || fail "three ranks that go on where one was killed write other bytes"
[ -z "$(ls -A | grep '^big3\.h5\.')" ] || fail "something lies beside big3.h5"
started big4.h5
kill -INT "$pid"
kill -CONT "$pid"
rc=0
wait "$pid" || rc=$?
[ "$rc" -eq 85 ] || { fail "SIGINT: exit code $rc, expected 85"; cat "$err"; }
expect_rc 0 "$binary" prepare --workers 2 --output big4.h5 "${request[@]}"
cmp big1.h5 big4.h5 || fail "stopped and gone on: other bytes"

echo "long texts in pieces over ranks, one of them with a NUL byte near its end"
python3 - <<'PY'
import os, random
random.seed(5)
os.mkdir("long")
for name, size, nul in (("a", 3 << 20, None), ("b", (5 << 20) + 3, (5 << 20) + 1), ("c", 4 << 20, None), ("d", 9, None)):
    text = bytearray(random.choices(range(1, 256), k=size))
    if nul is not None:
        text[nul] = 0
    open("long/" + name, "wb").write(text)
PY
expect_rc 0 "$binary" prepare --tokenizer bytes --dedup --workers 1 --output whole.h5 long # whole, each
for n in 1 2 3; do
    expect_rc 0 ranks $n "$binary" prepare --tokenizer bytes --workers 2 --journal-seconds 0 --output pieces.h5 long
    cmp whole.h5 pieces.h5 || fail "$n ranks: texts in pieces give another file"
done
expect_rc 0 "$binary" prepare --tokenizer bytes --binary keep --dedup --output whole.h5 long
expect_rc 0 ranks 3 "$binary" prepare --tokenizer bytes --binary keep --output pieces.h5 long
cmp whole.h5 pieces.h5 || fail "texts in pieces, binary ones too, give another file"

echo "generate with ids"
# Trained on 1 2 3 0 1 2 3 0 ... it goes on counting.
python3 - <<'PY'
open("count.jsonl", "w").write('{"tokens":[%s]}\n' % ",".join(str(i % 4) for i in range(20000)))
PY
expect_rc 0 "$binary" prepare --tokenizer none --vocab-size 4 --output count.h5 count.jsonl
expect_rc 0 "$binary" train tiny.yaml data.train=count.h5 data.valid=null model.vocab_size=4 run.steps=40 optimizer.lr=1e-2
expect_rc 0 "$binary" generate run --tokens 1,2,3 --count 5 --temperature 0
expect_text "1,2,3,0,1,2,3,0"
expect_rc 0 "$binary" generate run --tokens 1,2,3 --count 5 --temperature 0 --json
expect_text '{"tokens":[1,2,3,0,1,2,3,0]}'
expect_rc 0 ranks 2 "$binary" generate run/checkpoints/00000040 --tokens 1,2,3 --count 5 --temperature 0 parallel.ep=2
expect_text "1,2,3,0,1,2,3,0"
for again in a b; do
    expect_rc 0 "$binary" generate run --tokens 0 --count 20 --temperature 1.5 --top-k 3 --top-p 0.9 --seed 5
    cp "$out" "sampled-$again"
done
cmp sampled-a sampled-b || fail "the same seed gave two samples"
expect_error 64 "--tokens" "$binary" generate run --tokens 1,4
expect_error 64 "--tokens" "$binary" generate run --tokens 1,x
expect_error 64 "--tokens" "$binary" generate run --prompt the
finish
