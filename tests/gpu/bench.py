#!/usr/bin/env python3
"""PyTorch's time for the kernels that `switchyard bench CONFIG --kernels run.device=cuda` times, on the same shapes.

    python3 tests/gpu/bench.py [--out FILE] [--device cuda|cpu] [--shape NAME]

linear_* is cuBLASLt as PyTorch calls it; attention_* the best of PyTorch's fused backends (cuDNN's among them);
experts_* torch's grouped product, or one product per expert where that is missing. Exit code 77, with the reason, where
there is no PyTorch or no GPU. Times are medians, by CUDA events on a device.
"""

import argparse
import statistics
import sys
import time

SHAPES = {  # of configs/bench-*.yaml, and one MoE layer of DeepSeek-V3 on one GPU of 64
    "bench-mixtral": dict(n=4096, t=512, c=512, heads=8, kv=2, d=64, dv=64, experts=8, k=2, f=1792, vocab=32000),
    "v3-layer": dict(n=4096, t=4096, c=7168, heads=128, kv=128, d=192, dv=128, experts=4, k=8, f=2048, vocab=16160),
}


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--out", help="also write the lines to this file")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--shape", choices=sorted(SHAPES), action="append")
    parser.add_argument("--seconds", type=float, default=0.3, help="of runs of one kernel")
    return parser.parse_args()


ARGS = arguments()
try:
    import torch
    import torch.nn.functional as F
except ImportError as error:
    print(f"no PyTorch: {error}")
    sys.exit(77)
if ARGS.device == "cuda" and not torch.cuda.is_available():
    print("PyTorch sees no GPU")
    sys.exit(77)
DEVICE = torch.device(ARGS.device)
LINES = []


def say(line):
    print(line, flush=True)
    LINES.append(line)


def once(run):
    """Milliseconds of one run."""
    if DEVICE.type == "cuda":
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        run()
        end.record()
        end.synchronize()
        return begin.elapsed_time(end)
    begin = time.perf_counter()
    run()
    return 1e3 * (time.perf_counter() - begin)


def report(name, run, flops=0, moved=0):
    """Times run(); its work in FLOPs or bytes."""
    try:
        for _ in range(3):
            run()
        first = max(once(run), 1e-3)
        count = int(min(50, max(3, 1e3 * ARGS.seconds / first)))
        ms = statistics.median(once(run) for _ in range(count))
    except (RuntimeError, NotImplementedError) as error:
        say(f"{name:<26} not here: {str(error).splitlines()[0][:90]}")
        return
    rate = f"{flops / ms / 1e9:9.1f} TFLOP/s" if flops else f"{moved / ms / 1e6:9.1f} GB/s"
    say(f"{name:<26} {ms:9.3f} ms {rate}")


def random(*shape, dtype=torch.bfloat16, grad=False):
    return torch.randn(*shape, device=DEVICE, dtype=dtype).mul_(0.05).requires_grad_(grad)


def linear(s):
    n, c, out = s["n"], s["c"], s["heads"] * s["d"]
    x, w, dy = random(n, c), random(out, c), random(n, out)
    work = 2 * n * c * out
    report("linear_forward", lambda: F.linear(x, w), work)
    report("linear_backward_input", lambda: dy @ w, work)
    report("linear_backward_weight", lambda: dy.t() @ x, work)


def attention(s):
    b = s["n"] // s["t"]
    q = random(b, s["heads"], s["t"], s["d"], grad=True)
    k = random(b, s["kv"], s["t"], s["d"], grad=True)
    v = random(b, s["kv"], s["t"], s["dv"], grad=True)
    work = b * s["heads"] * s["t"] ** 2 * (s["d"] + s["dv"])  # causal: half of 2 * 2

    def forward():
        return F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=s["kv"] != s["heads"])

    report("attention_forward", forward, work)
    try:
        o = forward()
    except RuntimeError as error:
        say(f"{'attention_backward':<26} not here: {str(error).splitlines()[0][:90]}")
        return
    d_o = torch.randn_like(o)
    report("attention_backward", lambda: torch.autograd.grad(o, (q, k, v), d_o, retain_graph=True), 2.5 * work)


def experts(s):
    rows, c, f, e = s["n"] * s["k"], s["c"], s["f"], s["experts"]
    x, inner = random(rows, c), random(rows, f)
    gate_up, down = random(e, c, 2 * f), random(e, f, c)
    ends = torch.arange(1, e + 1, device=DEVICE, dtype=torch.int32) * (rows // e)
    grouped = getattr(torch, "_grouped_mm", None) if DEVICE.type == "cuda" else None

    def product(a, w):
        if grouped is not None:
            return grouped(a, w, offs=ends)
        return torch.cat([p @ w[i] for i, p in enumerate(a.split(rows // e))])

    def forward():
        product(x, gate_up)
        product(inner, down)

    report("experts_forward", forward, 2 * rows * c * 3 * f)


def rows_kernels(s):
    n, c, f, rows = s["n"], s["c"], s["f"], s["n"] * s["k"]
    x, w = random(n, c), random(c)
    report("norm_forward", lambda: F.rms_norm(x, (c,), w, 1e-5), moved=4 * n * c)
    both = random(rows, 2 * f)
    report("swiglu_forward", lambda: F.silu(both[:, :f]) * both[:, f:], moved=6 * rows * f)
    order = torch.randperm(rows, device=DEVICE) % n
    report("permute", lambda: x.index_select(0, order), moved=4 * rows * c)
    labels = torch.randint(0, s["vocab"], (n,), device=DEVICE)
    head = random(s["vocab"], c, grad=True)
    hidden = random(n, c, grad=True)

    def loss():
        value = F.cross_entropy(F.linear(hidden, head).float(), labels)
        torch.autograd.grad(value, (hidden, head))

    report("head_cross_entropy", loss, 6 * n * c * s["vocab"])
    weights = torch.nn.Parameter(random(64 << 20 if DEVICE.type == "cuda" else 1 << 20, dtype=torch.float32))
    weights.grad = torch.randn_like(weights)
    optimizer = torch.optim.AdamW([weights], fused=True)
    report("adamw", optimizer.step, moved=28 * weights.numel())


say(f"PyTorch {torch.__version__} on {torch.cuda.get_device_name() if DEVICE.type == 'cuda' else 'the CPU'}, bfloat16")
for shape in ARGS.shape or (sorted(SHAPES) if DEVICE.type == "cuda" else ["bench-mixtral"]):
    say(f"-- {shape}")
    for part in (linear, attention, experts, rows_kernels):
        part(SHAPES[shape])
if ARGS.out:
    with open(ARGS.out, "w", encoding="utf-8") as file:
        file.write("\n".join(LINES) + "\n")
