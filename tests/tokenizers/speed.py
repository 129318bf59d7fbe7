#!/usr/bin/env python3
"""speed.py BINARY MEGABYTES TOKENIZER.json: MB/s of `switchyard tokenizer encode` on one core, of `switchyard prepare` on all, and of
the tokenizers wheel (batch encoding on all cores), in turn, ROUNDS rounds in one run, on source code and on prose in many scripts.
Start-up and reading the tokenizer file are taken off ours. A core's figures are of processor time; the ratio of all cores is by the clock, the
median of the rounds' and their range."""
import json
import os
import pathlib
import random
import resource
import statistics
import subprocess
import sys
import sysconfig
import tempfile
import time

from tokenizers import Tokenizer

import texts

ROUNDS = 5

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


def ours(*command):
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.time()
    subprocess.run([binary, *command], stdout=subprocess.DEVNULL, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, time.time() - start


def encode(file):
    return ours("tokenizer", "encode", "--tokenizer", path, file)


def prepare(file):
    return ours("prepare", "--tokenizer", path, "--output", file + ".h5", file)


def wheel(documents):
    cpu, start = time.process_time(), time.time()
    theirs.encode_batch(documents, add_special_tokens=False)
    return time.process_time() - cpu, time.time() - start


for name, source in ("source code", code()), ("prose in 30 scripts", prose()):
    documents = list(some(source))
    size = sum(len(d.encode()) for d in documents) / 1e6
    with tempfile.TemporaryDirectory() as folder:
        whole, little = (os.path.join(folder, n) for n in ("whole.jsonl", "little.jsonl"))
        for file, texts_ in (whole, documents), (little, ["a"]):
            with open(file, "w") as out:
                out.writelines(json.dumps({"text": d}) + "\n" for d in texts_)
        rounds = [(encode(little), encode(whole), prepare(little), prepare(whole), wheel(documents)) for _ in range(ROUNDS)]
    core = statistics.median(b[0] - a[0] for a, b, *_ in rounds)
    theirs_core = statistics.median(w[0] for *_, w in rounds)
    all_cores = sorted(w[1] / (p[1] - q[1]) for _, _, q, p, w in rounds)
    print(f"{name}, {size:.1f} MB: a core, encode {size / core:.1f} MB/s, the wheel {size / theirs_core:.2f}, {theirs_core / core:.1f} times; "
          f"{os.cpu_count()} cores, prepare against the wheel's batch, {statistics.median(all_cores):.1f} times "
          f"({all_cores[0]:.1f} to {all_cores[-1]:.1f})", flush=True)
