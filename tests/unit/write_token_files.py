#!/usr/bin/env python3
"""write_token_files.py: files of Megatron-LM and llm.c in the working directory, by their published descriptions, good and
bad; cases.txt says of each: name, what the error says ("-": a good one), its tokens, where its documents begin and end."""
from struct import pack

TYPES = {1: "B", 2: "b", 3: "h", 4: "i", 5: "q", 8: "H"}
cases = open("cases.txt", "w")


def case(name, error, tokens=(), ends=()):
    print(name, error, ",".join(map(str, tokens)), ",".join(map(str, ends)), sep="\t", file=cases)


def megatron(name, code, sequences, documents, error="-", version=1, magic=b"MMIDIDX\0\0", spare=b"", cut=0, shift=0, short=0, data=True):
    tokens = [t for s in sequences for t in s]
    starts = [sum(map(len, sequences[:i])) for i in range(len(sequences) + 1)]
    letter = TYPES.get(code, "f")
    width = len(pack(letter, 0))
    index = magic + pack("<QBQQ", version, code, len(sequences), len(documents))
    index += b"".join(pack("<i", len(s)) for s in sequences)
    index += b"".join(pack("<q", width * s + (shift if i == 1 else 0)) for i, s in enumerate(starts[:-1]))
    index += b"".join(pack("<q", d) for d in documents) + spare
    open(name + ".idx", "wb").write(index[:len(index) - cut])
    if data:
        body = b"".join(pack("<" + letter, t) for t in tokens)
        open(name + ".bin", "wb").write(body[:len(body) - short])
    good = error == "-"
    case(name + ".bin", error, tokens if good else (), [starts[d] for d in documents] if good else ())
    return name, tokens, [starts[d] for d in documents] if good else ()


def llmc(name, magic, version, letter, tokens, ends, error="-", count=None, header=1024):
    head = pack("<3i", magic, version, len(tokens) if count is None else count).ljust(header, b"\0")
    open(name, "wb").write(head + b"".join(pack("<" + letter, t) for t in tokens))
    case(name, error, tokens if error == "-" else (), ends)


plain = [[1, 2, 3], [4, 5], [], [6]]
for code in TYPES:
    largest = {1: 255, 2: 127, 3: 32767, 8: 65535}.get(code, 70000)
    name, tokens, ends = megatron(f"type{code}", code, [[1, largest, 3], [4, 5], [], [6]], [0, 1, 3, 4])
    case(name + ".idx", "-", tokens, ends)
    case(name, "-", tokens, ends)  # the name that both share
megatron("one", 4, [[7]], [0, 1])
megatron("sentences", 8, [[1], [2, 3], [4], [5]], [0, 2, 4])
megatron("empty-document", 8, plain, [0, 0, 2, 4])
megatron("dots.in.name", 8, plain, [0, 4])
megatron("floats", 7, plain, [0, 4], "floats.idx: type 7 of the tokens")
megatron("doubles", 6, plain, [0, 4], "doubles.idx: type 6")
megatron("type0", 0, plain, [0, 4], "type0.idx: type 0")
megatron("type9", 9, plain, [0, 4], "type9.idx: type 9")
megatron("newer", 8, plain, [0, 4], "newer.idx: version 2", version=2)
megatron("old", 8, plain, [0, 4], "old.bin: not a whole HDF5 file", magic=b"TNTIDX\0\0\0")
megatron("modes", 8, plain, [0, 4], "modes of a multimodal", spare=bytes(4))
megatron("longer", 8, plain, [0, 4], "longer.idx: 7 bytes too many", spare=bytes(7))
megatron("cut", 8, plain, [0, 4], "cut.idx: 4 sequences and 2 document indices do not fit", cut=1)
megatron("cut-header", 8, plain, [0, 4], "cut-header.idx: not the index", cut=34 + 12 * 4 + 16 - 33)
megatron("moved", 8, plain, [0, 4], "moved.idx: sequence 1 does not lie", shift=2)
megatron("short", 8, plain, [0, 4], "short.bin: 10 bytes, but short.idx says 6 tokens of 2 bytes", short=2)
megatron("odd", 8, plain, [0, 4], "odd.bin: 11 bytes", short=1)
megatron("alone", 8, plain, [0, 4], "alone.bin", data=False)
megatron("late", 8, plain, [1, 4], "late.idx: its document indices")
megatron("early", 8, plain, [0, 3], "early.idx: its document indices")
megatron("back", 8, plain, [0, 3, 2, 4], "back.idx: its document indices")
megatron("no-documents", 8, plain, [0], "no-documents.idx: its document indices")
megatron("nothing", 8, [], [0], "nothing.bin")
megatron("negative", 4, [[1, -5]], [0, 1], "negative.bin: a token id is negative or above 2147483647")
megatron("negative8", 2, [[1, -5]], [0, 1], "negative8.bin: a token id is negative or above 127")
megatron("huge", 5, [[1, 1 << 40]], [0, 1], "huge.bin: a token id is negative or above")
index = b"MMIDIDX\0\0" + pack("<QBQQ", 1, 8, 1 << 62, 1 << 62) + bytes(64)  # counts that overflow
open("many.idx", "wb").write(index)
case("many.idx", "many.idx: 4611686018427387904 sequences")
index = b"MMIDIDX\0\0" + pack("<QBQQ", 1, 8, 2, 2) + pack("<2i2q2q", -1, 2, 0, -2, 0, 2)
open("minus.idx", "wb").write(index)
case("minus.idx", "minus.idx: sequence 0 does not lie")
open("beyond.idx", "wb").write(b"MMIDIDX\0\0" + pack("<QBQQ", 1, 8, 1, 2) + pack("<iq2q", 1, 0, 0, 9))
open("beyond.bin", "wb").write(pack("<H", 5))
case("beyond.bin", "beyond.idx: its document indices")

eot, bot = 50256, 128000
llmc("gpt2.bin", 20240520, 1, "H", [eot, 5, 6, eot, 7, eot], [0, 3, 5, 6])
llmc("no-begin.bin", 20240520, 1, "H", [5, 6, eot, 7], [0, 2, 4])
llmc("one-document.any", 20240520, 1, "H", [5, 6, 7], [0, 3])
llmc("llama3.bin", 20240801, 7, "I", [bot, 5, 127999, bot, 7], [0, 3, 5])
llmc("questions.bin", 20240522, 1, "H", [65535, 4], [], "questions.bin: llm.c's multiple-choice questions")
llmc("version.bin", 20240520, 2, "H", [1, 2], [], "version.bin: version 2")
llmc("version7.bin", 20240801, 1, "I", [1, 2], [], "version7.bin: version 1")
llmc("fewer.bin", 20240520, 1, "H", [1, 2], [], "fewer.bin: 1028 bytes, but its header says 3 tokens", count=3)
llmc("more.bin", 20240520, 1, "H", [1, 2], [], "more.bin: 1028 bytes, but its header says 1 tokens", count=1)
llmc("below-zero.bin", 20240520, 1, "H", [1, 2], [], "below-zero.bin: 1028 bytes", count=-1)
llmc("no-tokens.bin", 20240520, 1, "H", [], [], "no-tokens.bin: no tokens")
llmc("header.bin", 20240520, 1, "H", [], [], "header.bin: 12 bytes", header=12)
llmc("wide.bin", 20240801, 7, "I", [1, 1 << 31], [], "wide.bin: a token id is negative or above")
open("raw.bin", "wb").write(pack("<6H", 1, 2, 3, 4, 5, 6))
case("raw.bin", "raw.bin: not a whole HDF5 file, nor Megatron's .bin with its .idx")
