#!/usr/bin/env python3
"""read_report.py PAGE RUN_DIR...: every chart of the page has its axes, lines and legend, and the page needs nothing
from elsewhere. Lines are held against metrics.jsonl."""
import json
import re
import sys
from html.parser import HTMLParser

VOID = {"meta", "line", "path", "rect", "circle", "br", "link", "img"}


class Page(HTMLParser):
    def __init__(self):
        super().__init__()
        self.stack, self.figures, self.text = [], [], []

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        assert tag not in ("script", "img", "link", "iframe"), tag
        for value in attrs.values():
            assert "http" not in (value or "") and "url(" not in (value or ""), attrs
        if tag == "figure":
            self.figures.append({"title": "", "axes": set(), "ticks": 0, "lines": [], "cells": 0, "legend": [],
                                 "bands": 0, "marks": 0})
        figure = self.figures[-1] if self.figures else None
        names = (attrs.get("class") or "").split()
        if "x-axis" in names or "y-axis" in names:
            figure["axes"].add(names[1])
        elif tag == "path" and names[0] == "line":
            figure["lines"].append(attrs["d"])
        elif tag == "path":
            figure["bands"] += 1
        elif tag == "rect":
            figure["cells"] += 1
        elif "mark" in names:
            figure["marks"] += 1
        elif tag == "text":
            figure["ticks"] += 1
        if tag not in VOID:
            self.stack.append(tag)

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self.stack and self.stack.pop() == tag, f"</{tag}> closes something else"

    def handle_data(self, data):
        self.text.append(data)
        if self.stack and self.stack[-1] == "figcaption":
            self.figures[-1]["title"] += data.strip()
        elif self.stack[-2:] == ["li", "span"]:
            self.figures[-1]["legend"].append(data)


def numbers(path):
    return [float(n) for n in re.findall(r"[-0-9.]+", path)]


runs = sys.argv[2:]
source = open(sys.argv[1], encoding="utf-8").read()
page = Page()
page.feed(source)
assert page.stack == [], page.stack
assert "@import" not in source and "prefers-color-scheme:dark" in source and "@media print" in source
charts = {figure["title"]: figure for figure in page.figures if figure["title"] not in ("Where the time goes", "Expert load")}
wanted = {"Training loss", "Validation loss", "Learning rate", "Gradient norm", "Throughput", "Memory",
          "Multi-token prediction loss", "Balance loss"} | ({"Dropped tokens"} if len(runs) > 1 else set())
assert wanted <= set(charts), wanted - set(charts)
for title, figure in charts.items():
    assert figure["axes"] == {"x-axis", "y-axis"} and figure["ticks"] >= 5, (title, figure)
    assert figure["legend"] == runs and len(figure["lines"]) == len(runs) == figure["bands"], (title, figure)
    assert figure["marks"] == 1, (title, figure)  # the first run was resumed once
for kind, parts in ("Where the time goes", "lines"), ("Expert load", "cells"):
    figures = [f for f in page.figures if f["title"] == kind]
    assert len(figures) == len(runs), kind
    for figure in figures:
        assert figure["axes"] == {"x-axis", "y-axis"} and len(figure["legend"]) >= 4, (kind, figure)
        assert (len(figure[parts]) if parts == "lines" else figure[parts]) >= 3, (kind, figure)
for run, line in zip(runs, charts["Training loss"]["lines"]):
    losses = [json.loads(text)["loss"] for text in open(f"{run}/metrics.jsonl")]
    y = numbers(line)[1::2]
    assert len(y) == len(losses), (len(y), len(losses))
    # The picture's height is a linear function of the loss: heights fall as losses rise.
    slope = (y[-1] - y[0]) / (losses[-1] - losses[0])
    assert slope < 0 and all(abs(y[0] + slope * (l - losses[0]) - h) < 0.2 for l, h in zip(losses, y)), run
text = " ".join(page.text)
if len(runs) > 1:
    assert "What differs in their configs" in text and "optimizer.lr" in text and "router.capacity_factor" in text
    assert "optimizer.beta1" not in text.split("What differs")[1].split("What they ran on")[0]
assert '"step":8' in text.replace(" ", ""), "the restart is not in the record"
print("all charts have axes, lines and legend")
