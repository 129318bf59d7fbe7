"""DeepSeek-V3 with multi-token prediction, float64: only what make_deepseek.py needs where
transformers has no training code. Weights carry their published names; the prediction modules are
the blocks num_hidden_layers, num_hidden_layers + 1, ...
"""
import torch
import torch.nn.functional as F


def table(shape):
    """Name and dimensions of every weight, and the names of the routers' biases."""
    s, width = shape, shape["hidden_size"]
    heads, nope, rope, value = s["num_attention_heads"], s["qk_nope_head_dim"], s["qk_rope_head_dim"], s["v_head_dim"]
    names, biases = {"model.embed_tokens.weight": (s["vocab_size"], width)}, []

    def mlp(prefix, inner):
        for matrix, dims in (("gate_proj", (inner, width)), ("up_proj", (inner, width)), ("down_proj", (width, inner))):
            names[f"{prefix}.{matrix}.weight"] = dims

    for block in range(s["num_hidden_layers"] + s["num_nextn_predict_layers"]):
        at = f"model.layers.{block}."
        if block >= s["num_hidden_layers"]:
            names |= {at + "enorm.weight": (width,), at + "hnorm.weight": (width,),
                      at + "eh_proj.weight": (width, 2 * width), at + "shared_head.norm.weight": (width,)}
        names |= {at + "input_layernorm.weight": (width,), at + "post_attention_layernorm.weight": (width,),
                  at + "self_attn.q_a_proj.weight": (s["q_lora_rank"], width),
                  at + "self_attn.q_a_layernorm.weight": (s["q_lora_rank"],),
                  at + "self_attn.q_b_proj.weight": (heads * (nope + rope), s["q_lora_rank"]),
                  at + "self_attn.kv_a_proj_with_mqa.weight": (s["kv_lora_rank"] + rope, width),
                  at + "self_attn.kv_a_layernorm.weight": (s["kv_lora_rank"],),
                  at + "self_attn.kv_b_proj.weight": (heads * (nope + value), s["kv_lora_rank"]),
                  at + "self_attn.o_proj.weight": (width, heads * value)}
        if block < s["first_k_dense_replace"]:
            mlp(at + "mlp", s["intermediate_size"])
            continue
        names[at + "mlp.gate.weight"] = (s["n_routed_experts"], width)
        biases.append(at + "mlp.gate.e_score_correction_bias")
        for e in range(s["n_routed_experts"]):
            mlp(f"{at}mlp.experts.{e}", s["moe_intermediate_size"])
        mlp(at + "mlp.shared_experts", s["n_shared_experts"] * s["moe_intermediate_size"])
    return names | {"model.norm.weight": (width,), "lm_head.weight": (s["vocab_size"], width)}, biases


def norm(x, weight, eps):
    return weight * x * (x.square().mean(-1, keepdim=True) + eps).rsqrt()


def rotate(x, positions, theta):
    """Interleaved pairs of x [B,T,H,d] by the angles of their positions [B,T]."""
    frequency = theta ** (-torch.arange(0, x.shape[-1], 2, dtype=x.dtype) / x.shape[-1])
    angle = positions[..., None, None] * frequency
    even, odd = x[..., 0::2], x[..., 1::2]
    return torch.stack((even * angle.cos() - odd * angle.sin(), odd * angle.cos() + even * angle.sin()), -1).flatten(-2)


def starts(positions):
    """Per token [B,T] the first of its document in the sequence: where positions restart."""
    return torch.arange(positions.shape[1]) - positions


class Oracle:
    def __init__(self, shape, weights, biases):
        """weights and biases: float32 tensors by name."""
        self.shape = shape
        self.weights = {name: tensor.double().requires_grad_() for name, tensor in weights.items()}
        self.biases = biases

    def linear(self, x, name):
        return F.linear(x, self.weights[name + ".weight"])

    def swiglu(self, x, at):
        return self.linear(F.silu(self.linear(x, at + ".gate_proj")) * self.linear(x, at + ".up_proj"), at + ".down_proj")

    def attention(self, x, positions, at):
        s, w = self.shape, self.weights
        nope, rope, rank = s["qk_nope_head_dim"], s["qk_rope_head_dim"], s["kv_lora_rank"]
        heads = (*x.shape[:2], s["num_attention_heads"], -1)
        q = norm(self.linear(x, at + "q_a_proj"), w[at + "q_a_layernorm.weight"], 1e-6)
        q = self.linear(q, at + "q_b_proj").view(heads)
        latent, k_rope = self.linear(x, at + "kv_a_proj_with_mqa").split((rank, rope), -1)
        kv = self.linear(norm(latent, w[at + "kv_a_layernorm.weight"], 1e-6), at + "kv_b_proj").view(heads)
        k_rope = rotate(k_rope[:, :, None], positions, s["rope_theta"]).expand(*heads[:3], rope)
        q = torch.cat((q[..., :nope], rotate(q[..., nope:], positions, s["rope_theta"])), -1)
        k = torch.cat((kv[..., :nope], k_rope), -1)
        scores = torch.einsum("bthd,bshd->bhts", q, k) * (nope + rope) ** -0.5
        token = torch.arange(x.shape[1])
        hidden = (token > token[:, None]) | (token < starts(positions)[..., None])
        p = scores.masked_fill(hidden[:, None], -torch.inf).softmax(-1)
        return self.linear(torch.einsum("bhts,bshd->bthd", p, kv[..., nope:]).flatten(2), at + "o_proj")

    def route(self, x, at):
        """Router logits, chosen experts and their weights of x [N,C]."""
        s, groups = self.shape, self.shape["n_group"]
        logits = self.linear(x, at + "gate")
        score = logits.sigmoid()
        choice = (score.detach() + self.biases[at + "gate.e_score_correction_bias"]).view(len(x), groups, -1)
        kept = choice.topk(2, -1).values.sum(-1).topk(s["topk_group"], -1).indices
        keep = torch.zeros(len(x), groups, dtype=torch.bool).scatter(1, kept, True)
        choice = choice.masked_fill(~keep[..., None], -torch.inf).flatten(1)
        chosen = choice.topk(s["num_experts_per_tok"], -1).indices
        weight = score.gather(1, chosen)
        return logits, chosen, s["routed_scaling_factor"] * weight / (weight.sum(-1, keepdim=True) + 1e-20)

    def moe(self, x, at, gates):
        rows = x.flatten(0, 1)
        logits, chosen, weight = self.route(rows, at)
        gates.append((logits, chosen))
        out = self.swiglu(rows, at + "shared_experts")
        for e in range(self.shape["n_routed_experts"]):
            token, slot = torch.where(chosen == e)
            out = out.index_add(0, token, weight[token, slot, None] * self.swiglu(rows[token], f"{at}experts.{e}"))
        return out.view(x.shape)

    def block(self, x, positions, block, gates):
        at, eps = f"model.layers.{block}.", self.shape["rms_norm_eps"]
        x = x + self.attention(norm(x, self.weights[at + "input_layernorm.weight"], eps), positions, at + "self_attn.")
        h = norm(x, self.weights[at + "post_attention_layernorm.weight"], eps)
        dense = block < self.shape["first_k_dense_replace"]
        return x + (self.swiglu(h, at + "mlp") if dense else self.moe(h, at + "mlp.", gates))

    def forward(self, ids, positions):
        """Logits [B,T,V] of the model; of every prediction module k = 1.. [B,T-k,V]; per router its
        logits and choices. Module k sees the embedding of the token k further on, first half, and
        the normalised output of what is before it, second half. Its tokens' documents and
        positions are those of the hidden state."""
        s, w, gates, predicted = self.shape, self.weights, [], []
        eps, layers = s["rms_norm_eps"], s["num_hidden_layers"]
        x = F.embedding(ids, w["model.embed_tokens.weight"])
        for block in range(layers):
            x = self.block(x, positions, block, gates)
        h = norm(x, w["model.norm.weight"], eps)
        logits = self.linear(h, "lm_head")
        for k in range(1, s["num_nextn_predict_layers"] + 1):
            at = f"model.layers.{layers + k - 1}."
            ahead = norm(F.embedding(ids[:, k:], w["model.embed_tokens.weight"]), w[at + "enorm.weight"], eps)
            x = self.linear(torch.cat((ahead, norm(h[:, :-1], w[at + "hnorm.weight"], eps)), -1), at + "eh_proj")
            h = norm(self.block(x, positions[:, :-k], layers + k - 1, gates), w[at + "shared_head.norm.weight"], eps)
            predicted.append(self.linear(h, "lm_head"))
        return logits, predicted, gates
