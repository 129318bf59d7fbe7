#!/usr/bin/env python3
"""Switchyard and PyTorch's fastest variant on the same cores in the same minutes, for docs/benchmarks.md.

    peer/bin/python tests/peer/side_by_side.py build/switchyard --shape mixtral --dtype bf16 --preload $PWD/mkl_avx512.so

PyTorch is compiled and warmed once and then waits; pairs of a few steps of each follow, the order of a pair changing
from pair to pair. One line of JSON: medians, and of the pairs' ratios the median and range. --prefix: put before both
commands ("nice -n -5").
"""
import argparse
import json
import os
import shlex
import statistics
import subprocess
import sys

HERE = os.path.dirname(os.path.abspath(__file__))


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("binary")
    parser.add_argument("--shape", choices=["mixtral", "deepseek_v3"], default="mixtral")
    parser.add_argument("--dtype", choices=["bf16", "fp32"], default="bf16")
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--preload", default="", help="mkl_avx512.so, for PyTorch")
    parser.add_argument("--prefix", default="")
    return parser.parse_args()


def ours(args):
    config = os.path.join(HERE, "..", "..", "configs", f"bench-{args.shape.replace('_', '-')}.yaml")
    command = [*shlex.split(args.prefix), args.binary, "bench", config, "--learned", "--json", "--warmup", "1",
               "--steps", str(args.steps), f"train.precision={args.dtype}"]
    result = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    return {"tokens_per_s": result["learned"]["tokens_per_s"], "memory_mb": result["peak_memory_bytes"] >> 20,
            "share_of_fma": result["roofline"]["share_of_fma"], "fma": result["roofline"]["fma_flops"]}


class Peer:
    """PyTorch, waiting for lines."""

    def __init__(self, args):
        command = [*shlex.split(args.prefix), sys.executable, os.path.join(HERE, "train_step.py"), "--shape", args.shape,
                   "--dtype", args.dtype, "--steps", str(args.steps), "--experts", "grouped_mm", "--compile", "--serve"]
        environment = dict(os.environ, LD_PRELOAD=args.preload) if args.preload else None
        self.process = subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        while self.process.stdout.readline().strip() != "ready":
            if self.process.poll() is not None:
                sys.exit("side_by_side: PyTorch did not start")

    def run(self):
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        result = json.loads(self.process.stdout.readline())
        return {"tokens_per_s": result["tokens_per_s"], "memory_mb": result["peak_memory_mb"], "torch": result["torch"]}

    def close(self):
        self.process.stdin.close()
        self.process.wait()


def main():
    args = arguments()
    peer, mine, theirs = Peer(args), [], []
    for pair in range(args.pairs):
        if pair % 2 == 0:
            mine.append(ours(args))
        theirs.append(peer.run())
        if pair % 2 == 1:
            mine.append(ours(args))
        print(mine[-1], theirs[-1], file=sys.stderr, flush=True)
    peer.close()

    def median(rows, key):
        return statistics.median(row[key] for row in rows)

    ratios = [a["tokens_per_s"] / b["tokens_per_s"] for a, b in zip(mine, theirs)]
    print(json.dumps({
        "shape": args.shape, "dtype": args.dtype, "pairs": args.pairs, "torch": theirs[0]["torch"],
        "tokens_per_s": median(mine, "tokens_per_s"), "torch_tokens_per_s": median(theirs, "tokens_per_s"),
        "ratio": round(statistics.median(ratios), 3), "least": round(min(ratios), 3), "most": round(max(ratios), 3),
        "share_of_fma": median(mine, "share_of_fma"), "fma_flops": median(mine, "fma"),
        "memory_mb": median(mine, "memory_mb"), "torch_memory_mb": median(theirs, "memory_mb")}))


main()
