#!/usr/bin/env python3
"""The training steps of configs/bench-*.yaml in PyTorch and transformers, for docs/benchmarks.md.

    python3 -m venv peer && peer/bin/pip install torch transformers
    peer/bin/python tests/peer/train_step.py --shape mixtral --dtype bf16 --experts grouped_mm --compile

One line of JSON per run: median and best tokens/s over the steps (forward, loss, backward, fused AdamW),
peak memory. Variants: --dtype bf16 (weights and optimizer in bf16), amp (fp32 weights, bf16
autocast), fp32; --experts eager, grouped_mm, batched_mm; --compile.
"""
import argparse
import json
import os
import resource
import statistics
import sys
import time


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--shape", choices=["mixtral", "deepseek_v3"], default="mixtral")
    parser.add_argument("--dtype", choices=["bf16", "amp", "fp32"], default="bf16")
    parser.add_argument("--experts", choices=["eager", "grouped_mm", "batched_mm"], default="grouped_mm")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--warmup", type=int, default=2)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--serve", action="store_true",
                        help="a line of JSON for every line of standard input, until it ends (side_by_side.py)")
    return parser.parse_args()


ARGS = arguments()
os.environ.setdefault("OMP_NUM_THREADS", str(ARGS.threads))
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch  # noqa: E402  (after the thread count is set)
from transformers import (  # noqa: E402
    DeepseekV3Config, DeepseekV3ForCausalLM, MixtralConfig, MixtralForCausalLM)

VOCAB, BATCH, SEQUENCE = 32000, 8, 512


def mixtral():
    return MixtralForCausalLM, MixtralConfig(
        vocab_size=VOCAB, hidden_size=512, intermediate_size=1792, num_hidden_layers=8,
        num_attention_heads=8, num_key_value_heads=2, num_local_experts=8, num_experts_per_tok=2,
        max_position_embeddings=4096, sliding_window=None, use_cache=False)


def deepseek_v3():
    return DeepseekV3ForCausalLM, DeepseekV3Config(
        vocab_size=VOCAB, hidden_size=512, intermediate_size=1536, moe_intermediate_size=256,
        num_hidden_layers=8, first_k_dense_replace=1, num_attention_heads=8, num_key_value_heads=8,
        n_routed_experts=32, n_shared_experts=1, num_experts_per_tok=4, n_group=4, topk_group=2,
        q_lora_rank=192, kv_lora_rank=128, qk_rope_head_dim=32, qk_nope_head_dim=64, v_head_dim=64,
        routed_scaling_factor=2.5, norm_topk_prob=True, rope_interleave=True,
        max_position_embeddings=4096, num_nextn_predict_layers=0, use_cache=False)


def build():
    kind, config = {"mixtral": mixtral, "deepseek_v3": deepseek_v3}[ARGS.shape]()
    dtype = torch.bfloat16 if ARGS.dtype == "bf16" else torch.float32
    torch.manual_seed(0)
    model = kind._from_config(
        config, attn_implementation="sdpa", experts_implementation=ARGS.experts, dtype=dtype).train()
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=1e-4, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1, fused=True)
    return model, torch.compile(model) if ARGS.compile else model, optimizer


def step(run, optimizer, generator):
    ids = torch.randint(0, VOCAB, (BATCH, SEQUENCE), generator=generator)
    start = time.perf_counter()
    optimizer.zero_grad(set_to_none=True)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=ARGS.dtype == "amp"):
        loss = run(input_ids=ids, labels=ids).loss
    loss.backward()
    optimizer.step()
    return BATCH * SEQUENCE / (time.perf_counter() - start)


def main():
    torch.set_num_threads(ARGS.threads)
    model, run, optimizer = build()
    generator = torch.Generator().manual_seed(1)
    for _ in range(ARGS.warmup):
        step(run, optimizer, generator)
    if not ARGS.serve:
        report([step(run, optimizer, generator) for _ in range(ARGS.steps)], model)
        return
    print("ready", flush=True)
    for _ in sys.stdin:
        report([step(run, optimizer, generator) for _ in range(ARGS.steps)], model)


def report(rates, model):
    print(json.dumps({
        "shape": ARGS.shape, "dtype": ARGS.dtype, "experts": ARGS.experts, "compile": ARGS.compile,
        "mkl_avx512": "mkl_avx512" in os.environ.get("LD_PRELOAD", ""),
        "tokens_per_s": round(statistics.median(rates), 1), "best": round(max(rates), 1),
        "peak_memory_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
        "parameters": sum(p.numel() for p in model.parameters()), "torch": torch.__version__}), flush=True)


main()
