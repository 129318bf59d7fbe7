#!/usr/bin/env bash
# Weights go in and out bit by bit, whatever their names, files and dtypes; what is not a whole model
# is refused with one line.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"
cd "$work"
model() { python3 "$source_dir/tests/cli/hf_model.py" "$@"; }
same() { model same "$1" "$2" >"$out" || { fail "$1 and $2 differ"; cat "$out"; }; }
close() { model close "$1" "$2" "$3" >"$out" || { fail "$1 and $2 differ"; cat "$out"; }; }

echo "round trips, bit by bit"
for family in mixtral deepseek_v2 deepseek_v3; do
    for dtype in F32 BF16 F16 FP8; do
        name=$family-$dtype
        model make $name $family $dtype
        expect_rc 0 "$binary" import $name c-$name-1
        expect_rc 0 "$binary" export c-$name-1 e-$name-1
        same $name e-$name-1
        case $dtype-$full in BF16-0 | F16-0) continue ;; esac # two ranks: 4 bytes and codes; all with --full
        expect_rc 0 ranks 2 "$binary" import $name c-$name-2
        expect_rc 0 ranks 2 "$binary" export c-$name-2 e-$name-2
        same $name e-$name-2
    done
done
expect_rc 0 "$binary" import mixtral-F32 c-json --json
expect_text '{"tensors":41,"bytes":'
expect_rc 0 "$binary" export c-json e-json --json
expect_text '"shards":1,'
expect_rc 0 ranks 2 "$binary" export c-json e-shards --shard-mb 1
same mixtral-F32 e-shards
grep -q '"torch_dtype": "float16"' e-mixtral-F16-1/config.json || fail "torch_dtype of f16"
grep -q '"bos_token_id": 11' e-mixtral-F16-1/config.json || fail "bos_token_id is lost"
grep -q '"weight_block_size"' e-deepseek_v3-FP8-1/config.json || fail "quantization_config of fp8"
! grep -q 'quantization' e-deepseek_v3-F16-1/config.json || fail "quantization_config without fp8"
cmp e-deepseek_v2-F32-1/config.json e-deepseek_v2-F32-2/config.json || fail "config.json at 2 ranks"

# Files that transformers 5.23 loaded, with the same logits as the models they came from.
sha256sum --check --quiet >"$out" 2>&1 <<'SUMS' || { fail "exports are other bytes than before"; cat "$out"; }
68816ed298768910642ff6c9e3b36032584fba91962bfa0e19a20e3100b62229  e-mixtral-F32-1/model.safetensors
79a6e56bbc1143ac4526be3c499f66fc71e97f4d45de240ccc8244c851629d19  e-deepseek_v2-F32-1/model.safetensors
04d97371e24405eaa37efb1b6b70c3ce836bb0779fb30c0c42625f3ab75ac84a  e-deepseek_v3-F32-1/model.safetensors
d078cabb2d6a8374bfb69b4424905a9a0af26b8ca7c255cdda0317011b46c09b  e-mixtral-F32-1/config.json
2bf7eb75586241f019a2b5aa396f44f9508e5193b69c7f2036e8f5622a1f0d5e  e-deepseek_v2-F32-1/config.json
018780c16cf1d526a7d9215dd12f87e051db134f62c47732b11c5e2730b5534f  e-deepseek_v3-F32-1/config.json
SUMS

echo "other names, files and config.json of transformers 5"
for family in mixtral deepseek_v2 deepseek_v3; do
    for dtype in BF16 FP8; do
        model make p $family $dtype inner=128
        model make f $family $dtype inner=128 fused new
        model make s $family $dtype inner=128 shards=5
        for form in f s; do
            expect_rc 0 ranks 2 "$binary" import $form c-$form
            expect_rc 0 "$binary" export c-$form e-$form
            same p e-$form
            rm -rf c-$form e-$form
        done
        expect_rc 0 "$binary" import p c-p
        rm -rf p f s c-p
    done
done

echo "an exported model imports again to the same"
for name in mixtral-BF16 deepseek_v2-FP8 deepseek_v3-F32; do
    expect_rc 0 "$binary" import e-$name-1 again
    expect_rc 0 "$binary" export again e-again
    same $name e-again
    cmp e-$name-1/config.json e-again/config.json || fail "config.json of $name changes"
    rm -rf again e-again
done

model make m mixtral FP8 float8=model.embed_tokens.weight
expect_rc 0 "$binary" import m c-m
expect_rc 0 "$binary" export c-m e-m
same m e-m
grep -q '"torch_dtype": "bfloat16"' e-m/config.json || fail "torch_dtype beside a float8 embedding"

echo "multi-token prediction"
for dtype in BF16 FP8; do
    model make mtp-$dtype deepseek_v3 $dtype mtp=1
    expect_rc 0 ranks 2 "$binary" import mtp-$dtype c-mtp-$dtype
    expect_rc 0 ranks 2 "$binary" export c-mtp-$dtype e-mtp-$dtype
    same mtp-$dtype e-mtp-$dtype
    grep -q '"num_nextn_predict_layers": 1' e-mtp-$dtype/config.json || fail "depth of $dtype"
done
model make m deepseek_v3 BF16 set=num_nextn_predict_layers:1
expect_rc 0 "$binary" import m c-none
expect_text "imported without multi-token prediction"
expect_text "model.num_nextn_predict_layers: 0 beside model.hf_config"
expect_error 65 "no tensor is of layer 2 or beyond" "$binary" import m c model.num_nextn_predict_layers=1
expect_rc 0 "$binary" export c-none e-none
grep -q '"num_nextn_predict_layers": 0' e-none/config.json || fail "depth without weights"
model make m deepseek_v3 BF16 mtp=1 set=num_nextn_predict_layers:0
expect_error 65 "num_nextn_predict_layers is 0" "$binary" import m c
expect_rc 0 "$binary" import m c-with model.num_nextn_predict_layers=1
expect_rc 0 "$binary" export c-with e-with
same m e-with
expect_rc 0 "$binary" import m c-without model.num_nextn_predict_layers=0
expect_text "32 tensors of multi-token prediction left out"
model make m deepseek_v3 BF16 mtp=1 touch=model.layers.2.embed_tokens.weight
expect_error 65 "model.layers.2.embed_tokens.weight differs from model.embed_tokens.weight" \
    ranks 2 "$binary" import m c
model make m deepseek_v3 BF16 mtp=1 touch=model.layers.2.shared_head.head.weight
expect_error 65 "shared_head.head.weight differs" "$binary" import m c
model make m deepseek_v3 BF16 mtp=1 drop=model.layers.2.enorm.weight,model.layers.2.mlp.gate.weight
expect_error 65 "2 tensors missing (model.layers.2.mlp.gate.weight, model.layers.2.enorm.weight)" \
    "$binary" import m c

echo "dtypes of an export"
for name in mixtral-F32 deepseek_v3-F32; do
    expect_rc 0 "$binary" export c-$name-1 bf16 --dtype bf16
    close $name bf16 0.004
    expect_rc 0 ranks 2 "$binary" export c-$name-1 fp8 --dtype fp8
    close $name fp8 0.04
    # Scales that stand in another file than their codes are the same.
    expect_rc 0 ranks 2 "$binary" export c-$name-1 fp8-files --dtype fp8 --shard-mb 1
    same fp8 fp8-files
    rm -rf fp8-files
    model list fp8 >list
    grep -q 'F8_E4M3' list || fail "no float8 in an export with --dtype fp8"
    ! grep -E 'embed|lm_head|norm|gate.weight|eh_proj' list | grep -q F8_E4M3 || fail "float8 where none belongs"
    expect_rc 0 "$binary" import fp8 c-fp8
    expect_rc 0 "$binary" export c-fp8 f32 --dtype f32
    close fp8 f32 1e-6
    expect_rc 0 "$binary" export c-fp8 fp8-again --dtype fp8
    same fp8 fp8-again
    rm -rf bf16 fp8 c-fp8 f32 fp8-again
done

echo "training from an import, exporting a run"
make_data
for family in mixtral deepseek_v2 deepseek_v3; do
    name=$family-F32
    cat >tuned.yaml <<YAML
run:        {dir: run-$family, steps: 4, threads: 1, pin: false}
model:      {hf_config: $name}
train:      {sequence_length: 32, micro_batch: 2, global_batch: 8, precision: fp32}
optimizer:  {lr: 1e-3}
schedule:   {kind: constant, warmup_steps: 0}
data:       {train: train.h5, valid: valid.h5}
checkpoint: {every_steps: 0, init_from: c-$name-2}
YAML
    for word in F32 BF16 F16 FP8; do
        expect_rc 0 "$binary" eval c-$family-$word-1 --data valid.h5 --json train.sequence_length=32 \
            train.precision=fp32
        expect_text '"loss":'
        echo "$family $word $(sed -n 's/.*"loss":\([^,]*\).*/\1/p' "$out")" >>losses
    done
    expect_rc 0 ranks 2 "$binary" train tuned.yaml parallel.ep=2
    close_to 0.05 "$(sed -n "s/^$family F32 //p" losses)" "$(metric run-$family loss | head -n 1)" \
        "first loss from imported weights of $family"
    expect_rc 0 ranks 2 "$binary" export run-$family e-run-$family
    model list e-run-$family | grep -v e_score_correction_bias | grep -vq BF16 && fail "a run exports as bf16"
    expect_rc 0 "$binary" export run-$family e-run-$family-f32 --dtype f32
    close e-run-$family-f32 e-run-$family 0.004
    ! model same $name e-run-$family-f32 >/dev/null || fail "training changed nothing"
    mv $name $name-moved # the run knows its config without the folder it came from
    expect_rc 0 "$binary" export run-$family e-run-$family-again
    same e-run-$family e-run-$family-again
    mv $name-moved $name
    expect_error 65 "no averaged weights" "$binary" export run-$family x --ema
done
expect_rc 0 "$binary" train tuned.yaml run.dir=run-ema optimizer.ema=0.9
expect_rc 0 "$binary" export run-ema e-last --dtype f32
expect_rc 0 "$binary" export run-ema e-ema --dtype f32 --ema
close e-last e-ema 0.05
! model same e-last e-ema >/dev/null || fail "the average is the last weights"
expect_rc 0 "$binary" generate c-deepseek_v3-FP8-1 --prompt ab --count 4
close_to 0.02 "$(sed -n 's/^mixtral F32 //p' losses)" "$(sed -n 's/^mixtral BF16 //p' losses)" "loss in bf16"

echo "upcycling"
model make dense llama F32
model make dense-bf16 llama BF16
expect_rc 0 "$binary" import dense up-1-1-1 --upcycle 1
for how in "4 2 1" "4 1 2" "8 2 4" "3 3 3"; do
    read -r copies top split <<<"$how"
    expect_rc 0 ranks 2 "$binary" import dense "up-$copies-$top-$split" --upcycle "$copies" \
        --top-k "$top" --split "$split"
done
expect_rc 0 "$binary" import dense-bf16 up-bf16 --upcycle 4 --split 2 train.precision=fp32
for place in up-*; do
    expect_rc 0 ranks 2 "$binary" eval "$place" --data valid.h5 --json train.sequence_length=32 \
        train.precision=fp32
    loss=$(sed -n 's/.*"loss":\([^,]*\).*/\1/p' "$out")
    [ "$place" != up-1-1-1 ] || dense=$loss
    [ "$place" = up-bf16 ] || close_to 1e-6 "$dense" "$loss" "loss of $place and of the dense model"
done
expect_rc 0 "$binary" export up-8-2-4 e-up
grep -q '"num_local_experts": 32' e-up/config.json || fail "experts after upcycling"
grep -q '"num_experts_per_tok": 8' e-up/config.json || fail "top-k after upcycling"
expect_error 64 "--split 5 does not divide intermediate_size 96" "$binary" import dense x --upcycle 2 --split 5
expect_error 65 "upcycling starts from llama or mistral" "$binary" import mixtral-F32 x --upcycle 2
expect_error 64 "model_type 'llama'" "$binary" import dense x
expect_error 64 "belong to --upcycle" "$binary" import dense x --split 2
expect_error 64 "--top-k" "$binary" import dense x --upcycle 2 --top-k 3
expect_error 64 "--upcycle E from 1" "$binary" import dense x --upcycle 0
expect_error 64 "--upcycle E from 1" "$binary" import dense x --upcycle -2
for key in num_local_experts=8 num_experts_per_tok=1 intermediate_size=48 family=mixtral hf_config=dense; do
    expect_error 64 "model.${key%=*}: --upcycle" "$binary" import dense x --upcycle 2 "model.$key"
done
grep -q "precision: fp32" <(sed 's/\\n/\n/g' up-1-1-1/state.json) || fail "precision of an upcycled f32 model"
grep -q "precision: bf16" <(sed 's/\\n/\n/g' c-mixtral-BF16-1/state.json) || fail "precision of a bf16 model"
model make m llama F16 big=model.layers.1.mlp.down_proj.weight
expect_rc 0 "$binary" import m up-f16-1 --upcycle 2
expect_error 65 "model.layers.1.mlp.down_proj.weight: times 4 (--split) is too large for f16" \
    "$binary" import m x --upcycle 2 --split 4
model make m llama F32 drop=model.layers.1.mlp.up_proj.weight
expect_error 65 "1 tensor missing (model.layers.1.mlp.up_proj.weight)" "$binary" import m x --upcycle 4

echo "bad models"
bad() { # FRAGMENT FAMILY DTYPE OPTION...
    local fragment=$1
    shift
    rm -rf m
    model make m "$@"
    expect_error 65 "$fragment" "$binary" import m c
    [ ! -e c ] || fail "a checkpoint was left by a failed import"
}
bad "1 tensor missing (model.norm.weight)" mixtral F32 drop=model.norm.weight
bad "2 tensors that the model of config.json has not (a.b, model.extra)" mixtral F32 add=model.extra,a.b
bad "1 tensor missing (lm_head.weight); 1 tensor that" mixtral F32 drop=lm_head.weight add=head
bad "is [4, 64], config.json asks for [6, 64]" mixtral F32 set=num_local_experts:6
bad "19 tensors missing (" mixtral F32 set=num_hidden_layers:3
expect_same "$(grep -o 'model\.layers\.2' "$err" | wc -l)" 10 "names in a long list"
bad "19 tensors that the model of config.json has not (" mixtral F32 set=num_hidden_layers:1
bad "w1.weight is [48, 64], config.json asks for [96, 64]" mixtral F32 set=intermediate_size:96
bad "is [64, 257], config.json asks for [257, 64]" mixtral F32 reshape=lm_head.weight
bad "model.norm.weight: 3 of 64 values are NaN or infinite" mixtral F32 nan=model.norm.weight:3
expect_error 65 "3 of 64 values are NaN or infinite" ranks 2 "$binary" import m c
bad "model.layers.0.block_sparse_moe.experts.0.w1.weight is also in model.layers.0.mlp.experts.gate_up_proj" \
    mixtral F32 add=model.layers.0.mlp.experts.gate_up_proj
bad "model.layers.1.block_sparse_moe.gate.weight is also in model.layers.1.mlp.gate.weight" \
    mixtral F32 add=model.layers.1.mlp.gate.weight
bad "model.layers.1.mlp.experts.2.up_proj.weight is also in model.layers.1.mlp.experts.gate_up_proj" \
    deepseek_v3 F32 fused add=model.layers.1.mlp.experts.2.up_proj.weight
bad "lm_head.weight: 5 of 16448 values" mixtral BF16 nan=lm_head.weight:5
bad "lm_head.weight: 2 of 16448 values" mixtral F16 nan=lm_head.weight:2
bad "q_proj.weight: 1 of 4096 values" mixtral FP8 nan=model.layers.0.self_attn.q_proj.weight:1
bad "experts.gate_up_proj is [4, 96, 64], config.json asks for [4, 192, 64]" mixtral F32 fused \
    set=intermediate_size:96
bad "has dtype 'F8_E5M2'" mixtral F32 retype=model.norm.weight:F8_E5M2
bad "has dtype I64" mixtral F32 retype=model.norm.weight:I64
bad "q_proj.weight_scale_inv" mixtral FP8 drop=model.layers.0.self_attn.q_proj.weight_scale_inv
bad "gate and up" mixtral FP8 fused
bad "quantization_config is gptq" mixtral F32 'set=quantization_config:{"quant_method":"gptq"}'
bad "weight_block_size" mixtral FP8 'set=quantization_config:{"quant_method":"fp8"}'
for ranks in 1 2; do
    rm -rf m && model make m mixtral F32 nan=model.norm.weight:3,lm_head.weight:2,model.embed_tokens.weight:1
    expect_error 65 "m: 6 values in 3 tensors are NaN or infinite (model.embed_tokens.weight, model.norm.weight" \
        ranks $ranks "$binary" import m c
done
for key in n_routed_experts num_experts_per_tok moe_intermediate_size kv_lora_rank qk_nope_head_dim \
    qk_rope_head_dim v_head_dim; do
    rm -rf m && model make m deepseek_v3 F32 "unset=$key"
    expect_error 64 "key '$key' is missing" "$binary" import m c
done
rm -rf m && model make m deepseek_v2 F32 unset=rms_norm_eps,rope_theta set=auto_map:1
expect_rc 0 "$binary" import m c-silent
expect_text "not in it, and as transformers has them: rms_norm_eps 1e-06, rope_theta 1e+04"
expect_text "keys that mean nothing to training: architectures, bos_token_id, eos_token_id, torch_dtype, auto_map"
expect_rc 0 "$binary" train tuned.yaml run.dir=run-silent model.hf_config=m checkpoint.init_from=null run.steps=1
expect_text "not in it, and as transformers has them: rms_norm_eps"
rm -rf m && model make m mixtral F32 shards=3
truncate -s -5 m/model-00002-of-00003.safetensors
expect_error 65 "model-00002-of-00003.safetensors" "$binary" import m c
expect_text "truncated"
rm m/model-00002-of-00003.safetensors
expect_error 65 "model-00002-of-00003.safetensors: missing" "$binary" import m c
sed -i 's#model-00001-of#../model-00001-of#' m/model.safetensors.index.json
expect_error 65 "a plain file name" "$binary" import m c
for family in gpt2 qwen2_moe; do
    rm -rf m && model make m mixtral F32 "set=model_type:\"$family\""
    expect_error 64 "model_type '$family'" "$binary" import m c
done
rm m/config.json
expect_error 65 "no config.json" "$binary" import m c
echo '{"model_type": "mixtral",' >m/config.json
expect_error 65 "m/config.json: line" "$binary" import m c
truncate -s 8388609 m/config.json
expect_error 65 "8388609 bytes, more than the 8388608" "$binary" import m c
python3 -c 'print("{\"a\":" + "[" * 50000 + "]" * 50000 + "}")' >m/config.json
expect_error 65 "m/config.json: its JSON is nested deeper than 8" "$binary" import m c
rm m/config.json && mkfifo m/config.json
expect_error 65 "m/config.json: is a pipe or a device" timeout 10 "$binary" import m c
mkdir empty
expect_error 65 "no config.json" "$binary" import empty c

echo "bad places"
expect_error 74 "nowhere: no such folder" "$binary" import nowhere c
expect_error 64 "is there already" "$binary" import mixtral-F32 c-json
expect_error 64 "did you mean" "$binary" import mixtral-F32 c train.micro_bach=2
expect_error 64 "is there already" "$binary" export c-json e-json
expect_error 64 "is there already" "$binary" import nowhere c-json/ # before anything is read
expect_error 64 "'' is no name" "$binary" import mixtral-F32 ""
expect_error 64 "'' is no name" "$binary" export c-json ""
expect_rc 0 "$binary" export c-json slash//
same mixtral-F32 slash
expect_error 74 "nowhere: no checkpoint" "$binary" export nowhere x
expect_error 65 "empty: no checkpoint" "$binary" export empty x
expect_error 65 "import it first" "$binary" export mixtral-F32 x
expect_error 65 "import it first" "$binary" generate mixtral-F32 --prompt a
expect_error 64 "--dtype 'f8' is not" "$binary" export c-json x --dtype f8
expect_error 64 "too few arguments" "$binary" export c-json
touch file
expect_error 74 "file: cannot use as a folder" "$binary" import mixtral-F32 file/c
expect_error 74 "file" "$binary" export c-json file/x
[ ! -e x ] || fail "a failed export left its folder"
expect_same "$(find . -maxdepth 1 -name '*.tmp*' | wc -l)" 0 "temporary folders left"
cp -r c-json c-torn
printf 'x' | dd of="$(echo c-torn/shard-00000.h5)" bs=1 seek=200000 conv=notrunc 2>/dev/null
expect_error 65 "damaged in block" "$binary" export c-torn x
rm -rf x && mkdir x
expect_rc 0 "$binary" export c-json x # an empty folder is as good as none
same mixtral-F32 x

if unshare -m true 2>/dev/null && unshare -m mount -t tmpfs -o size=300k none /mnt 2>/dev/null; then
    expect_error 74 "free space or name a folder elsewhere" unshare -m bash -c \
        "mount -t tmpfs -o size=300k none /mnt && '$binary' export c-json /mnt/x"
    expect_error 74 "free space or name a folder elsewhere" unshare -m bash -c \
        "mount -t tmpfs -o size=300k none /mnt && '$binary' import mixtral-F32 /mnt/x"
fi

echo "a signal leaves nothing"
python3 - "$binary" <<'PY' || fail "an import stopped by a signal"
import json, os, signal, struct, subprocess, sys, time
# Holes read as zeros: much to import, little on disk.
rows, big = 4000000, ("model.embed_tokens.weight", "lm_head.weight")
text = open("mixtral-F32/model.safetensors", "rb").read()
size = struct.unpack("<Q", text[:8])[0]
tensors, at = json.loads(text[8:8 + size]), 0
tensors.pop("__metadata__", None)
for name, t in tensors.items():
    t["shape"][0] = rows if name in big else t["shape"][0]
    count = t["shape"][0] * t["shape"][-1] if len(t["shape"]) > 1 else t["shape"][0]
    t["data_offsets"], at = [at, at + 4 * count], at + 4 * count
os.makedirs("hole")
head = json.dumps(tensors).encode()
with open("hole/model.safetensors", "wb") as f:
    f.write(struct.pack("<Q", len(head)) + head)
    f.truncate(8 + len(head) + at)
config = json.load(open("mixtral-F32/config.json"))
json.dump({**config, "vocab_size": rows}, open("hole/config.json", "w"))
for number in (signal.SIGINT, signal.SIGTERM, signal.SIGKILL):
    p = subprocess.Popen([sys.argv[1], "import", "hole", "c-hole"], stderr=subprocess.DEVNULL)
    while not os.path.exists(".tmp-c-hole/shard-00000.h5"):
        time.sleep(0.01)
    p.send_signal(number)
    code = p.wait()
    assert code == (-9 if number == 9 else 128 + number), code
    assert os.path.exists(".tmp-c-hole") == (number == 9), number
PY
expect_rc 0 "$binary" import mixtral-F32 c-hole # what the killed one left goes
expect_same "$(find . -maxdepth 1 -name '.tmp*' | wc -l)" 0 "folders left by a killed import"

if [ "$full" = 1 ]; then
    echo "memory stays bounded"
    python3 - large <<'PY'
import json, os, struct, sys
folder, width, inner, experts = sys.argv[1], 1024, 3584, 8
os.makedirs(folder)
t = {"model.embed_tokens.weight": [8000, width], "model.norm.weight": [width], "lm_head.weight": [8000, width]}
p = "model.layers.0."
t.update({p + "input_layernorm.weight": [width], p + "post_attention_layernorm.weight": [width]})
for n in "qkvo":
    t[p + f"self_attn.{n}_proj.weight"] = [width, width]
t[p + "mlp.gate.weight"] = [experts, width]
t[p + "mlp.experts.gate_up_proj"] = [experts, 2 * inner, width]
t[p + "mlp.experts.down_proj"] = [experts, width, inner]
header, at = {}, 0
for name, shape in t.items():
    size = 4
    for d in shape:
        size *= d
    header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [at, at + size]}
    at += size
text = json.dumps(header).encode()
block = struct.pack("<4096f", *[(i % 97 - 48) / 1000 for i in range(4096)])
with open(folder + "/model.safetensors", "wb") as f:
    f.write(struct.pack("<Q", len(text)) + text)
    for _ in range(at // len(block)):
        f.write(block)
    f.write(block[:at % len(block)])
json.dump(dict(model_type="mixtral", vocab_size=8000, hidden_size=width, intermediate_size=inner, num_hidden_layers=1,
               num_attention_heads=16, num_key_value_heads=16, num_local_experts=experts, num_experts_per_tok=2,
               max_position_embeddings=4096, torch_dtype="float32"), open(folder + "/config.json", "w"))
PY
    # most_memory COMMAND...: MiB of the largest process among it and its children.
    most_memory() {
        python3 -c 'import resource, subprocess, sys
subprocess.run(sys.argv[1:], check=True, stdout=subprocess.DEVNULL)
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss // 1024)' "$@"
    }
    for command in "import large c-large" "export c-large e-large" "export c-large e-large-fp8 --dtype fp8"; do
        # shellcheck disable=SC2086
        used=$(most_memory "$binary" $command)
        echo "$command: $used MiB"
        [ "$used" -le 120 ] || fail "$command took $used MiB for a model of $(du -m large/model.safetensors | cut -f1)"
    done
fi
finish
