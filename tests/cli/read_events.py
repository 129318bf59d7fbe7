#!/usr/bin/env python3
"""read_events.py RUN_DIR: TensorBoard's event files, read with the standard library, say what metrics.jsonl says.

Frames, checksums and messages are decoded here from the formats' public descriptions, not from the program.
"""
import glob
import json
import struct
import sys


def crc32c(data):
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    crc ^= 0xFFFFFFFF
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def frames(path):
    data, at = open(path, "rb").read(), 0
    while at < len(data):
        head = data[at:at + 8]
        (length,), (crc,) = struct.unpack("<Q", head), struct.unpack("<I", data[at + 8:at + 12])
        body = data[at + 12:at + 12 + length]
        (body_crc,) = struct.unpack("<I", data[at + 12 + length:at + 16 + length])
        assert crc == crc32c(head) and body_crc == crc32c(body), f"{path}: bad checksum at {at}"
        at += 16 + length
        yield body


def varint(data, at):
    value = shift = 0
    while True:
        byte = data[at]
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return value, at


def fields(data):
    at, found = 0, {}
    while at < len(data):
        key, at = varint(data, at)
        if key & 7 == 0:
            value, at = varint(data, at)
        elif key & 7 == 1:
            value, at = struct.unpack("<d", data[at:at + 8])[0], at + 8
        elif key & 7 == 2:
            length, at = varint(data, at)
            value, at = data[at:at + length], at + length
        else:
            value, at = struct.unpack("<f", data[at:at + 4])[0], at + 4
        found.setdefault(key >> 3, []).append(value)
    return found


def doubles(data):
    return struct.unpack(f"<{len(data) // 8}d", data)


run = sys.argv[1]
lines = [json.loads(line) for line in open(f"{run}/metrics.jsonl")]
scalars, histograms, texts, starts = {}, {}, {}, []
paths = sorted(glob.glob(f"{run}/tensorboard/events.out.tfevents.*"))
assert len(paths) == 2, paths  # one of each start
for path in paths:
    events = [fields(frame) for frame in frames(path)]
    assert events[0][3] == [b"brain.Event:2"], events[0]
    for event in events[1:]:
        step = event[2][0]
        if 7 in event:
            assert fields(event[7][0])[1] == [1]
            starts.append(step)
        for value in map(fields, fields(event[5][0])[1] if 5 in event else []):
            tag = value[1][0].decode()
            if 2 in value:
                scalars[tag, step] = value[2][0]
            elif 5 in value:
                histograms[tag, step] = fields(value[5][0])
            else:
                assert fields(fields(value[9][0])[1][0])[1] == [b"text"]
                texts[step] = fields(value[8][0])[8][0].decode()
assert starts == [1, 9], starts
names = {"loss/train": "loss", "loss/valid": "valid_loss", "loss/balance": "aux_loss", "loss/mtp": "mtp_loss",
         "optimizer/grad_norm": "grad_norm", "optimizer/lr": "lr", "speed/tokens_per_s": "tokens_per_s",
         "speed/mfu": "mfu", "speed/step_ms": "step_ms", "experts/dropped_fraction": "dropped_fraction",
         "experts/extra_rounds": "extra_rounds"}
for line in lines:
    for tag, name in names.items():
        want, got = line[name], scalars.get((tag, line["step"]))
        same = got is None if want is None else abs(got - want) <= 2e-5 * abs(want)
        assert same, (line["step"], tag, want, got)
    for block, load in enumerate(line["expert_load"]):
        h = histograms[f"expert_load/block_{block:03d}", line["step"]]
        limits, counts = doubles(h[6][0]), doubles(h[7][0])
        assert h[3] == [8.0] and sum(counts) == 8, h  # as many as there are experts
        assert abs(h[2][0] - load) < 1e-5 * load and abs(limits[-1] - load) < 1e-5 * load, (h, load)
        assert abs(h[4][0] - 8) < 1e-9, h  # shares of the mean
sample = open(f"{run}/samples.txt", encoding="utf-8", errors="replace").read()
assert sorted(texts) == [8, 16] and all(text.startswith("    ") for text in texts.values()), texts
assert all(text[4:].split("\n")[0] in sample for text in texts.values()), texts
print(f"{2 * len(lines)} frames of steps" if len(histograms) == 3 * len(lines) else histograms.keys())
