#!/usr/bin/env python3
"""The pictures of docs/parallelism.md: ranks and their groups, and pipelines as `plan` plays them.

    python3 scripts/parallelism-pictures.py build/switchyard docs
"""
import json
import os
import subprocess
import sys
import tempfile

BLUE, GREEN, OCHRE, GREY, RED = "#9cc3e6", "#a9d18e", "#f4c96b", "#e4e4e4", "#e8998d"


class Picture:
    def __init__(self, width, height):
        self.width, self.height, self.parts = width, height, []

    def box(self, x, y, w, h, fill, text="", size=9, stroke="#555555"):
        self.parts.append(f'<rect x="{x:.1f}" y="{y:.1f}" width="{w:.1f}" height="{h:.1f}" fill="{fill}" '
                          f'stroke="{stroke}" stroke-width="0.5"/>')
        if text:
            self.text(x + w / 2, y + h / 2 + size * 0.35, text, "middle", size)

    def text(self, x, y, text, anchor="start", size=10):
        text = text.replace("&", "&amp;")
        self.parts.append(f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-size="{size}" '
                          f'fill="#222222">{text}</text>')

    def write(self, path):
        with open(path, "w") as file:
            file.write(f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {self.width} {self.height}" '
                       f'font-family="sans-serif"><rect width="{self.width}" height="{self.height}" fill="#ffffff"/>\n')
            file.write("\n".join(self.parts) + "\n</svg>\n")


def ranks_picture(path, ranks=4, experts=8):
    """One row for each ep: what a rank has of dense weights, experts and optimizer state."""
    picture = Picture(640, 322)
    for row, ep in enumerate((1, 2, 4)):
        top = 22 + row * 100
        edp, each = ranks // ep, experts // ep
        picture.text(8, top - 6, f"parallel.ep {ep}: dp {ranks}, edp {edp}", size=11)
        for rank in range(ranks):
            left = 8 + rank * 157
            picture.box(left, top, 150, 72, "#ffffff")
            picture.text(left + 5, top + 12, f"rank {rank}: micro-batches {rank}, {rank + ranks}, ...", size=9)
            picture.box(left + 5, top + 17, 140, 14, BLUE, "dense weights: all")
            for e in range(experts):
                mine = e // each == rank % ep
                picture.box(left + 5 + e * 17.5, top + 34, 17.5, 14, GREEN if mine else GREY, f"{e}" if mine else "")
            for part in range(ranks):
                picture.box(left + 5 + part * 17.5, top + 51, 17.5, 14, OCHRE if part == rank else GREY)
            for part in range(edp):
                picture.box(left + 75 + part * 70 / edp, top + 51, 70 / edp, 14, RED if part == rank // ep else GREY)
    picture.text(8, 317, "blue: on every rank. green: experts here. ochre, red: this rank's share of the optimizer state "
                 "of dense weights, of its experts", size=9)
    picture.write(path)


SCHEDULES = [("1f1b", 1, "1f1b"), ("1f1b", 2, "1f1b, virtual_stages 2 (interleaved)"), ("zero_bubble", 1, "zero_bubble"),
             ("dualpipe", 1, "dualpipe"), ("dualpipe_v", 1, "dualpipe_v")]


def play(switchyard, pipeline, virtual):
    """The trace of a step of 8 micro-batches on 4 ranks."""
    with tempfile.TemporaryDirectory() as folder:
        trace = os.path.join(folder, "step.json")
        subprocess.run([switchyard, "plan", os.path.join(os.path.dirname(__file__), "../configs/mixtral-8x7b.yaml"),
                        "parallel.ep=1", "parallel.pp=4", "train.micro_batch=1", "train.global_batch=8", "cluster.nodes=1",
                        "cluster.gpus_per_node=4", "cluster.gpu=h100", f"parallel.schedule={pipeline}",
                        f"parallel.virtual_stages={virtual}", "--timeline", trace], check=True, stdout=subprocess.DEVNULL)
        with open(trace) as file:
            return [event for event in json.load(file) if event["ph"] == "X" and event["cat"] != "wait"]


def slice_of(picture, event, left, y, scale):
    args, first, two = event["args"], event["args"]["part"] == 0, event["cat"] == "F&B"
    x, w = left + event["ts"] * scale, event["dur"] * scale
    colors = {"F": BLUE if first else "#d3e5f5", "B": GREEN if first else "#d5ecc8", "I": "#c9e3b6", "W": OCHRE}
    if two:
        other = args["back_part"] == 0
        picture.box(x, y, w, 9, colors["F"], str(args["micro_batch"]), 7)
        picture.box(x, y + 9, w, 9, GREEN if other else "#d5ecc8", str(args["back_micro_batch"]), 7)
    else:
        picture.box(x, y, w, 18, colors[event["cat"]], str(args["micro_batch"]), 8)


def pipeline_picture(path, switchyard):
    traces = [play(switchyard, name, virtual) for name, virtual, _ in SCHEDULES]
    longest = max(e["ts"] + e["dur"] for trace in traces for e in trace)
    picture, left = Picture(1000, 20 + 104 * len(SCHEDULES)), 40
    scale = (1000 - left - 8) / longest
    for row, (trace, (_, _, title)) in enumerate(zip(traces, SCHEDULES)):
        top = 18 + row * 104
        picture.text(8, top - 4, title, size=11)
        for rank in range(4):
            y = top + rank * 20
            picture.text(8, y + 13, f"rank {rank}", size=9)
            picture.box(left, y, longest * scale, 18, "#f7f7f7", stroke="none")
            for event in trace:
                if event["tid"] == rank:
                    slice_of(picture, event, left, y, scale)
    picture.text(8, picture.height - 8, "blue: forward, green: backward (paler: the rank's second stage), ochre: gradients of "
                 "weights put off, halves above each other: a pair; numbers: micro-batches", size=10)
    picture.write(path)


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    ranks_picture(os.path.join(sys.argv[2], "parallelism-ranks.svg"))
    pipeline_picture(os.path.join(sys.argv[2], "parallelism-pipeline.svg"), sys.argv[1])
