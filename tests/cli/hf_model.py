"""Small Hugging Face models for tests, with nothing but the standard library.

make DIR FAMILY DTYPE [OPTION ...]   FAMILY mixtral|llama|deepseek_v2|deepseek_v3; DTYPE F32|BF16|F16|FP8
same A B                             the same tensors, bit by bit, however they are filed
list DIR                             name dtype shape, one a line
values DIR NAME                      a tensor as numbers (float8 without its scale)
"""
import json, math, os, random, struct, sys

SIZES = {"F32": 4, "BF16": 2, "F16": 2, "F8_E4M3": 1, "F8_E5M2": 1, "I64": 8}
WIDTH, VOCAB, INNER, HEADS = 64, 257, 96, 4


def attention(layer, family):
    p = f"model.layers.{layer}.self_attn."
    if family in ("mixtral", "llama"):
        return {p + "q_proj.weight": [64, WIDTH], p + "k_proj.weight": [32, WIDTH],
                p + "v_proj.weight": [32, WIDTH], p + "o_proj.weight": [WIDTH, 64]}
    t = {p + "kv_a_proj_with_mqa.weight": [32 + 8, WIDTH], p + "kv_a_layernorm.weight": [32],
         p + "kv_b_proj.weight": [HEADS * 32, 32], p + "o_proj.weight": [WIDTH, HEADS * 16]}
    if family == "deepseek_v2":
        t[p + "q_proj.weight"] = [HEADS * 24, WIDTH]
    else:
        t.update({p + "q_a_proj.weight": [24, WIDTH], p + "q_a_layernorm.weight": [24],
                  p + "q_b_proj.weight": [HEADS * 24, 24]})
    return t


def mlp(prefix, inner, names=("gate_proj", "up_proj", "down_proj")):
    return {prefix + names[0] + ".weight": [inner, WIDTH], prefix + names[1] + ".weight": [inner, WIDTH],
            prefix + names[2] + ".weight": [WIDTH, inner]}


def feed_forward(layer, family, experts, inner):
    p = f"model.layers.{layer}."
    if family == "llama" or (family.startswith("deepseek") and layer == 0):
        return mlp(p + "mlp.", INNER)
    if family == "mixtral":
        t = {p + "block_sparse_moe.gate.weight": [experts, WIDTH]}
        for e in range(experts):
            t.update(mlp(p + f"block_sparse_moe.experts.{e}.", inner, ("w1", "w3", "w2")))
        return t
    t = {p + "mlp.gate.weight": [experts, WIDTH]}
    if family == "deepseek_v3":
        t[p + "mlp.gate.e_score_correction_bias"] = [experts]
    for e in range(experts):
        t.update(mlp(p + f"mlp.experts.{e}.", inner))
    t.update(mlp(p + "mlp.shared_experts.", inner))
    return t


def shapes(family, mtp, experts, inner):
    t = {"model.embed_tokens.weight": [VOCAB, WIDTH], "model.norm.weight": [WIDTH], "lm_head.weight": [VOCAB, WIDTH]}
    for layer in range(2 + mtp):
        p = f"model.layers.{layer}."
        t.update(attention(layer, family))
        t.update(feed_forward(layer, family, experts, inner))
        t.update({p + "input_layernorm.weight": [WIDTH], p + "post_attention_layernorm.weight": [WIDTH]})
        if layer >= 2:
            t.update({p + "enorm.weight": [WIDTH], p + "hnorm.weight": [WIDTH],
                      p + "eh_proj.weight": [WIDTH, 2 * WIDTH], p + "shared_head.norm.weight": [WIDTH]})
    return t


def is_linear(name, shape):
    parts = ("_proj.weight", "_proj_with_mqa.weight", ".w1.weight", ".w2.weight", ".w3.weight")
    return len(shape) == 2 and name.endswith(parts) and "eh_proj" not in name


def encode(values, dtype):
    raw = struct.pack(f"<{len(values)}f", *values)
    if dtype == "F32":
        return raw
    if dtype == "BF16":
        return b"".join(raw[i + 2:i + 4] for i in range(0, len(raw), 4))
    return struct.pack(f"<{len(values)}e", *values)


def number(rng, middle, spread):
    """Uniform, by exact arithmetic: the same everywhere."""
    return middle + (rng.getrandbits(20) / 2.0**19 - 1) * spread


def contents(family, dtype, mtp, experts, inner, seed):
    rng = random.Random(seed)
    tensors = {}
    for name, shape in shapes(family, mtp, experts, inner).items():
        count = math.prod(shape)
        if dtype == "FP8" and is_linear(name, shape):
            codes = bytes(c if c & 0x7F != 0x7F else 0 for c in rng.randbytes(count))
            blocks = [-(-shape[0] // 128), -(-shape[1] // 128)]
            tensors[name] = ("F8_E4M3", shape, codes)
            scales = [number(rng, 2.0**-11, 2.0**-12) for _ in range(math.prod(blocks))]
            tensors[name + "_scale_inv"] = ("F32", blocks, encode(scales, "F32"))
            continue
        own = "F32" if "e_score" in name else "BF16" if dtype == "FP8" else dtype
        middle, spread = (1, 0.125) if len(shape) == 1 and "e_score" not in name else (0, 0.125)
        tensors[name] = (own, shape, encode([number(rng, middle, spread) for _ in range(count)], own))
    return tensors


def add_copies(tensors):
    tensors["model.layers.2.embed_tokens.weight"] = tensors["model.embed_tokens.weight"]
    tensors["model.layers.2.shared_head.head.weight"] = tensors["lm_head.weight"]


def fuse(tensors, experts):
    """The names of transformers 5, experts stacked."""
    out, stacks = {}, {}
    for name, (dtype, shape, data) in tensors.items():
        if ".experts." not in name:
            out[name.replace(".block_sparse_moe.gate.", ".mlp.gate.")] = (dtype, shape, data)
            continue
        layer, rest = name.split(".")[2], name.split(".experts.")[1]
        expert, kind = int(rest.split(".")[0]), rest.split(".")[1]
        scale = "_scale_inv" if name.endswith("_scale_inv") else ""
        part = {"w1": 0, "gate_proj": 0, "w3": 1, "up_proj": 1, "w2": 2, "down_proj": 2}[kind]
        home = f"model.layers.{layer}.mlp.experts." + ("down_proj" if part == 2 else "gate_up_proj") + scale
        stacks.setdefault(home, {})[(expert, part)] = (dtype, shape, data)
    for home, parts in stacks.items():
        dtype, shape, _ = next(iter(parts.values()))
        rows = shape[0] * (1 if "down_proj" in home else 2)
        out[home] = (dtype, [experts, rows, shape[1]], b"".join(parts[k][2] for k in sorted(parts)))
    return out


def write_file(path, tensors):
    header, at = {"__metadata__": {"format": "pt"}}, 0
    for name, (dtype, shape, data) in tensors.items():
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [at, at + len(data)]}
        at += len(data)
    text = json.dumps(header).encode()
    with open(path, "wb") as f:
        f.write(struct.pack("<Q", len(text)) + text + b"".join(t[2] for t in tensors.values()))


def write_model(folder, tensors, shards):
    if shards == 1:
        write_file(folder + "/model.safetensors", tensors)
        return
    names, where = list(tensors), {}
    for s in range(shards):
        file = f"model-{s + 1:05}-of-{shards:05}.safetensors"
        own = names[s::shards]  # a weight and its scale lie apart
        write_file(f"{folder}/{file}", {n: tensors[n] for n in own})
        where.update({n: file for n in own})
    with open(folder + "/model.safetensors.index.json", "w") as f:
        json.dump({"metadata": {"total_size": sum(len(t[2]) for t in tensors.values())}, "weight_map": where}, f)


def config(family, dtype, mtp, experts, inner, new):
    names = {"mixtral": "MixtralForCausalLM", "llama": "LlamaForCausalLM",
             "deepseek_v2": "DeepseekV2ForCausalLM", "deepseek_v3": "DeepseekV3ForCausalLM"}
    c = dict(model_type=family, architectures=[names[family]], vocab_size=VOCAB, hidden_size=WIDTH,
             intermediate_size=inner if family == "mixtral" else INNER, num_hidden_layers=2,
             num_attention_heads=HEADS, num_key_value_heads=2 if family in ("mixtral", "llama") else HEADS,
             max_position_embeddings=128, rms_norm_eps=1e-6, hidden_act="silu", tie_word_embeddings=False,
             initializer_range=0.02, bos_token_id=11, eos_token_id=12)
    if family == "mixtral":
        c.update(num_local_experts=experts, num_experts_per_tok=2, sliding_window=None, router_aux_loss_coef=0.02)
    if family.startswith("deepseek"):
        c.update(q_lora_rank=None if family == "deepseek_v2" else 24, kv_lora_rank=32, qk_nope_head_dim=16,
                 qk_rope_head_dim=8, v_head_dim=16, moe_intermediate_size=inner, n_routed_experts=experts,
                 n_shared_experts=1, num_experts_per_tok=2, first_k_dense_replace=1, n_group=2, topk_group=1,
                 topk_method="group_limited_greedy" if family == "deepseek_v2" else "noaux_tc",
                 scoring_func="softmax" if family == "deepseek_v2" else "sigmoid",
                 norm_topk_prob=family == "deepseek_v3", routed_scaling_factor=1.5, moe_layer_freq=1)
    if family == "deepseek_v3":
        c["num_nextn_predict_layers"] = mtp
    word = {"F32": "float32", "F16": "float16"}.get(dtype, "bfloat16")
    c["dtype" if new else "torch_dtype"] = word
    if new:
        c["rope_parameters"] = {"rope_theta": 5000.0, "rope_type": "default"}
    else:
        c["rope_theta"] = 5000.0
    if dtype == "FP8":
        c["quantization_config"] = {"activation_scheme": "dynamic", "fmt": "e4m3", "quant_method": "fp8",
                                    "weight_block_size": [128, 128]}
    return c


def make(folder, family, dtype, *options):
    o = dict(x.partition("=")[::2] for x in options)
    mtp, experts, inner = int(o.get("mtp", 0)), int(o.get("experts", 4)), int(o.get("inner", 48))
    os.makedirs(folder, exist_ok=True)
    tensors = contents(family, dtype, mtp, experts, inner, int(o.get("seed", 1)))
    if mtp:
        add_copies(tensors)
    if "fused" in o:
        tensors = fuse(tensors, experts)
    for name in filter(None, o.get("drop", "").split(",")):
        del tensors[name]
    for name in filter(None, o.get("add", "").split(",")):
        tensors[name] = ("F32", [1], b"\0\0\0\0")
    for pair in filter(None, o.get("nan", "").split(",")):  # NAME:COUNT
        name, count = pair.split(":")
        kind, shape, data = tensors[name]
        bad = {"F32": b"\0\0\x80\x7f", "BF16": b"\xc0\xff", "F16": b"\0\x7c", "F8_E4M3": b"\xff"}[kind]
        n = int(count) * len(bad)
        tensors[name] = (kind, shape, data[:-n] + bad * int(count))
    if "big" in o:  # f16 that four times itself is not
        kind, shape, data = tensors[o["big"]]
        tensors[o["big"]] = (kind, shape, b"\xff\x77" + data[2:])
    if "reshape" in o:
        kind, shape, data = tensors[o["reshape"]]
        tensors[o["reshape"]] = (kind, shape[::-1], data)
    if "retype" in o:
        name, kind = o["retype"].split(":")
        shape = tensors[name][1]
        tensors[name] = (kind, shape, bytes(SIZES[kind] * math.prod(shape)))
    if "touch" in o:
        kind, shape, data = tensors[o["touch"]]
        tensors[o["touch"]] = (kind, shape, data[:-1] + bytes([data[-1] ^ 1]))
    for name in filter(None, o.get("float8", "").split(",")):  # zeros
        shape = tensors[name][1]
        blocks = [-(-n // 128) for n in shape]
        tensors[name] = ("F8_E4M3", shape, bytes(math.prod(shape)))
        tensors[name + "_scale_inv"] = ("F32", blocks, encode([1.0] * math.prod(blocks), "F32"))
    write_model(folder, tensors, int(o.get("shards", 1)))
    c = config(family, dtype, mtp, experts, inner, "new" in o)
    for key in filter(None, o.get("set", "").split(",")):  # set=KEY:JSON,...
        name, value = key.split(":", 1)
        c[name] = json.loads(value)
    for key in filter(None, o.get("unset", "").split(",")):
        del c[key]
    with open(folder + "/config.json", "w") as f:
        json.dump(c, f)


def load(folder):
    tensors = {}
    for file in sorted(os.listdir(folder)):
        if file.endswith(".safetensors"):
            raw = open(f"{folder}/{file}", "rb").read()
            n = struct.unpack("<Q", raw[:8])[0]
            for name, t in json.loads(raw[8:8 + n]).items():
                if name != "__metadata__":
                    a, b = t["data_offsets"]
                    tensors[name] = (t["dtype"], t["shape"], raw[8 + n + a:8 + n + b])
    return tensors


def same(a, b):
    a, b = load(a), load(b)
    wrong = [n for n in sorted(a.keys() | b.keys()) if a.get(n) != b.get(n)]
    for n in wrong[:10]:
        print("differs:", n, (a.get(n) or ("missing",))[:2], (b.get(n) or ("missing",))[:2])
    return 1 if wrong or not a else 0


def list_all(folder):
    for name, (dtype, shape, _) in sorted(load(folder).items()):
        print(name, dtype, shape)


def values(folder, name):
    dtype, shape, data = load(folder)[name]
    if dtype == "F32":
        return list(struct.unpack(f"<{len(data) // 4}f", data))
    if dtype == "BF16":
        padded = b"".join(b"\0\0" + data[i:i + 2] for i in range(0, len(data), 2))
        return list(struct.unpack(f"<{len(data) // 2}f", padded))
    if dtype == "F16":
        return list(struct.unpack(f"<{len(data) // 2}e", data))
    small = lambda c: (c & 7) * 2.0**-9 if c & 0x78 == 0 else (8 + (c & 7)) * 2.0**((c >> 3 & 15) - 10)
    return [-small(c & 0x7F) if c & 0x80 else small(c) for c in data]


def close(a, b, tolerance):
    """The same model, float8 times its scales: relative error of every tensor in the 2-norm."""
    ta, tb = load(a), load(b)
    plain = lambda t: {n for n in t if not n.endswith("_scale_inv")}
    if plain(ta) != plain(tb):
        print("other names:", sorted(plain(ta) ^ plain(tb))[:10])
        return 1
    for name in sorted(plain(ta)):
        va, vb = wide(a, ta, name), wide(b, tb, name)
        error = math.dist(va, vb) / (math.hypot(*va) or 1)
        if error > float(tolerance):
            print(name, "differs by", error)
            return 1
    return 0


def wide(folder, tensors, name):
    v, shape = values(folder, name), tensors[name][1]
    if tensors[name][0] != "F8_E4M3":
        return v
    scale, across = values(folder, name + "_scale_inv"), -(-shape[1] // 128)
    return [x * scale[i // shape[1] // 128 * across + i % shape[1] // 128] for i, x in enumerate(v)]


if __name__ == "__main__":
    command, arguments = sys.argv[1], sys.argv[2:]
    if command == "values":
        print(*values(*arguments))
        sys.exit(0)
    run = {"make": make, "same": same, "list": list_all, "close": close}[command]
    sys.exit(run(*arguments) or 0)
