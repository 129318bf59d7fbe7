#!/usr/bin/env python3
"""compare.py BINARY MEGABYTES STRINGS TOKENIZER.json...: over texts of that many megabytes and as many random strings,
ids and decoded text of `switchyard tokenizer` are those of the tokenizers wheel, and decoding gives the text back where no
normalizer changes it. SEED in the environment makes other texts. Prints the first differences."""
import json
import os
import subprocess
import sys
import tempfile

from tokenizers import Tokenizer

import texts


def lines_of(command, stdin=None):
    done = subprocess.run(command, stdin=stdin, stdout=subprocess.PIPE, check=True)
    return [json.loads(line) for line in done.stdout.decode().split("\n")[:-1]]


def compare(binary, path, documents, file):
    theirs = Tokenizer.from_file(path)
    ids = [encoding.ids for encoding in theirs.encode_batch(documents, add_special_tokens=False)]
    ours = lines_of([binary, "tokenizer", "encode", "--json", "--tokenizer", path, file])
    assert len(ours) == len(ids), (len(ours), len(ids))
    encoded = [i for i in range(len(ids)) if ids[i] != ours[i]]
    for i in encoded[:3]:
        at = next((k for k, (a, b) in enumerate(zip(ids[i], ours[i])) if a != b), min(len(ids[i]), len(ours[i])))
        print(f"text {i}, {documents[i][:200]!r}, from token {at}:")
        for name, list_ in ("wheel", ids[i]), ("ours", ours[i]):
            part = list_[at:at + 8]
            print(f"  {name} {part} {theirs.decode(part, skip_special_tokens=False)!r}")
    with tempfile.TemporaryFile("w+") as stdin:
        stdin.writelines(json.dumps(i) + "\n" for i in ids)
        stdin.seek(0)
        back = lines_of([binary, "tokenizer", "decode", "--json", "--tokenizer", path], stdin)
    wheel = theirs.decode_batch(ids, skip_special_tokens=False)
    decoded = [i for i in range(len(ids)) if back[i] != wheel[i]]
    changes = theirs.normalizer is not None and "NFC" in repr(theirs.normalizer)
    lost = [] if changes else [i for i in range(len(ids)) if back[i] != documents[i]]
    for what, list_ in ("decoded otherwise", decoded), ("not given back", lost):
        for i in list_[:2]:
            print(f"{what}: text {i}: {documents[i][:200]!r}\n  wheel {wheel[i][:200]!r}\n  ours  {back[i][:200]!r}")
    print(f"{path}: {len(documents)} texts, {sum(map(len, ids))} tokens; "
          f"{len(encoded)} encoded differently, {len(decoded)} decoded differently, {len(lost)} not given back", flush=True)
    return not (encoded or decoded or lost)


def main():
    binary, megabytes, strings = sys.argv[1], float(sys.argv[2]), int(sys.argv[3])
    documents = list(texts.documents(int(os.environ.get("SEED", "1")), megabytes, strings))
    print(f"{sum(len(d.encode()) for d in documents)} bytes in {len(texts.SCRIPTS)} scripts, code and random strings")
    with tempfile.NamedTemporaryFile("w", suffix=".jsonl") as file:
        file.writelines(json.dumps(d) + "\n" for d in documents)
        file.flush()
        good = [compare(binary, path, documents, file.name) for path in sys.argv[4:]]
    sys.exit(not (documents and good and all(good)))


if __name__ == "__main__":
    main()
