#!/usr/bin/env python3
"""speed.py BINARY MEGABYTES TOKENIZER.json: MB/s of `switchyard tokenizer encode` on one core and of the tokenizers wheel (batch
encoding on all cores), in turn in one run, on source code and on prose in many scripts. Times are of the processor, start-up
and reading the tokenizer file taken off; the wheel's also by the clock."""
import json
import os
import pathlib
import random
import resource
import subprocess
import sys
import sysconfig
import tempfile
import time

from tokenizers import Tokenizer

import texts

binary, megabytes, path = sys.argv[1], float(sys.argv[2]), sys.argv[3]
theirs = Tokenizer.from_file(path)


def code():
    for file in sorted(pathlib.Path(sysconfig.get_path("stdlib")).rglob("*.py")):
        yield file.read_text(encoding="utf-8", errors="replace")


def prose(rng=random.Random(1)):
    for name in list(texts.SCRIPTS) * 1000:
        yield texts.script_document(rng, name, 8000)


def some(source):
    left = megabytes * 1e6
    for text in source:
        if left < 0:
            return
        left -= len(text.encode())
        yield text


def ours(file):
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.time()
    subprocess.run([binary, "tokenizer", "encode", "--tokenizer", path, file], stdout=subprocess.DEVNULL, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, time.time() - start


def wheel(documents):
    cpu, start = time.process_time(), time.time()
    theirs.encode_batch(documents, add_special_tokens=False)
    return time.process_time() - cpu, time.time() - start


for name, source in ("source code", code()), ("prose in 30 scripts", prose()):
    documents = list(some(source))
    size = sum(len(d.encode()) for d in documents) / 1e6
    with tempfile.NamedTemporaryFile("w", suffix=".jsonl") as file, tempfile.NamedTemporaryFile("w", suffix=".jsonl") as empty:
        file.writelines(json.dumps(d) + "\n" for d in documents)
        file.flush()
        rounds = [(ours(empty.name), ours(file.name), wheel(documents)) for _ in range(3)]
    mine = min(b[0] - a[0] for a, b, _ in rounds)
    clock = min(b[1] - a[1] for a, b, _ in rounds)
    per_core, all_cores = (min(w[i] for *_, w in rounds) for i in (0, 1))
    print(f"{name}, {size:.1f} MB: ours {size / mine:.1f} MB/s a core ({size / clock:.1f} by the clock); the wheel {size / per_core:.2f} MB/s a core, "
          f"{size / all_cores:.2f} by the clock on {os.cpu_count()} cores; {per_core / mine:.1f} times a core", flush=True)
