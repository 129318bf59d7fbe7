#!/usr/bin/env bash
# `bench --kernels`: what it says without running anything (FLOPs and bytes counted here a second time, predictions,
# registers and instructions), that every kernel has all of it, and the figures of a peer beside ours.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"
cuda=0
! "$binary" --version | grep -q '^devices: .*cuda' || cuda=1

echo "one layer of DeepSeek-V3 on one GPU of 64"
v3="$source_dir/configs/deepseek-v3.yaml"
expect_rc 0 "$binary" bench "$v3" --kernels --facts --json
cp "$out" "$work/facts"
python3 - "$work/facts" $cuda <<'PY' || fail "facts of DeepSeek-V3's layer"
import json, sys
facts = json.load(open(sys.argv[1]))
cuda = sys.argv[2] == "1"
h = facts["h100"]
n, c, f, o, rows, experts, heads, vocab = 4096, 7168, 2048, 128 * 128, 8 * 4096, 4, 128, 129280
expert = 3 * f * c
triangle = n * (n + 1) // 2 * heads
flop = {
    "attention_forward": 2 * triangle * (192 + 128), "attention_backward": 2 * triangle * (3 * 192 + 2 * 128),
    "head_cross_entropy": 6 * n * vocab * c, "router": 2 * n * 256 * c,
}
for name in "linear_forward", "linear_backward_input", "linear_backward_weight", "fp8_dense", "fp8_dense_input", "fp8_dense_weight":
    flop[name] = 2 * n * c * o
for name in "experts_forward", "experts_backward_input", "experts_backward_weight", "fp8_experts", "fp8_experts_input", "fp8_experts_weight":
    flop[name] = 2 * rows * expert
moved = {
    "linear_forward": 2 * (n * o + n * c + c * o), "linear_backward_weight": 2 * (n * o + n * c) + 8 * c * o,
    "experts_forward": 2 * (2 * rows * c + 3 * rows * f + experts * expert),
    "norm_forward": 4 * 2 * n * c, "rope": 2 * 2 * n * heads * 64, "swiglu_forward": 2 * 3 * rows * f,
    "swiglu_backward": 2 * 5 * rows * f, "permute": 2 * 2 * rows * c, "combine": 2 * (rows + n) * c,
    "combine_backward": 2 * (2 * rows + n) * c, "adamw": 30 * experts * expert,
    "fp8_quantize": 4 * n * c, "fp8_permute_quantize": 3 * rows * c, "fp8_pack": 3 * rows * c, "fp8_unpack": 2 * rows * c,
    "fp8_transpose": 2 * rows * c, "fp8_norm_quantize": 7 * n * c, "fp8_swiglu": (4 + 1 + 2) * rows * f,
    "fp8_swiglu_backward": (2 + 2 + 2 + 2 + 1) * rows * f, "fp8_combine_backward": 3 * rows * c + 2 * n * c,
    "fp8_weights": 4 * experts * expert, "fp8_e5m6_pack": 7 * n * o // 2, "fp8_e5m6_unpack": 7 * n * o // 2,
    "fp8_dense": n * o + c * o + 2 * n * c, "fp8_dense_weight": n * o + n * c + 8 * c * o,
    "fp8_experts": rows * (c + f + 2 * (2 * f + c)) + experts * expert,
    "fp8_experts_input": rows * (c + 2 * f + 2 * (f + c)) + experts * expert,
    "fp8_experts_weight": rows * (2 * c + 3 * f) + 8 * experts * expert,
}
for name, want in flop.items():
    assert h[name]["flop"] == want, (name, h[name]["flop"], want)
for name, want in moved.items():
    assert h[name]["bytes"] == want, (name, h[name]["bytes"], want)
for name, k in h.items():
    assert name in flop or (k["flop"] == 0 and name in moved or name == "norm_backward"), name
    products = name.startswith("fp8_") and k["flop"] > 0
    bound = max(k["flop"] / (1979e12 if products else 989e12), k["bytes"] / 3e12)
    assert k["modelled"] == (cuda and products), name
    if k["modelled"]:  # a tile's model is above the bound, and not far
        assert 1 < k["predicted_ms"] / 1e3 / bound < 2.5, (name, k, bound)
        assert 100000 < k["tiles"][0]["shared_bytes"] <= 232448 and k["tiles"][0]["stages"] >= 3, k
    else:
        assert abs(k["predicted_ms"] / 1e3 / bound - 1) < 1e-4, (name, k, bound)
assert len(h) == 37, len(h)

compiled = facts["cuda_kernels"]
assert bool(compiled) == cuda
counted = bool(compiled) and compiled[0]["sass"] is not None
for name, k in h.items() if compiled else ():
    for begin in k["cuda"]:
        family = [x for x in compiled if x["name"].startswith(begin)]
        assert family and all(8 <= x["registers"] <= 255 for x in family), (name, begin)
    assert k["cuda"], name
for k in compiled if counted else ():
    s, name = k["sass"], k["name"]
    assert s["all"] > 0 and s["all"] >= sum(v for key, v in s.items() if key != "all"), k
    hopper8 = name.startswith("gemm_fp8_sm90_kernel")
    assert (s["qgmma"] > 0) == hopper8 and (s["hgmma"] > 0) == name.startswith("gemm_sm90_kernel"), k
    assert not hopper8 or (s["tma"] >= 3 and s["ffma"] >= 16 and s["local"] == 0 and k["spilled_bytes"] == 0), k
print(len(h), "kernels,", len(compiled), "compiled,", "instructions counted" if counted else "instructions not counted")
PY
expect_rc 0 ranks 2 "$binary" bench "$v3" --kernels --facts
expect_same "$(grep -c "one layer and" "$out")" 1 "times that two ranks print the facts"
expect_text "fp8_experts_weight"
[ $cuda = 1 ] || expect_text "no CUDA kernels in this binary"
# In f32 other kernels multiply, and nothing is in FP8.
expect_rc 0 "$binary" bench "$source_dir/configs/tiny-mixtral-8x7b.yaml" --kernels --facts --json train.precision=fp32
python3 - "$out" <<'PY' || fail "facts in f32"
import json, sys
h = json.load(open(sys.argv[1]))["h100"]
assert not any(name.startswith("fp8") for name in h) and h["linear_forward"]["cuda"] == ["gemm_f32_kernel"], h
PY

echo "a peer"
cat >"$work/peer" <<'PEER'
#!/bin/sh
echo "peer Somebody 1.0"
echo "words: $*" >&2
nproc >"$(dirname "$0")/cores"
echo "linear_forward 1000000"
echo "fp8_dense - lacks FP8"
echo "of_nobody 3"
PEER
chmod +x "$work/peer"
make_config
small=("$work/tiny.yaml" --kernels train.precision=bf16 train.sequence_length=16 train.micro_batch=2 run.threads=1)
expect_rc 0 "$binary" bench "${small[@]}" --peer "$work/peer"
expect_text "beside Somebody 1.0"
expect_text "1000000.000 ms"
[ "$(cat "$work/cores")" = "$(nproc)" ] || fail "the peer has $(cat "$work/cores") of $(nproc) cores"
expect_text "--plain --device cpu --dtype bfloat16 --dims n=32,t=16,c="
! grep -q of_nobody "$out" || fail "a kernel that is not ours"
expect_rc 0 "$binary" bench "${small[@]}" --json --peer "$work/peer"
python3 - "$out" <<'PY' || fail "a peer in JSON"
import json, sys
r = json.load(open(sys.argv[1]))
assert r["peer"] == {"name": "Somebody 1.0", "ms": {"linear_forward": 1e6}}, r["peer"]
for name, k in r["kernels"].items():
    assert k["ms"] > 0 and (k["share_of_peak"] is None) == (r["h100"][name]["flop"] == 0), name
PY
expect_rc 0 "$binary" bench "${small[@]}" --peer "echo no PyTorch here; exit 77;"
expect_text "no peer: no PyTorch here"
expect_rc 70 "$binary" bench "${small[@]}" --peer "exit 3;"
expect_text "exit code 3"
expect_rc 70 "$binary" bench "${small[@]}" --peer "echo linear_forward quick #"
expect_text "says no times: 'linear_forward quick'"
expect_rc 70 "$binary" bench "${small[@]}" --peer "true"
expect_text "says no times"
expect_rc 77 python3 "$source_dir/tests/gpu/bench.py" --device cpu
expect_text "no PyTorch"
expect_error 64 "--facts and --peer are of --kernels" "$binary" bench "$work/tiny.yaml" --peer "$work/peer"
expect_error 64 "--facts and --peer are of --kernels" "$binary" bench "$work/tiny.yaml" --facts
expect_error 64 "--peer is for one rank" ranks 2 "$binary" bench "${small[@]}" --peer "$work/peer" parallel.ep=2
finish
