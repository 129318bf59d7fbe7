#!/usr/bin/env python3
"""compare_train.py BINARY MEGABYTES FOLDER: `switchyard tokenizer train` learns the merges that the tokenizers wheel's BpeTrainer
learns from the same text, for every pattern; the files stay in FOLDER as trained-PATTERN.json."""
import json
import pathlib
import subprocess
import sys

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

import texts

SIZE = 3000
binary, megabytes, folder = sys.argv[1], float(sys.argv[2]), pathlib.Path(sys.argv[3])
documents = list(texts.documents(5, megabytes, 0))
corpus = folder / "train.jsonl"
corpus.write_text("".join(json.dumps({"text": d}) + "\n" for d in documents))
good = True
for pattern in "deepseek-v3", "llama3", "qwen2", "gpt2":
    path = str(folder / f"trained-{pattern}.json")
    subprocess.run([binary, "tokenizer", "train", "--vocab-size", str(SIZE), "--pattern", pattern, "--output", path, str(corpus)], check=True)
    ours = Tokenizer.from_file(path)
    theirs = Tokenizer(models.BPE())
    theirs.pre_tokenizer, theirs.decoder = ours.pre_tokenizer, decoders.ByteLevel()
    theirs.train_from_iterator(documents, trainers.BpeTrainer(
        vocab_size=SIZE, min_frequency=2, special_tokens=["<|endoftext|>"], show_progress=False, initial_alphabet=pre_tokenizers.ByteLevel.alphabet()))
    a, b = (json.loads(t.to_str())["model"] for t in (ours, theirs))
    same = a["merges"] == b["merges"] and a["vocab"] == b["vocab"]
    print(f"{pattern}: {len(a['merges'])} merges, the wheel's {len(b['merges'])}: {'the same' if same else 'others'}", flush=True)
    good = good and same and len(a["merges"]) > 2000
sys.exit(not good)
