#!/usr/bin/env python3
"""Makes muon_numbers.h of test_ops_muon.c: steps of torch.optim.Muon.

    python3 -m venv venv
    venv/bin/pip install torch==2.13.0 numpy
    venv/bin/python tests/unit/make_muon.py > tests/unit/muon_numbers.h

torch rounds the Newton-Schulz steps to bfloat16; here the same source runs in float64, so that the
numbers say how far float32 is off, not bfloat16. Only needed to change them: the header is committed.
"""
import inspect

import torch
from torch.optim import _muon

STEPS, LR, DECAY, MOMENTUM = 3, 0.02, 0.1, 0.95
SHAPES = {"wide": (3, 5), "tall": (6, 4), "square": (4, 4)}

source = inspect.getsource(_muon._zeropower_via_newtonschulz)
assert source.count("grad.bfloat16()") == 1
exec(source.replace("grad.bfloat16()", "grad.double()"), vars(_muon))


def show(name, values):
    print(f"static const float {name}[] = {{")
    flat = [float(v) for v in values.float().flatten()]
    for i in range(0, len(flat), 5):
        print("    " + " ".join(f"{v:.9g}F," if "." in f"{v:.9g}" or "e" in f"{v:.9g}"
                                else f"{v:.1f}F," for v in flat[i:i + 5]))
    print("};")


print("/* Made by make_muon.py: torch.optim.Muon, adjust_lr_fn match_rms_adamw, in float64. */")
print("/* clang-format off */")
print(f"enum {{ MUON_STEPS = {STEPS} }};")
print(f"static const float MUON_LR = {LR}F, MUON_DECAY = {DECAY}F, MUON_MOMENTUM = {MOMENTUM}F;")
torch.manual_seed(1)
for name, shape in SHAPES.items():
    weight = torch.nn.Parameter(torch.randn(shape).double())
    optimizer = torch.optim.Muon([weight], lr=LR, weight_decay=DECAY, momentum=MOMENTUM, nesterov=True,
                                 adjust_lr_fn="match_rms_adamw")
    show(f"muon_{name}_start", weight.detach())
    grads = torch.randn((STEPS, *shape)).float()
    show(f"muon_{name}_grads", grads)
    steps = []
    for grad in grads:
        weight.grad = grad.double()
        optimizer.step()
        steps.append(weight.detach().clone())
    show(f"muon_{name}_weights", torch.stack(steps))
