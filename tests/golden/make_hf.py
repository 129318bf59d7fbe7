#!/usr/bin/env python3
"""Makes hf_tiny/: tiny models as transformers saves them, for the tests of import and export.

    python3 -m venv venv
    venv/bin/pip install torch==2.13.0 transformers==5.23.0 h5py numpy safetensors
    venv/bin/python tests/golden/make_hf.py                      makes the folders anew
    venv/bin/python tests/golden/make_hf.py check EXPORTS        judges EXPORTS/NAME, written by `switchyard export`
    venv/bin/python tests/golden/make_hf.py check EXPORTS write  ... and commits to their bytes: hf_tiny/exports.sha256

A folder NAME holds what save_pretrained wrote: config.json (transformers 5), model.safetensors (or
shards and their index); and beside it
    config_old.json     the same as a config.json of the years before: rope_theta, rope_scaling, torch_dtype
    train.yaml          twenty steps from these weights, on one or two ranks; without paths: data is
                        tokens.jsonl
    expected.json       logits [tokens][V] of the first tokens of tokens.jsonl; loss of every step, and
                        of the prediction modules where there are some
mixtral_fused and mixtral_sharded hold the weights of mixtral in other forms. deepseek_v3_mtp is the
published form with a prediction module, which transformers does not write: by oracle.py.

check: EXPORTS/NAME or EXPORTS/NAME-bf16 must load in transformers without a missing or unexpected
tensor and give the bits of the original's logits (in that precision).
"""
import hashlib
import itertools
import json
import pathlib
import sys

import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM
from transformers.utils import logging

import make_deepseek
import make_mixtral
from make_deepseek import NearTie, yaml_map, yarn

HERE = pathlib.Path(__file__).resolve().parent / "hf_tiny"
VOCAB, LOGITS_TOKENS = 40, 12
SMALL = dict(vocab_size=VOCAB, hidden_size=16, num_hidden_layers=2, intermediate_size=20, moe_intermediate_size=8,
             num_attention_heads=2, num_key_value_heads=2, n_routed_experts=8, n_shared_experts=1, num_experts_per_tok=2,
             n_group=4, topk_group=2, kv_lora_rank=12, q_lora_rank=10, qk_nope_head_dim=6, qk_rope_head_dim=4,
             v_head_dim=6, rms_norm_eps=1e-5, max_position_embeddings=163840)
MIXTRAL = dict(vocab_size=VOCAB, hidden_size=16, intermediate_size=20, num_hidden_layers=2, num_attention_heads=4,
               num_key_value_heads=2, num_local_experts=4, num_experts_per_tok=2, rms_norm_eps=1e-5, rope_theta=1e6,
               router_aux_loss_coef=0.02, max_position_embeddings=64)
V2 = make_deepseek.V2 | SMALL | dict(topk_method="group_limited_greedy", routed_scaling_factor=2.0,
                                     rope_scaling=yarn(0.707), aux_loss_alpha=0.01, seq_aux=True)
V3 = make_deepseek.V3 | SMALL | dict(rope_scaling=yarn(1.0))
V3_MTP = make_deepseek.V3 | SMALL | dict(n_routed_experts=4, n_group=2, topk_group=1, num_nextn_predict_layers=1)


# --- config.json of the years before ---

def old_config(shape, like):
    """Old-style config.json of a shape; `like`: what transformers 5 wrote or would write."""
    keep = ("architectures", "model_type", "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers",
            "num_attention_heads", "num_key_value_heads", "num_local_experts", "num_experts_per_tok",
            "max_position_embeddings", "rms_norm_eps", "sliding_window", "hidden_act", "router_aux_loss_coef",
            "tie_word_embeddings", "attention_dropout", "initializer_range", "bos_token_id", "eos_token_id", "use_cache")
    old = {key: like[key] for key in keep if key in like}
    old |= {"rope_theta": shape["rope_theta"], "torch_dtype": "float32", "transformers_version": "4.40.0"}
    if like["model_type"] != "mixtral":
        own = ("moe_intermediate_size", "n_routed_experts", "n_shared_experts", "first_k_dense_replace", "kv_lora_rank",
               "q_lora_rank", "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim", "n_group", "topk_group", "topk_method",
               "scoring_func", "norm_topk_prob", "routed_scaling_factor")
        old |= {key: shape[key] for key in own}
        old |= {"moe_layer_freq": 1, "attention_bias": False, "ep_size": 1, "seq_aux": True, "pretraining_tp": 1,
                "aux_loss_alpha": shape.get("aux_loss_alpha", 0), "rope_scaling": shape.get("rope_scaling")}
    if like["model_type"] == "deepseek_v3":
        old["num_nextn_predict_layers"] = shape["num_nextn_predict_layers"]
    return old


def write_json(path, value):
    path.write_text(json.dumps(value, indent=2) + "\n")


# --- what a run from the weights does ---

def train_yaml(router, depth):
    m = make_mixtral
    train = dict(sequence_length=m.LENGTH, micro_batch=1, global_batch=m.BATCH, precision="fp32")
    if depth > 0:
        train["mtp_loss_weight"] = make_deepseek.MTP_LOSS_WEIGHT
    optimizer = dict(lr=m.ADAMW["lr"], beta1=m.ADAMW["betas"][0], beta2=m.ADAMW["betas"][1], eps="1e-8",
                     weight_decay=m.WEIGHT_DECAY, decay="matrices", clip_norm=m.CLIP_NORM)
    lines = [f"run: {{steps: {m.STEPS}}}", f"train: {yaml_map(train)}", f"optimizer: {yaml_map(optimizer)}",
             "schedule: {kind: constant, warmup_steps: 0}", "data: {shuffle: false}"]
    return "\n".join(lines + ([f"router: {yaml_map(router)}"] if router else [])) + "\n"


def all_tokens():
    return make_mixtral.make_tokens(VOCAB, torch.Generator().manual_seed(1))


def write_expected(folder, data, logits):
    expected = {"logits": [[float(f"{x:.9g}") for x in row] for row in logits.tolist()], "loss": data["loss"]}
    if data.get("mtp", [0])[0] > 0:
        expected["mtp_loss"] = data["mtp"]
    rows = ",\n".join(json.dumps(row) for row in expected.pop("logits"))
    curves = "".join(f',\n"{key}": [\n' + ",\n".join(map(repr, values)) + "\n]" for key, values in expected.items())
    (folder / "expected.json").write_text(f'{{"logits": [\n{rows}\n]{curves}}}\n')


def write_rest(folder, shape, router, data):
    (folder / "train.yaml").write_text(train_yaml(router, shape.get("num_nextn_predict_layers", 0)))
    write_json(folder / "config_old.json", old_config(shape, json.loads((folder / "config.json").read_text())))
    write_expected(folder, data, torch.from_numpy(data["logits"][:LOGITS_TOKENS]))


# --- the folders ---

def make_mixtral_folders():
    tokens = all_tokens()
    offsets = torch.tensor([0, len(tokens)])
    for seed in itertools.count(1):
        rng = lambda: torch.Generator().manual_seed(seed)
        unbalanced = make_mixtral.make_model(MIXTRAL | dict(router_aux_loss_coef=0.0), rng())
        data, margin = make_mixtral.train(unbalanced, tokens, offsets)
        if margin > make_mixtral.MARGIN:
            break
    model = make_mixtral.make_model(MIXTRAL, rng())
    model.config.output_router_logits = False
    model.save_pretrained(HERE / "mixtral")
    model.save_pretrained(HERE / "mixtral_fused", save_original_format=False)
    model.save_pretrained(HERE / "mixtral_sharded", max_shard_size="16KB")
    # statistics of a batch are those of a micro-batch, which here is half of what transformers saw
    write_rest(HERE / "mixtral", MIXTRAL, dict(batch_loss_coef=0), data)


def train_deepseek(kind, shape, router):
    """An untrained model, and what training one of these weights gives."""
    tokens = all_tokens()
    offsets = torch.tensor([0, len(tokens)])
    for seed in itertools.count(1):
        try:
            model = lambda: kind(shape, torch.Generator().manual_seed(seed))
            data, _ = make_deepseek.train(model(), shape, router, tokens, offsets, make_mixtral.CLIP_NORM,
                                          router.get("bias_update_speed", 0))
            return model(), data
        except NearTie:
            pass


def make_deepseek_folder(name, shape, router):
    folder = HERE / name
    wrapped, data = train_deepseek(make_deepseek.HuggingFace, shape, router)
    config = wrapped.model.config
    if shape["family"] == "deepseek_v2":  # keys of the published file, which transformers keeps and ignores
        del config.num_nextn_predict_layers
        for key in ("scoring_func", "aux_loss_alpha", "seq_aux"):
            setattr(config, key, shape[key])
    wrapped.model.save_pretrained(folder)
    write_rest(folder, shape, router, data)


def make_mtp_folder(name, shape, router):
    """The published form: the module's block with copies of the embedding and the head."""
    folder, at = HERE / name, f"model.layers.{shape['num_hidden_layers']}."
    oracle, data = train_deepseek(make_deepseek.Float64, shape, router)
    tensors = {key: w.detach().float() for key, w in oracle.weights.items()} | oracle.biases
    tensors |= {at + "embed_tokens.weight": tensors["model.embed_tokens.weight"].clone(),
                at + "shared_head.head.weight": tensors["lm_head.weight"].clone()}
    folder.mkdir(exist_ok=True)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    like = make_deepseek.hugging_face_config(shape).to_dict() | {"architectures": ["DeepseekV3ForCausalLM"]}
    write_json(folder / "config.json", old_config(shape, like))
    write_rest(folder, shape, router, data)
    (folder / "config_old.json").unlink()


def make():
    HERE.mkdir(exist_ok=True)
    (HERE / "tokens.jsonl").write_text(json.dumps({"tokens": all_tokens().tolist()}) + "\n")
    make_mixtral_folders()
    make_deepseek_folder("deepseek_v2", V2, {})
    make_deepseek_folder("deepseek_v3", V3, make_deepseek.V3_ROUTER)
    make_mtp_folder("deepseek_v3_mtp", V3_MTP, make_deepseek.V3_ROUTER)
    for folder in sorted(HERE.iterdir()):
        weights = sum(f.stat().st_size for f in folder.glob("*.safetensors")) if folder.is_dir() else 0
        if weights > 0:
            print(f"{folder.name}: {weights} bytes of weights")


# --- judging exports ---

def load(folder, dtype):
    model, info = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, attn_implementation="eager",
                                                       experts_implementation="eager", output_loading_info=True)
    bad = {key: sorted(value) for key, value in info.items() if value}
    return model.eval(), bad


def modules_only(names):
    """Of unexpected tensors, those that are not of a prediction module: transformers skips these."""
    return [name for name in names if not name.startswith(f"model.layers.{V3_MTP['num_hidden_layers']}.")]


def judge(name, folder):
    """Problems of one export."""
    original, _, half = name.partition("-")
    dtype = torch.bfloat16 if half == "bf16" else torch.float32
    tokens = all_tokens()[None, :LOGITS_TOKENS]
    (ours, bad), (theirs, _) = load(folder, dtype), load(HERE / original, dtype)
    if original.endswith("_mtp"):
        bad["unexpected_keys"] = modules_only(bad.get("unexpected_keys", []))
        stored, published = (load_file(at / "model.safetensors") for at in (folder, HERE / original))
        if stored.keys() != published.keys():
            return [f"tensors differ: {sorted(stored.keys() ^ published.keys())}"]
    with torch.no_grad():
        same = torch.equal(ours(tokens).logits, theirs(tokens).logits)
    return [f"{key}: {value}" for key, value in bad.items() if value] + ([] if same else ["logits differ"])


def check(exports, write):
    lines, problems = [], 0
    for folder in sorted(f for f in pathlib.Path(exports).iterdir() if (f / "config.json").exists()):
        found = judge(folder.name, folder)
        problems += len(found)
        print(f"{folder.name}: {'; '.join(found) or 'loads, and gives the same logits'}")
        files = sorted(f for f in folder.iterdir() if f.suffix in (".json", ".safetensors"))
        lines += [f"{hashlib.sha256(f.read_bytes()).hexdigest()}  {folder.name}/{f.name}" for f in files]
    text, committed = "\n".join(lines) + "\n", HERE / "exports.sha256"
    if problems == 0 and write:
        committed.write_text(text)
    elif not committed.exists() or committed.read_text() != text:
        print("the bytes are not those of exports.sha256")
        problems += 1
    return 1 if problems or not lines else 0


if __name__ == "__main__":
    torch.set_num_threads(1)
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    sys.exit(check(sys.argv[2], sys.argv[3:] == ["write"]) if sys.argv[1:2] == ["check"] else make())
