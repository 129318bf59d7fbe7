#!/usr/bin/env python3
"""PyTorch's time for the kernels that `switchyard bench CONFIG --kernels run.device=cuda` times, on the same shapes.

    python3 tests/gpu/bench.py [--out FILE] [--device cuda|cpu] [--shape NAME]
    switchyard bench CONFIG --kernels --peer "python3 tests/gpu/bench.py"      # ours and its in one run, CONFIG's shapes

linear_* is cuBLASLt as PyTorch calls it; attention_* the best of PyTorch's fused backends (cuDNN's among them);
experts_* torch's grouped product, or one product per expert where that is missing; fp8_dense* torch._scaled_mm, of
cuBLASLt, with scales of 1 x 128 and 128 x 128 blocks where it has them, else with one for each tensor. Exit code 77, with the reason, where
there is no PyTorch or no GPU. Times are medians, by CUDA events on a device.
"""

import argparse
import os
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
    parser.add_argument("--dtype", choices=["bfloat16", "float32"], default="bfloat16")
    parser.add_argument("--dims", help="n=4096,c=512,...: this shape alone, with all that those of SHAPES have")
    parser.add_argument("--plain", action="store_true", help="lines for `switchyard bench --peer`: peer WHO, NAME MS, NAME - WHY")
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
DTYPE = getattr(torch, ARGS.dtype)
BYTES = DTYPE.itemsize
LINES = []
if ARGS.device == "cpu" and hasattr(os, "sched_getaffinity"):
    torch.set_num_threads(len(os.sched_getaffinity(0)))


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


def not_here(name, error):
    why = str(error).splitlines()[0][:90]
    say(f"{name} - {why}" if ARGS.plain else f"{name:<26} not here: {why}")


def report(name, run, flops=0, moved=0):
    """Times run(); its work in FLOPs or bytes."""
    try:
        for _ in range(3):
            run()
        first = max(once(run), 1e-3)
        count = int(min(50, max(3, 1e3 * ARGS.seconds / first)))
        ms = statistics.median(once(run) for _ in range(count))
    except (RuntimeError, NotImplementedError, ValueError) as error:
        not_here(name, error)
        return
    if ARGS.plain:
        say(f"{name} {ms:.6f}")
        return
    rate = f"{flops / ms / 1e9:9.1f} TFLOP/s" if flops else f"{moved / ms / 1e6:9.1f} GB/s"
    say(f"{name:<26} {ms:9.3f} ms {rate}")


def random(*shape, dtype=DTYPE, grad=False):
    return torch.randn(*shape, device=DEVICE, dtype=dtype).mul_(0.05).requires_grad_(grad)


def linear(s):
    n, out, c = s["n"], s["c"], s["heads"] * s["dv"]  # the output projection
    x, w, dy = random(n, c), random(out, c), random(n, out)
    work = 2 * n * c * out
    report("linear_forward", lambda: F.linear(x, w), work)
    report("linear_backward_input", lambda: dy @ w, work)
    report("linear_backward_weight", lambda: dy.t() @ x, work)


def codes_of(x, rows):
    """E4M3 codes of x in tiles of rows x 128, and what they are multiplied by (the tile's largest value / 448)."""
    a, b = x.shape
    tiles = x.float().view(a // rows, rows, b // 128, 128)
    scale = tiles.abs().amax(dim=(1, 3)).clamp(min=1e-4) / 448
    return (tiles / scale[:, None, :, None]).view(a, b).to(torch.float8_e4m3fn), scale


def scaled(name, m, n, k):
    """y[m,n] = x[m,k] w[n,k]^T of codes; false: not with scales of blocks."""
    x, x_scale = codes_of(random(m, k), 1)
    w, w_scale = codes_of(random(n, k), 128)
    one = torch.ones((), device=DEVICE)
    # The scales of x column by column, those of w row by row: as cuBLASLt wants them.
    ways = [("", x_scale.t().contiguous().t(), w_scale.t()), ("_by_tensor", one, one)]
    for suffix, a, b in ways:
        def product(a=a, b=b):
            return torch._scaled_mm(x, w.t(), scale_a=a, scale_b=b, out_dtype=torch.bfloat16)

        try:
            product()
        except (RuntimeError, NotImplementedError, ValueError) as error:
            if suffix:
                not_here(name, error)
            continue
        report(name if ARGS.plain else name + suffix, product, 2 * m * n * k)
        return


def fp8(s):
    n, c, o = s["n"], s["c"], s["heads"] * s["dv"]
    if DTYPE != torch.bfloat16 or not hasattr(torch, "_scaled_mm") or c % 128 or o % 128 or n % 128:
        return
    scaled("fp8_dense", n, c, o)
    scaled("fp8_dense_input", n, o, c)
    scaled("fp8_dense_weight", c, o, n)


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
        not_here("attention_backward", error)
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

    def backward_input():
        product(x, down.transpose(1, 2))
        product(dgate_up, gate_up.transpose(1, 2))

    dgate_up = random(rows, 2 * f)
    report("experts_forward", forward, 2 * rows * c * 3 * f)
    report("experts_backward_input", backward_input, 2 * rows * c * 3 * f)


def rows_kernels(s):
    n, c, f, rows = s["n"], s["c"], s["f"], s["n"] * s["k"]
    x, w = random(n, c), random(c)
    report("norm_forward", lambda: F.rms_norm(x, (c,), w, 1e-5), moved=2 * BYTES * n * c)
    both = random(rows, 2 * f)
    report("swiglu_forward", lambda: F.silu(both[:, :f]) * both[:, f:], moved=3 * BYTES * rows * f)
    order = torch.randperm(rows, device=DEVICE) % n
    report("permute", lambda: x.index_select(0, order), moved=2 * BYTES * rows * c)
    labels = torch.randint(0, s["vocab"], (n,), device=DEVICE)
    head = random(s["vocab"], c, grad=True)
    hidden = random(n, c, grad=True)

    def loss():
        value = F.cross_entropy(F.linear(hidden, head).float(), labels)
        torch.autograd.grad(value, (hidden, head))

    report("head_cross_entropy", loss, 6 * n * c * s["vocab"])
    count = s["experts"] * 3 * c * f
    weights = torch.nn.Parameter(random(count, dtype=torch.float32))
    weights.grad = torch.randn_like(weights)
    optimizer = torch.optim.AdamW([weights], fused=True)
    report("adamw", optimizer.step, moved=28 * count)


def dims(text):
    shape = {name: int(value) for name, value in (part.split("=") for part in text.split(","))}
    missing = SHAPES["v3-layer"].keys() - shape.keys()
    if missing:
        sys.exit(f"--dims lacks {', '.join(sorted(missing))}")
    return shape


who = f"PyTorch {torch.__version__} on {torch.cuda.get_device_name() if DEVICE.type == 'cuda' else 'the CPU'}, {ARGS.dtype}"
say(f"peer {who}" if ARGS.plain else who)
if ARGS.dims:
    shapes = {"given": dims(ARGS.dims)}
else:
    shapes = {name: SHAPES[name] for name in ARGS.shape or (sorted(SHAPES) if DEVICE.type == "cuda" else ["bench-mixtral"])}
for shape, sizes in shapes.items():
    if not ARGS.plain:
        say(f"-- {shape}")
    for part in (linear, fp8, attention, experts, rows_kernels):
        part(sizes)
if ARGS.out:
    with open(ARGS.out, "w", encoding="utf-8") as file:
        file.write("\n".join(LINES) + "\n")
