#!/usr/bin/env python3
"""prepare_hf.py --tokenizer TOKENIZER.json --output OUT.h5 INPUT...: the token file that `switchyard prepare` writes, made with the
tokenizers library, for tokenizer files that Switchyard does not read itself.

INPUT: text files, folders, .jsonl with "text", or with "tokens" and perhaps "loss_mask". Each text is a document and ends with
the end-of-document token. Needs: pip install tokenizers h5py"""
import argparse
import array
import hashlib
import json
import os
import pathlib
import sys
import tempfile

ENDS = ["<｜end▁of▁sentence｜>", "<|end_of_text|>", "<|endoftext|>", "</s>", "<eos>", "[SEP]"]
BATCH = 256


def files_of(paths):
    for path in map(pathlib.Path, paths):
        if path.is_dir():
            yield from sorted(p for p in path.rglob("*") if p.is_file())
        else:
            yield path


def documents(paths, output):
    """Yields a text, or ids and their mask, with its place."""
    for path in files_of(paths):
        if output.exists() and path.samefile(output):
            continue
        if path.suffix != ".jsonl":
            yield path.read_text(encoding="utf-8"), str(path)
            continue
        with open(path, encoding="utf-8") as lines:
            for number, line in enumerate(lines, 1):
                where = f"{path}:{number}"
                if not line.strip():
                    continue
                document = json.loads(line)
                if "tokens" in document:
                    ids = document["tokens"]
                    mask = document.get("loss_mask", [1] * len(ids))
                    if len(ids) != len(mask) or not all(m in (0, 1) for m in mask):
                        sys.exit(f'{where}: "loss_mask" must be a 0 or 1 for each of "tokens"')
                    yield (ids, mask), where
                elif isinstance(document.get("text"), str):
                    yield document["text"], where
                else:
                    sys.exit(f'{where}: needs "text" or "tokens"')


class Spool:
    """Tokens and masks beside the output until their number is known."""

    def __init__(self, folder, vocab_size):
        self.code = "H" if vocab_size <= 65536 else "I"
        self.vocab_size = vocab_size
        self.tokens, self.mask = (tempfile.TemporaryFile(dir=folder) for _ in range(2))
        self.offsets = [0]
        self.masked = False

    def add(self, ids, mask, where):
        if not ids:
            return
        if min(ids) < 0 or max(ids) >= self.vocab_size:
            sys.exit(f"{where}: token ids must be from 0 to {self.vocab_size - 1}")
        self.masked = self.masked or 0 in mask
        self.tokens.write(array.array(self.code, ids).tobytes())
        self.mask.write(bytes(mask))
        self.offsets.append(self.offsets[-1] + len(ids))


def write(path, spool, eos_id, digest):
    import h5py
    import numpy

    count = spool.offsets[-1]
    if count == 0:
        sys.exit(f"{path}: the inputs hold no tokens")
    part = path.with_name(path.name + ".tmp")
    with h5py.File(part, "w", libver=("v110", "v110")) as out:
        def fill(name, file, kind):
            kind = numpy.dtype(kind)
            into = out.create_dataset(name, (count,), kind)
            file.seek(0)
            for at in range(0, count, 1 << 20):
                piece = numpy.frombuffer(file.read(kind.itemsize << 20), kind)
                into[at:at + len(piece)] = piece

        fill("tokens", spool.tokens, "<u2" if spool.code == "H" else "<u4")
        out.create_dataset("document_offsets", data=numpy.array(spool.offsets, "<i8"))
        if spool.masked:
            fill("loss_mask", spool.mask, "u1")
        out.attrs["format_version"] = numpy.int64(1)
        out.attrs["vocab_size"] = numpy.int64(spool.vocab_size)
        out.attrs["eos_id"] = numpy.int64(eos_id)
        out.attrs["tokenizer"] = numpy.bytes_("huggingface")
        out.attrs["tokenizer_hash"] = numpy.bytes_(digest)
    with open(part, "rb") as done:
        os.fsync(done.fileno())
    part.rename(path)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokenizer", required=True, type=pathlib.Path, help="a tokenizer.json")
    parser.add_argument("--output", required=True, type=pathlib.Path, help="the token file to write")
    parser.add_argument("--eos", help="the token that ends a document, where its name is none of the usual ones")
    parser.add_argument("inputs", nargs="+", metavar="INPUT")
    options = parser.parse_args()
    try:
        import h5py  # noqa: F401
        from tokenizers import Tokenizer
    except ImportError as missing:
        sys.exit(f"prepare_hf.py: {missing}: pip install tokenizers h5py")
    tokenizer = Tokenizer.from_file(str(options.tokenizer))
    tokenizer.no_padding()
    tokenizer.no_truncation()
    found = [i for i in map(tokenizer.token_to_id, [options.eos] if options.eos else ENDS) if i is not None]
    if not found:
        sys.exit(f"{options.tokenizer}: no token {options.eos or 'known to end a document'}: name one by --eos TOKEN")
    spool = Spool(options.output.parent, max(tokenizer.get_vocab(with_added_tokens=True).values()) + 1)
    waiting = []

    def encode():
        texts = [d for d, _ in waiting if isinstance(d, str)]
        done = iter(tokenizer.encode_batch(texts, add_special_tokens=False))
        for document, where in waiting:
            if isinstance(document, str):
                ids = next(done).ids + found[:1]
                spool.add(ids, [1] * len(ids), where)
            else:
                spool.add(*document, where)
        waiting.clear()

    for document, where in documents(options.inputs, options.output):
        if document:
            waiting.append((document, where))
        if len(waiting) == BATCH:
            encode()
    encode()
    write(options.output, spool, found[0], hashlib.sha256(options.tokenizer.read_bytes()).hexdigest()[:16])
    print(f"{options.output}: {len(spool.offsets) - 1} documents, {spool.offsets[-1]} tokens, vocabulary {spool.vocab_size}")


if __name__ == "__main__":
    main()
