#!/usr/bin/env python3
"""make.py FOLDER [TEKKEN.json]: small tokenizer.json files of every kind that Switchyard reads, texts.jsonl, and for each
NAME.ids what the tokenizers wheel makes of the texts, a line each; sentencepiece.model and .ids, of the sentencepiece wheel,
are Mixtral's kind (pairs of characters, bytes for what is unknown). With a Tekken file of mistral-common: just that one as
FOLDER/tekken.json, in full. Needs both wheels."""
import base64
import json
import pathlib
import random
import sys

import sentencepiece
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

import texts

TEKKEN = (r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|"
          r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|"
          r"\s*[\r\n]+|\s+(?!\S)|\s+")
LLAMA = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|%s| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+")
DEEPSEEK = ("[!\"#$%&'()*+,\\-./:;<=>?@\\[\\\\\\]^_`{|}~][A-Za-z]+|[^\r\n\\p{L}\\p{P}\\p{S}]?[\\p{L}\\p{M}]+| ?[\\p{P}\\p{S}]+[\r\n]*|"
            "\\s*[\r\n]+|\\s+(?!\\S)|\\s+")


def split(pattern, behavior="isolated", invert=False):
    return pre_tokenizers.Split(Regex(pattern), behavior, invert)


def kinds():
    """name: pre-tokenizers before ByteLevel, whether ByteLevel splits too, normalizer"""
    han = "[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+"
    yield "deepseek_v3", [split(r"\p{N}{1,3}"), split(han), split(DEEPSEEK)], False, normalizers.Sequence([])
    coder = [split(r"[\r\n]"), split(r"\s?\p{L}+"), split(r"\s?\p{P}+"), split("[\u4e00-\u9fa5\u0800-\u4e00\uac00-\ud7ff]+")]
    yield "deepseek_coder", coder + [pre_tokenizers.Digits(individual_digits=True)], False, None
    yield "tekken", [split(TEKKEN)], False, None
    yield "llama3", [split(LLAMA % r"\p{N}{1,3}", "removed", True)], False, None
    yield "qwen2", [split(LLAMA % r"\p{N}")], False, normalizers.NFC()
    yield "gpt2", [pre_tokenizers.Digits(individual_digits=False)], True, None


def make_texts():
    rng = random.Random(7)
    code = "for (int i = 0; i < 10; i++) {\n\tprintf(\"%d\\n\", x[i]);\n}\r\n    return a->b ? 0x1F : 3.14e-5;  // done\n"
    english = "The switchyard's 42 tracks: don't I'LL we've 1234567 cars, \"quoted\" (and) so on...\n\n  Two  spaces\t\ttabs. "
    prose = [texts.script_document(rng, name, 60) for name in texts.SCRIPTS]
    return ["", " ", "\n", code, english] + prose + ["".join(texts.ODD)] + [texts.random_string(rng) for _ in range(40)]


def make_small(folder):
    cases = make_texts()
    rng = random.Random(3)
    corpus = cases[:5] * 40 + [texts.script_document(rng, name, 1500) for name in ("latin", "greek", "cyrillic", "han", "hangul", "arabic")]
    with open(folder / "texts.jsonl", "w", encoding="ascii") as out:
        out.writelines(json.dumps({"text": text}) + "\n" for text in cases)
    for name, steps, regex, normalizer in kinds():
        tokenizer = Tokenizer(models.BPE(ignore_merges=name == "llama3"))
        if normalizer is not None:
            tokenizer.normalizer = normalizer
        steps = steps + [pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=regex)]
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence(steps)
        tokenizer.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(vocab_size=700, special_tokens=["<s>", "<|endoftext|>"], show_progress=False,
                                      initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
        tokenizer.train_from_iterator(corpus, trainer)
        tokenizer.add_special_tokens(["<｜User｜>", "</s>"])
        tokenizer.add_tokens([AddedToken("<think>", normalized=True), AddedToken("[INST]", normalized=False), AddedToken("[INST", normalized=True)])
        path = folder / f"{name}.json"
        tokenizer.save(str(path), pretty=False)
        with open(folder / f"{name}.ids", "w", encoding="ascii") as out:
            for encoding in Tokenizer.from_file(str(path)).encode_batch(cases, add_special_tokens=False):
                out.write(",".join(map(str, encoding.ids)) + "\n")


def make_model(folder):
    cases = [json.loads(line)["text"] for line in open(folder / "texts.jsonl")]
    lines = [line for text in cases[:9] for line in text.split("\n") if line.strip()]
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines * 5), model_prefix=str(folder / "sentencepiece"), model_type="bpe", vocab_size=600,
        byte_fallback=True, character_coverage=0.98, split_digits=True, normalization_rule_name="identity",
        remove_extra_whitespaces=False, allow_whitespace_only_pieces=True, minloglevel=2)
    (folder / "sentencepiece.vocab").unlink()
    model = sentencepiece.SentencePieceProcessor(model_file=str(folder / "sentencepiece.model"))
    with open(folder / "sentencepiece.ids", "w", encoding="ascii") as out:
        out.writelines(",".join(map(str, ids)) + "\n" for ids in model.encode(cases))


def convert_tekken(folder, path):
    """Ranks of byte strings become merges: of every way to cut a token in two, those whose parts are tokens."""
    tekken = json.load(open(path))
    specials = tekken["config"]["default_num_special_tokens"]
    ranked = [base64.b64decode(v["token_bytes"]) for v in tekken["vocab"][:tekken["config"]["default_vocab_size"] - specials]]
    rank = {token: i for i, token in enumerate(ranked)}
    alphabet = dict(zip(sorted(range(256), key=lambda b: (b not in PRINTABLE, b)), ALPHABET))
    spell = {token: "".join(alphabet[b] for b in token) for token in ranked}
    merges = []
    for token in ranked:
        parts = [(token[:i], token[i:]) for i in range(1, len(token)) if token[:i] in rank and token[i:] in rank]
        merges += sorted(parts, key=lambda p: (rank[p[0]], rank[p[1]]))
    named = ["<unk>", "<s>", "</s>", "[INST]", "[/INST]"]
    vocab = {f"<SPECIAL_{i}>" if i >= len(named) else named[i]: i for i in range(specials)}
    tokenizer = Tokenizer(models.BPE(vocab={**vocab, **{spell[t]: specials + i for i, t in enumerate(ranked)}},
                                     merges=[(spell[a], spell[b]) for a, b in merges], ignore_merges=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split(tekken["config"]["pattern"]), pre_tokenizers.ByteLevel(False, use_regex=False)])
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(list(vocab))
    tokenizer.save(str(folder / "tekken.json"), pretty=False)


PRINTABLE = set(range(0x21, 0x7F)) | set(range(0xA1, 0xAD)) | set(range(0xAE, 0x100))
ALPHABET = [chr(b) for b in sorted(PRINTABLE)] + [chr(0x100 + i) for i in range(256 - len(PRINTABLE))]
target = pathlib.Path(sys.argv[1])
target.mkdir(parents=True, exist_ok=True)
if len(sys.argv) > 2:
    convert_tekken(target, sys.argv[2])
else:
    make_small(target)
    make_model(target)
