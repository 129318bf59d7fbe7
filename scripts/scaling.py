#!/usr/bin/env python3
"""How the time of a token grows with experts, sequence length and layers; for docs/benchmarks.md.

    python3 scripts/scaling.py build/switchyard [--steps N] [--svg docs/scaling.svg] [--only experts,sequence,layers]

A Mixtral of width 512 (8 query and 2 key/value heads, experts of width 256, vocabulary 8192), bf16, micro-batches of
8192 tokens, routing forced balanced, by `bench`. Printed as a table: microseconds a token of forward and backward, of
them in attention and in all else, and of the optimizer, which sees every weight once a step, however few tokens a step has.
"""
import argparse
import json
import os
import subprocess

CONFIG = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "configs", "bench-mixtral.yaml")
BASE = {"run.dir": "runs/scaling", "model.vocab_size": 8192, "model.hidden_size": 512,
        "model.intermediate_size": 256, "model.num_hidden_layers": 4, "model.num_attention_heads": 8,
        "model.num_key_value_heads": 2, "model.num_local_experts": 8, "model.num_experts_per_tok": 2,
        "train.precision": "bf16"}
TOKENS = 8192
SWEEPS = {"experts": ("model.num_local_experts", [8, 16, 32, 64, 128, 256]),
          "sequence": ("train.sequence_length", [512, 1024, 2048, 4096, 8192]),
          "layers": ("model.num_hidden_layers", [2, 4, 8, 16])}
ATTENTION = ("attention", "attention_backward")


def measure(binary, steps, change):
    """Microseconds a token: of all but the optimizer, of attention, of the optimizer."""
    settings = {**BASE, "train.sequence_length": 512, **change}
    batch = TOKENS // settings["train.sequence_length"]
    settings.update({"train.micro_batch": batch, "train.global_batch": batch})
    words = [f"{key}={value}" for key, value in settings.items()]
    result = json.loads(subprocess.run([binary, "bench", CONFIG, "--json", "--warmup", "1", "--steps", str(steps), *words], check=True, capture_output=True, text=True).stdout)
    phase = result["balanced"]["phase_ms"]
    attention = sum(result["roofline"][family]["ms"] for family in ATTENTION)
    each = 1e3 / TOKENS
    return {"all": phase["forward_backward"] * each, "attention": attention * each,
            "rest": (phase["forward_backward"] - attention) * each,
            "optimizer": (phase["optimizer"] + phase["reduce"]) * each, "parameters": result["parameters"] / 1e6}


def sweep(binary, steps, name):
    key, values = SWEEPS[name]
    print(f"\n| {name} | parameters, M | us a token | attention | all else | optimizer |\n|---|---|---|---|---|---|")
    rows = []
    for value in values:
        row = measure(binary, steps, {key: value})
        rows.append((value, row))
        print(f"| {value} | {row['parameters']:.0f} | {row['all']:.1f} | {row['attention']:.2f} | {row['rest']:.1f} | "
              f"{row['optimizer']:.1f} |", flush=True)
    return rows


def panel(name, rows, left):
    """Bars: attention over all else, the optimizer beside them."""
    width, height, top = 200, 150, 30
    most = max(row["all"] for _, row in rows) * 1.1
    step = width / len(rows)
    parts = [f'<text x="{left + width / 2}" y="16" text-anchor="middle" font-size="12">{name}</text>',
             f'<text x="{left - 4}" y="{top + 4}" text-anchor="end" font-size="9">{most:.0f} us</text>',
             f'<line x1="{left}" y1="{top}" x2="{left}" y2="{top + height}" stroke="#555"/>',
             f'<line x1="{left}" y1="{top + height}" x2="{left + width}" y2="{top + height}" stroke="#555"/>']
    for i, (value, row) in enumerate(rows):
        x, bottom = left + i * step + step * 0.15, top + height
        for part, fill in (("rest", "#9cc3e6"), ("attention", "#f4c96b")):
            tall = row[part] / most * height
            bottom -= tall
            parts.append(f'<rect x="{x:.1f}" y="{bottom:.1f}" width="{step * 0.7:.1f}" height="{tall:.1f}" fill="{fill}"/>')
        parts.append(f'<text x="{x + step * 0.35:.1f}" y="{top + height + 12}" text-anchor="middle" font-size="9">{value}</text>')
    return parts


def picture(path, tables):
    parts = []
    for i, (name, rows) in enumerate(tables.items()):
        parts += panel(name, rows, 50 + i * 270)
    width = 50 + 270 * len(tables)
    parts.append('<text x="50" y="214" font-size="10">microseconds a token, forward and backward: blue all but attention, '
                 'ochre attention</text>')
    with open(path, "w") as file:
        file.write(f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} 222" font-family="sans-serif">'
                   f'<rect width="{width}" height="222" fill="#ffffff"/>\n' + "\n".join(parts) + "\n</svg>\n")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("binary")
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--svg", default="")
    parser.add_argument("--only", default=",".join(SWEEPS))
    args = parser.parse_args()
    tables = {name: sweep(args.binary, args.steps, name) for name in args.only.split(",")}
    if args.svg:
        picture(args.svg, tables)


if __name__ == "__main__":
    main()
