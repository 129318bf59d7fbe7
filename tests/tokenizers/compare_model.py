#!/usr/bin/env python3
"""compare_model.py BINARY MEGABYTES STRINGS FILE.model...: ids and decoded text of `switchyard tokenizer` are those of the
sentencepiece wheel. SEED in the environment makes other texts. Prints the first differences."""
import json
import os
import sys
import tempfile

import sentencepiece

import texts
from compare import lines_of


def compare(binary, path, documents, file):
    theirs = sentencepiece.SentencePieceProcessor(model_file=path)
    ids = theirs.encode(documents)
    ours = list(lines_of([binary, "tokenizer", "encode", "--json", "--tokenizer", path, file]))
    encoded = [i for i in range(len(ids)) if ids[i] != ours[i]]
    with tempfile.TemporaryFile("w+") as stdin:
        stdin.writelines(json.dumps(i) + "\n" for i in ids)
        stdin.seek(0)
        back = list(lines_of([binary, "tokenizer", "decode", "--json", "--tokenizer", path], stdin))
    wheel = theirs.decode(ids)
    decoded = [i for i in range(len(ids)) if back[i] != wheel[i]]
    for i in encoded[:3]:
        print(f"text {i}, {documents[i][:200]!r}:\n  wheel {ids[i][:40]}\n  ours  {ours[i][:40]}")
    for i in decoded[:3]:
        print(f"decoded otherwise: text {i}:\n  wheel {wheel[i][:200]!r}\n  ours  {back[i][:200]!r}")
    print(f"{path}: {len(documents)} texts, {sum(map(len, ids))} tokens; "
          f"{len(encoded)} encoded differently, {len(decoded)} decoded differently", flush=True)
    return len(ours) == len(ids) and not (encoded or decoded)


documents = list(texts.documents(int(os.environ.get("SEED", "1")), float(sys.argv[2]), int(sys.argv[3])))
with tempfile.NamedTemporaryFile("w", suffix=".jsonl") as jsonl:
    jsonl.writelines(json.dumps(d) + "\n" for d in documents)
    jsonl.flush()
    good = [compare(sys.argv[1], path, documents, jsonl.name) for path in sys.argv[4:]]
sys.exit(not (documents and good and all(good)))
