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


CHUNK = 20000  # texts at a time: the wheel's encodings take a hundred times their text


def lines_of(command, stdin=None):
    """The JSON values that the command prints, a line each; they lie in a file, not in memory."""
    with tempfile.TemporaryFile() as out:
        subprocess.run(command, stdin=stdin, stdout=out, check=True)
        out.seek(0)
        yield from map(json.loads, out)


def first_difference(theirs, document, ids, ours):
    at = next((k for k, (a, b) in enumerate(zip(ids, ours)) if a != b), min(len(ids), len(ours)))
    print(f"{document[:200]!r}, from token {at}:")
    for name, list_ in ("wheel", ids), ("ours", ours):
        part = list_[at:at + 8]
        print(f"  {name} {part} {theirs.decode(part, skip_special_tokens=False)!r}")


def compare(binary, path, documents, file):
    theirs = Tokenizer.from_file(path)
    changes = theirs.normalizer is not None and "NFC" in repr(theirs.normalizer)
    ours = lines_of([binary, "tokenizer", "encode", "--json", "--tokenizer", path, file])
    tokens = encoded = decoded = lost = seen = given = 0
    with tempfile.TemporaryFile("w+") as written, tempfile.TemporaryFile("w+") as wheel:
        for start in range(0, len(documents), CHUNK):
            some = documents[start:start + CHUNK]
            ids = [encoding.ids for encoding in theirs.encode_batch(some, add_special_tokens=False)]
            for document, right, own in zip(some, ids, ours):
                seen += 1
                encoded += right != own
                if right != own and encoded <= 3:
                    first_difference(theirs, document, right, own)
            tokens += sum(map(len, ids))
            written.writelines(json.dumps(i) + "\n" for i in ids)
            wheel.writelines(json.dumps(text) + "\n" for text in theirs.decode_batch(ids, skip_special_tokens=False))
        written.seek(0)
        wheel.seek(0)
        back = lines_of([binary, "tokenizer", "decode", "--json", "--tokenizer", path], written)
        for document, text, own in zip(documents, map(json.loads, wheel), back):
            given += 1
            decoded += text != own
            lost += not changes and own != document
            if text != own and decoded <= 2 or not changes and own != document and lost <= 2:
                print(f"decoded otherwise: {document[:200]!r}\n  wheel {text[:200]!r}\n  ours  {own[:200]!r}")
    print(f"{path}: {len(documents)} texts, {tokens} tokens; "
          f"{encoded} encoded differently, {decoded} decoded differently, {lost} not given back", flush=True)
    return seen == given == len(documents) and next(ours, next(back, None)) is None and not (encoded or decoded or lost)


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
