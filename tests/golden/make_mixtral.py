#!/usr/bin/env python3
"""Makes the fixtures mixtral_*.h5 of test_families.c: tiny Mixtrals, as Hugging Face transformers computes them.

    python3 -m venv venv
    venv/bin/pip install torch==2.15.0 transformers==5.23.0 h5py numpy
    venv/bin/python tests/golden/make_mixtral.py [FOLDER]

Only needed to change a fixture: mixtral_*.h5 are committed. FOLDER is this file's unless given.

A file holds, float32 and contiguous unless said:
    config (attribute)      the run's configuration, YAML, as `switchyard` reads it
    NAME                    every weight before the first step, under its published name
    tokens                  int32 [steps*B*T + 1]: step s (from 0) reads the samples s*B .. s*B+B-1 of
                            T tokens, labels are the tokens one further on
    document_offsets        int64 [documents + 1]
    logits [B*T, V]         of the first batch
    grad/NAME               gradient of loss + coefficient * balance loss, first batch, not clipped
    curve/loss, aux, norm   float64 [steps]: cross-entropy, balance loss (without its coefficient)
                            and gradient norm of every step, before its update
"""
import itertools
import pathlib
import sys

import h5py
import numpy as np
import torch
from transformers import MixtralConfig, MixtralForCausalLM

STEPS, BATCH, LENGTH = 20, 2, 40
MARGIN = 2e-5  # between the router logits of the last chosen expert and the first left out
BASE = dict(vocab_size=67, hidden_size=32, intermediate_size=24, num_hidden_layers=3, num_attention_heads=4,
            num_key_value_heads=2, num_local_experts=8, num_experts_per_tok=2, rms_norm_eps=1e-5, rope_theta=1e6,
            router_aux_loss_coef=0.02, max_position_embeddings=64)
FIXTURES = {
    "plain": {},
    "window": dict(num_hidden_layers=2, sliding_window=8, num_local_experts=4, intermediate_size=40),
    "head_dim": dict(num_hidden_layers=2, head_dim=12, num_key_value_heads=1, rope_theta=1e4, num_local_experts=6,
                     num_experts_per_tok=3, intermediate_size=20),
    "documents": dict(num_hidden_layers=2, num_key_value_heads=4, mask_documents=True),
}
ADAMW = dict(lr=3e-3, betas=(0.9, 0.95), eps=1e-8)
WEIGHT_DECAY, CLIP_NORM = 0.1, 1.0


def yaml(shape, mask_documents):
    lines = ["model:", "  family: mixtral"] + [f"  {key}: {value}" for key, value in shape.items()]
    lines += [f"train: {{sequence_length: {LENGTH}, micro_batch: {BATCH}, global_batch: {BATCH}, precision: fp32}}",
              f"run: {{steps: {STEPS}, comm: self}}",
              f"optimizer: {{lr: {ADAMW['lr']}, beta1: {ADAMW['betas'][0]}, beta2: {ADAMW['betas'][1]}, "
              f"eps: {ADAMW['eps']:.8f}, weight_decay: {WEIGHT_DECAY}, decay: matrices, clip_norm: {CLIP_NORM}}}",
              "schedule: {kind: constant, warmup_steps: 0}",
              f"data: {{shuffle: false, mask_documents: {str(mask_documents).lower()}}}"]
    return "\n".join(lines) + "\n"


def make_model(shape, rng):
    shape = dict(shape)
    config = MixtralConfig(rope_parameters={"rope_type": "default", "rope_theta": shape.pop("rope_theta")},
                           attn_implementation="eager", experts_implementation="eager", use_cache=False,
                           output_router_logits=True, tie_word_embeddings=False, hidden_act="silu",
                           **{"head_dim": None, "sliding_window": None} | shape)
    model = MixtralForCausalLM(config).float().eval()
    assert config._attn_implementation == "eager" and config._experts_implementation == "eager"
    with torch.no_grad():
        for weight in model.parameters():
            weight.copy_(0.1 * torch.randn(weight.shape, generator=rng) + (1 if weight.ndim == 1 else 0))
    return model


def make_tokens(vocab, rng):
    """A chain that can be learned: mostly the next token follows from the last."""
    count = STEPS * BATCH * LENGTH + 1
    noise = torch.randint(vocab, (count,), generator=rng)
    keep = torch.rand(count, generator=rng) < 0.8
    tokens = [int(noise[0])]
    for t in range(1, count):
        tokens.append((3 * tokens[-1] + 1) % vocab if keep[t] else int(noise[t]))
    return torch.tensor(tokens)


def make_documents(count, rng):
    """Offsets of documents of 3 to 30 tokens."""
    offsets = [0]
    while offsets[-1] < count:
        offsets.append(min(count, offsets[-1] + int(torch.randint(3, 31, (1,), generator=rng))))
    return torch.tensor(offsets)


def batch(tokens, offsets, step):
    """ids, labels, positions of a step; a document's last token has no label, its first is at position 0."""
    at = step * BATCH * LENGTH + torch.arange(BATCH * LENGTH).view(BATCH, LENGTH)
    ids, labels = tokens[at], tokens[at + 1]
    labels = torch.where(torch.isin(at + 1, offsets[:-1]), -100, labels)
    begin = offsets[torch.searchsorted(offsets, at, right=True) - 1]
    return ids, labels, at - torch.maximum(begin, at[:, :1])


def margin(router_logits, top_k):
    best = torch.stack(router_logits).topk(top_k + 1, dim=-1).values
    return (best[..., top_k - 1] - best[..., top_k]).min().item()


def published(name, tensor):
    """Published names and shapes of a parameter: transformers 5 fuses the experts of a layer."""
    prefix, fused, which = name.partition(".mlp.experts.")
    if not fused:
        return {name.replace(".mlp.gate.", ".block_sparse_moe.gate."): tensor}
    parts = {}
    for e, expert in enumerate(tensor):
        matrices = dict(zip(("w1", "w3"), expert.chunk(2))) if which == "gate_up_proj" else {"w2": expert}
        parts |= {f"{prefix}.block_sparse_moe.experts.{e}.{w}.weight": matrix for w, matrix in matrices.items()}
    return parts


def collect(tensors):
    return {name: part.detach().numpy().copy() for key, tensor in tensors for name, part in published(key, tensor).items()}


def train(model, tokens, offsets):
    """Everything compared, and the narrowest router margin of the run."""
    matrices = [p for p in model.parameters() if p.ndim > 1]
    vectors = [p for p in model.parameters() if p.ndim == 1]
    optimizer = torch.optim.AdamW([{"params": matrices, "weight_decay": WEIGHT_DECAY},
                                   {"params": vectors, "weight_decay": 0.0}], **ADAMW)
    data = {"weights": collect(model.named_parameters()), "loss": [], "aux": [], "norm": []}
    narrowest = float("inf")
    for step in range(STEPS):
        ids, labels, positions = batch(tokens, offsets, step)
        out = model(input_ids=ids, position_ids=positions, labels=labels, shift_labels=labels)
        optimizer.zero_grad()
        out.loss.backward()
        loss = torch.nn.functional.cross_entropy(out.logits.flatten(0, 1), labels.flatten(), ignore_index=-100)
        expected = loss + model.config.router_aux_loss_coef * out.aux_loss
        assert abs(out.loss.item() - expected.item()) < 1e-6, "not the objective this file describes"
        if step == 0:
            data["grads"] = collect((name, p.grad) for name, p in model.named_parameters())
            data["logits"] = out.logits.detach().flatten(0, 1).numpy().copy()
        data["loss"].append(loss.item())
        data["aux"].append(out.aux_loss.item())
        data["norm"].append(torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP_NORM).item())
        narrowest = min(narrowest, margin(out.router_logits, model.config.num_experts_per_tok))
        optimizer.step()
    return data, narrowest


def make(name, changes):
    shape = BASE | changes
    mask_documents = shape.pop("mask_documents", False)
    for seed in itertools.count(1):
        rng = torch.Generator().manual_seed(seed)
        model, tokens = make_model(shape, rng), make_tokens(shape["vocab_size"], rng)
        offsets = make_documents(len(tokens), rng) if mask_documents else torch.tensor([0, len(tokens)])
        data, narrowest = train(model, tokens, offsets)
        if narrowest > MARGIN:
            break
    print(f"{name}: seed {seed}, router margin {narrowest:.1e}, loss {data['loss'][0]:.4f} to {data['loss'][-1]:.4f}, "
          f"balance {data['aux'][0]:.4f}, gradient norms {min(data['norm']):.3f} to {max(data['norm']):.3f}")
    return yaml(shape, mask_documents), tokens, offsets, data


def save(path, config, tokens, offsets, data):
    with h5py.File(path, "w") as file:
        file.attrs["config"] = np.bytes_(config)
        file["tokens"] = tokens.numpy().astype(np.int32)
        file["document_offsets"] = offsets.numpy().astype(np.int64)
        file["logits"] = data["logits"]
        for key in ("loss", "aux", "norm"):
            file["curve/" + key] = np.array(data[key], dtype=np.float64)
        for name in data["weights"]:
            file[name] = data["weights"][name]
            file["grad/" + name] = data["grads"][name]


def main():
    folder = pathlib.Path(sys.argv[1] if len(sys.argv) > 1 else __file__).resolve()
    folder = folder if folder.is_dir() else folder.parent
    torch.set_num_threads(1)
    for name, changes in FIXTURES.items():
        save(folder / f"mixtral_{name}.h5", *make(name, changes))


if __name__ == "__main__":
    main()
