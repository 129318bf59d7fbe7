#!/usr/bin/env python3
"""loss-curves.py FOLDER OUT.svg: draws FOLDER/FAMILY-PRECISION/metrics.jsonl of mixtral, deepseek_v2, deepseek_v3 in
fp32, bf16 and fp8: above the loss, below the distance of fp32 and fp8 from bf16. tests/cli/test_fp8_curves.sh makes
the runs in bf16 and fp8 (SWITCHYARD_CURVES=FOLDER), SWITCHYARD_FP32=1 those in fp32 too."""
import json
import sys

FAMILIES = {"mixtral": "Mixtral", "deepseek_v2": "DeepSeek-V2", "deepseek_v3": "DeepSeek-V3"}
COLOURS = {"fp32": "#777777", "bf16": "#1f6fb4", "fp8": "#d1495b"}
WIDTH, HIGH, LOW, GAP, MARGIN = 300, 190, 90, 26, 52
MEAN = 10  # steps a point stands for


def losses(folder, family, precision):
    with open(f"{folder}/{family}-{precision}/metrics.jsonl", encoding="utf-8") as lines:
        values = [json.loads(line)["loss"] for line in lines]
    return [sum(values[i:i + MEAN]) / MEAN for i in range(0, len(values) - MEAN + 1, MEAN)]


def line(values, low, high, x, y, height, colour):
    step = WIDTH / (len(values) - 1)
    points = " ".join(f"{x + i * step:.1f},{y + height * (high - min(max(v, low), high)) / (high - low):.1f}"
                      for i, v in enumerate(values))
    return f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="1.4"/>'


def text(x, y, words, anchor="middle", colour="#222222"):
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="{colour}">{words}</text>'


def frame(x, y, height, low, high, marks, form):
    parts = [f'<rect x="{x}" y="{y}" width="{WIDTH}" height="{height}" fill="none" stroke="#bbbbbb"/>']
    for mark in marks:
        at = y + height * (high - mark) / (high - low)
        parts.append(f'<line x1="{x}" x2="{x + WIDTH}" y1="{at:.1f}" y2="{at:.1f}" stroke="#e4e4e4"/>')
        parts.append(text(x - 4, at + 3, form.format(mark), "end"))
    return parts


def panel(folder, family, title, x):
    curves = {name: losses(folder, family, name) for name in COLOURS}
    top, below = 30, 30 + HIGH + GAP
    parts = [text(x + WIDTH / 2, 18, title)] + frame(x, top, HIGH, 2, 6, range(2, 7), "{:.0f}")
    parts += [line(values, 2, 6, x, top, HIGH, COLOURS[name]) for name, values in curves.items()]
    parts += frame(x, below, LOW, -1, 1, (-1, -0.25, 0.25, 1), "{:+.2f} %")
    for name in ("fp32", "fp8"):
        share = [100 * (a / b - 1) for a, b in zip(curves[name], curves["bf16"])]
        parts.append(line(share, -1, 1, x, below, LOW, COLOURS[name]))
    for i, name in enumerate(COLOURS):
        parts.append(text(x + WIDTH - 8, top + 16 + 14 * i, name, "end", COLOURS[name]))
    for step in (0, 100, 200, 300):
        parts.append(text(x + WIDTH * step / 300, below + LOW + 14, step))
    return parts


def main():
    folder, out = sys.argv[1:]
    width, height = MARGIN + len(FAMILIES) * (WIDTH + MARGIN), 30 + HIGH + GAP + LOW + 24
    parts = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="sans-serif" '
             f'font-size="10"><rect width="{width}" height="{height}" fill="#ffffff"/>']
    for i, (family, title) in enumerate(FAMILIES.items()):
        parts += panel(folder, family, title, MARGIN + i * (WIDTH + MARGIN))
    with open(out, "w", encoding="utf-8") as file:
        file.write("\n".join(parts + ["</svg>", ""]))


if len(sys.argv) != 3:
    sys.exit(__doc__)
main()
