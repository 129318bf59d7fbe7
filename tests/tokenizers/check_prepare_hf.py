#!/usr/bin/env python3
"""check_prepare_hf.py BINARY PREPARE_HF.py TOKENIZER.json: the script's token files hold what `switchyard prepare` writes, for a file
that both read; for one that only the library reads, Switchyard trains on them and names the script where it is asked itself."""
import json
import pathlib
import subprocess
import sys
import tempfile

import h5py
from tokenizers import Tokenizer, models, pre_tokenizers, trainers

binary, script, path = (str(pathlib.Path(p).resolve()) for p in sys.argv[1:4])
CONFIG = """model: {family: mixtral, vocab_size: 3000, hidden_size: 32, intermediate_size: 48, num_hidden_layers: 1, num_attention_heads: 2,
  num_key_value_heads: 1, num_local_experts: 2, num_experts_per_tok: 1}
train: {sequence_length: 32, micro_batch: 1, global_batch: 2}
run: {dir: run, steps: 2, comm: self}
data: {train: other.h5}
"""


def run(*command, rc=0):
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == rc, (command, done)
    return done.stdout + done.stderr


with tempfile.TemporaryDirectory() as folder:
    base = pathlib.Path(folder)
    lines = [{"text": "one train, two trains: café 漢字"}, {"tokens": [3, 1, 2], "loss_mask": [0, 1, 1]}, {"text": ""}, {"text": "x" * 5000}]
    (base / "a.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (base / "texts").mkdir()
    (base / "texts" / "b.txt").write_text("some more text\n" * 300)
    inputs = [str(base / "a.jsonl"), str(base / "texts")]
    ours, theirs, other = (str(base / f"{name}.h5") for name in ("ours", "theirs", "other"))
    run(binary, "prepare", "--tokenizer", path, "--output", ours, *inputs)
    run(sys.executable, script, "--tokenizer", path, "--output", theirs, *inputs)
    with h5py.File(ours) as a, h5py.File(theirs) as b:
        for name in "tokens", "document_offsets", "loss_mask":
            assert a[name].dtype == b[name].dtype and a[name][()].tolist() == b[name][()].tolist(), name
        assert all(a.attrs[name] == b.attrs[name] for name in ("vocab_size", "eos_id", "format_version"))

    pieces = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    pieces.pre_tokenizer = pre_tokenizers.Whitespace()
    pieces.train_from_iterator(["some more text, one train"] * 9, trainers.WordPieceTrainer(vocab_size=90, special_tokens=["[UNK]", "[SEP]"], show_progress=False))
    wordpiece = str(base / "wordpiece.json")
    pieces.save(wordpiece)
    said = run(binary, "prepare", "--tokenizer", wordpiece, "--output", other, *inputs, rc=65)
    assert "scripts/prepare_hf.py" in said, said
    (base / "tiny.yaml").write_text(CONFIG)
    said = run(sys.executable, script, "--tokenizer", wordpiece, "--output", other, inputs[1])
    assert "1 documents" in said, said
    done = subprocess.run([binary, "train", "tiny.yaml"], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done
    said = run(sys.executable, script, "--tokenizer", wordpiece, "--output", other, "--eos", "none", inputs[1], rc=1)
    assert "--eos" in said, said
print("prepare_hf.py: token files as prepare's")
