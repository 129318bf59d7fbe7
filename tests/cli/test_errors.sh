#!/usr/bin/env bash
# What is wrong is refused with one line and the documented exit code, and nothing is lost by it.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"
make_data
make_config
cd "$work"
train() { "$binary" train tiny.yaml "$@"; }

echo "command line"
expect_error 64 "did you mean 'train'" "$binary" trian tiny.yaml
expect_error 64 "did you mean '--fresh'" "$binary" train --frehs tiny.yaml
expect_error 64 "train CONFIG" "$binary" train
expect_error 64 "unexpected 'other.yaml'" "$binary" train tiny.yaml other.yaml
expect_error 64 "--prompt" "$binary" generate run
expect_error 64 "--count needs a whole number" "$binary" generate run --prompt a --count many
expect_error 64 "--temperature needs a number" "$binary" generate run --prompt a --temperature nan
expect_error 64 "--top-p" "$binary" generate run --prompt a --top-p 2
expect_error 64 "--seed needs a value" "$binary" generate run --prompt a --seed
expect_error 64 "did you mean '--data'" "$binary" eval run --dta x
expect_error 64 "unknown action 'remove'" "$binary" ckpt remove run
expect_error 64 "trace: too few arguments" "$binary" trace
expect_error 64 "did you mean 'diff'" "$binary" trace dif a.h5 b.h5
for command in train prepare tokenizer import export eval generate plan bench ckpt trace doctor config; do
    expect_rc 0 "$binary" $command --help
    expect_text "usage: switchyard $command"
done
expect_rc 0 "$binary" --version
# A program with the GPU device names what of it was built in.
if grep -q cuda "$out"; then
    grep -qE '^devices: .*cuda \(.*; (no cuBLASLt|cuBLASLt [0-9.]+), (no cuDNN|cuDNN [0-9.]+)\)$' "$out" || fail "--version does not name cuBLASLt and cuDNN"
fi
expect_rc 0 "$binary" --help-keys
expect_text "router.buffer_factor"

echo "config files"
# config_case FRAGMENT SED: tiny.yaml after this edit is refused, with file, line and column.
config_case() {
    sed "$2" tiny.yaml >bad.yaml
    ! cmp -s tiny.yaml bad.yaml || fail "the edit '$2' changed nothing"
    expect_error 64 "$1" "$binary" config bad.yaml
    grep -qE 'bad\.yaml:[0-9]+:[0-9]+: ' "$err" || { fail "no file:line:col"; show_last; }
}
config_case "did you mean 'train.micro_batch'" 's/micro_batch/micro_bach/'
config_case "did you mean 'model" 's/^model:/modle:/'
config_case "given twice" 's/seed: 7/seed: 7, seed: 8/'
config_case "a tab" 's/^  hidden_size: 32/\thidden_size: 32/'
config_case "aliases" 's/hidden_size: 32/hidden_size: \&a 32/'
config_case "aliases" 's/hidden_size: 32/hidden_size: *a/'
config_case "tags" 's/hidden_size: 32/hidden_size: !!int 32/'
config_case "'yes' is not a whole number" 's/micro_batch: 2/micro_batch: yes/'
config_case "'0x10' is not a whole number" 's/micro_batch: 2/micro_batch: 0x10/'
config_case "'1_0' is not a whole number" 's/micro_batch: 2/micro_batch: 1_0/'
config_case "'1.5' is not a whole number" 's/micro_batch: 2/micro_batch: 1.5/'
config_case "is outside" 's/micro_batch: 2/micro_batch: 0/'
config_case "is outside" 's/micro_batch: 2/micro_batch: -2/'
config_case "micro_batch" 's/micro_batch: 2/micro_batch: 99999999999999999999/'
config_case "null is not a value" 's/micro_batch: 2/micro_batch: null/'
config_case "write it without quotes" 's/micro_batch: 2/micro_batch: "2"/'
config_case "one value is expected" 's/micro_batch: 2/micro_batch: [2]/'
config_case "one value is expected" 's/micro_batch: 2/micro_batch: {a: 2}/'
config_case "a section of keys is expected" 's/^optimizer:.*/optimizer: 5/'
for value in nan .nan inf -.inf 1e999 1e yes; do
    config_case "is not a number" "s/lr: 3e-3/lr: $value/"
done
config_case "neither true nor false" 's/train.h5,/train.h5, shuffle: yes,/'
config_case "'rocm' is not one of cpu, cuda" 's/seed: 7/seed: 7, device: rocm/'
config_case "'gloo' is not one of auto, self, mpi, nccl" 's/seed: 7/seed: 7, comm: gloo/'
config_case "'fp16' is not one of fp32, bf16, fp8" 's/precision: fp32/precision: fp16/'
config_case "'llama' is not one of mixtral" 's/family: mixtral/family: llama/'
config_case "'sgd' is not one of adamw, muon" 's/^optimizer:  *{/optimizer: {name: sgd, /'
config_case "'weihgt' is not one of" 's#train: [^,]*train.h5#train: [{path: a.h5, weihgt: 1}, {path: b.h5, weight: 1}]#'
relation() { # FRAGMENT key=value...
    local fragment=$1
    shift
    expect_error 64 "$fragment" "$binary" config tiny.yaml "$@"
}
relation "does not divide model.num_local_experts 4" parallel.ep=3
relation "parallel.etp 5 does not divide model.intermediate_size" parallel.etp=5
relation "parallel.etp 2 with run.deterministic layout" parallel.etp=2 run.deterministic=layout
relation "more than the 12288 that are sorted on a GPU" parallel.etp=8 run.device=cuda model.num_local_experts=2048
relation "more than 32 bits count" parallel.etp=16 train.sequence_length=100000000 model.max_position_embeddings=100000000
relation "parallel.tp 4 does not divide model.num_key_value_heads 2" parallel.tp=4
relation "parallel.node_dispatch hierarchical with router.dispatch padded: not built" parallel.ep=2 parallel.node_dispatch=hierarchical router.dispatch=padded
relation "parallel.node_dispatch hierarchical: parallel.ep 1" parallel.node_dispatch=hierarchical
relation "parallel.ranks_per_node 2: parallel.node_dispatch flat" parallel.ep=2 parallel.node_dispatch=flat parallel.ranks_per_node=2
relation "parallel.ranks_per_node 2: router.dispatch padded" parallel.ep=2 router.dispatch=padded parallel.ranks_per_node=2
relation "parallel.ranks_per_node 2: parallel.ep 1" parallel.ep=1 parallel.ranks_per_node=2
relation "parallel.schedule dualpipe: planned only" parallel.pp=2 parallel.schedule=dualpipe
relation "parallel.overlap off: only with parallel.ep or parallel.etp above 1, and parallel.pp 1" parallel.pp=2 parallel.ep=2 parallel.overlap=off
relation "parallel.overlap on: only with parallel.ep" parallel.overlap=on
relation "parallel.overlap on with debug.trace: not built" parallel.ep=2 parallel.overlap=on debug.trace=t.h5
relation "parallel.overlap on with parallel.zero 3: not built" parallel.ep=2 parallel.zero=3 parallel.overlap=on
relation "parallel.overlap on with parallel.zero 3: not built" parallel.pp=2 parallel.ep=2 parallel.zero=3 parallel.overlap=on \
    parallel.schedule=dualpipe_v
relation "parallel.virtual_stages 2 is of parallel.schedule 1f1b" parallel.pp=2 parallel.schedule=zero_bubble parallel.virtual_stages=2
relation "parallel.pp 2 with debug.trace: not built" parallel.pp=2 debug.trace=t.h5
relation "parallel.pp 2 with sample.every_steps 3: not built" parallel.pp=2 sample.every_steps=3
relation "parallel.stages: only with parallel.pp above 1" parallel.stages=1,1
relation "parallel.schedule: only with parallel.pp above 1" parallel.schedule=1f1b
relation "parallel.schedule: only with parallel.pp above 1" parallel.schedule=zero_bubble
relation "parallel.virtual_stages: only with parallel.pp above 1" parallel.virtual_stages=2
relation "is more than model.num_local_experts" model.num_experts_per_tok=5
relation "does not divide model.num_attention_heads" model.num_key_value_heads=3
relation "set model.head_dim" model.num_attention_heads=5 model.num_key_value_heads=5
relation "rotary" model.head_dim=7
relation "not a multiple of train.micro_batch" train.micro_batch=3
relation "max_position_embeddings" model.max_position_embeddings=16
relation "schedule.warmup_steps 30 is more than run.steps 20" schedule.warmup_steps=30
relation "run.dir" "run.dir="
relation "did you mean 'optimizer.lr'" optimiser.lr=1
relation "did you mean 'train.sequence_length'" model.sequence_length=1
relation "is outside" parallel.zero=4

printf 'run: {dri: a}\nmodel: {hiden_size: 3, family: mixtral}\ntrain: {micro_batch: x}\n' >several.yaml
expect_rc 64 "$binary" config several.yaml
for part in several.yaml:1: several.yaml:2: several.yaml:3:; do expect_text "$part"; done
expect_rc 0 "$binary" config tiny.yaml run.steps=1e6 optimizer.lr=1 run.seed=9e15
expect_text "  steps: 1000000"
expect_text "  seed: 9000000000000000"
cp "$out" resolved.yaml
expect_rc 0 "$binary" config resolved.yaml
cmp "$out" resolved.yaml || fail "a resolved config does not read back as itself"
expect_rc 0 "$binary" config tiny.yaml 'sample.prompt=a "b" \ #: {é' 'run.dir=it is'
cp "$out" resolved.yaml
expect_rc 0 "$binary" config resolved.yaml
cmp "$out" resolved.yaml || fail "odd text does not survive a resolved config"

: >empty.yaml
expect_error 64 "sections of keys" "$binary" config empty.yaml
head -c 4000 "$binary" >binary.yaml
expect_error 64 "binary.yaml" "$binary" config binary.yaml
printf 'run: {dir: "a' >cut.yaml
expect_error 64 "cut.yaml" "$binary" config cut.yaml
printf 'run: {dir: a}\n---\nrun: {dir: b}\n' >two.yaml
expect_rc 64 "$binary" config two.yaml
expect_text "more than one YAML document"
expect_error 74 "none.yaml" "$binary" train none.yaml
expect_error 74 "none.yaml" ranks 2 "$binary" train none.yaml
expect_error 64 "did you mean 'train.micro_batch'" ranks 2 "$binary" train tiny.yaml train.micro_bach=1

echo "config.json"
cat >config.json <<'JSON'
{"model_type":"mixtral","hidden_act":"silu","vocab_size":257,"hidden_size":32,"intermediate_size":48,
"num_hidden_layers":2,"num_attention_heads":4,"num_key_value_heads":2,"num_local_experts":4,
"num_experts_per_tok":2,"max_position_embeddings":64,"rms_norm_eps":1e-5,"rope_theta":10000.0,
"sliding_window":null,"router_aux_loss_coef":0.001,"architectures":["MixtralForCausalLM"]}
JSON
printf 'model: {hf_config: config.json}\ntrain: {sequence_length: 32}\n' >hf.yaml
expect_rc 0 "$binary" config hf.yaml
expect_text "  router_aux_loss_coef: 0.001"
hf_case() {
    sed "$2" config.json >other.json
    expect_error 64 "$1" "$binary" config hf.yaml model.hf_config=other.json
}
hf_case "model_type 'qwen'" 's/"mixtral"/"qwen"/'
hf_case "hidden_act 'gelu'" 's/silu/gelu/'
hf_case "tie_word_embeddings" 's/"hidden_act"/"tie_word_embeddings":true,"hidden_act"/'
hf_case "attention_bias" 's/"hidden_act"/"attention_bias":true,"hidden_act"/'
hf_case "hidden_size" 's/"hidden_size":32,//'
hf_case "hidden_size" 's/"hidden_size":32/"hidden_size":"32"/'
hf_case "other.json: line" 's/:257/:/'

echo "token files"
data_case() { # RC FRAGMENT FILE [key=value ...]
    local rc=$1 fragment=$2 file=$3
    shift 3
    expect_error "$rc" "$fragment" train "run.dir=refused" "data.train=$file" "$@"
    expect_error "$rc" "$fragment" train "run.dir=refused" "data.valid=$file" "$@"
    [ ! -e refused ] || { fail "a refused run made its folder ($file)"; rm -r refused; }
}
data_case 74 "nowhere.h5" nowhere.h5
: >empty.h5
data_case 65 "the file is empty" empty.h5
data_case 65 "not a token file" train.txt
head -c 20000 train.h5 >cut.h5
data_case 65 "cut.h5" cut.h5
head -c 100 train.h5 >stub.h5
data_case 65 "stub.h5" stub.h5
(cat train.h5; head -c 1000 /dev/zero) >longer.h5
expect_rc 0 train run.dir=longer data.train=longer.h5 run.steps=1 # nothing of it is missing
python3 - <<'PY'
data = open("train.h5", "rb").read()
at = data.index("return".encode("utf-16-le"))
open("large.h5", "wb").write(data[:at] + b"\xff\xff" + data[at + 2:])
PY
data_case 65 "65535" large.h5
data_case 65 "model.vocab_size is 100" train.h5 model.vocab_size=100 data.valid=null
data_case 65 "no sample of" train.h5 data.valid=train.h5 train.sequence_length=32700 model.max_position_embeddings=40000
mkdir folder.h5
expect_error 65 "folder.h5" train data.train=folder.h5
expect_error 64 "data.train" train data.train=null
expect_error 65 "cut.h5" ranks 2 "$binary" train tiny.yaml run.dir=refused data.train=cut.h5 parallel.ep=2
expect_error 64 "does not divide the 2 ranks" ranks 2 "$binary" train tiny.yaml run.dir=refused parallel.ep=4
expect_error 64 "on one machine" ranks 2 "$binary" train tiny.yaml run.dir=refused parallel.ep=2 parallel.node_dispatch=hierarchical
expect_error 64 "global_batch 8 is not a multiple" ranks 3 "$binary" train tiny.yaml run.dir=refused
expect_error 64 "global_batch 2 is not a multiple" ranks 2 "$binary" train tiny.yaml run.dir=refused train.global_batch=2
[ ! -e refused ] || fail "a refused run made its folder"

echo "checkpoints"
expect_rc 0 train checkpoint.every_steps=5 run.steps=10
expect_rc 0 train run.dir=straight
description=$(cat run/config.yaml run/run.json)
expect_error 65 "a checkpoint of another model" train model.hidden_size=48
expect_error 65 "a checkpoint of another model" train model.num_hidden_layers=3
expect_error 65 "a checkpoint of another model" train model.num_local_experts=8
expect_error 65 "a checkpoint of another model" ranks 2 "$binary" train tiny.yaml parallel.ep=2 model.intermediate_size=64
expect_error 64 "is not a multiple" train --fresh train.micro_batch=1 train.global_batch=8 parallel.ep=1 run.comm=self train.micro_batch=3
expect_error 65 "empty" train --fresh data.train=empty.h5
expect_error 64 "is not a multiple" ranks 3 "$binary" train tiny.yaml --fresh
mkdir -p bare/checkpoints
fresh_refused() { # RC FRAGMENT key=value...: on one rank and two
    local rc=$1 fragment=$2
    shift 2
    expect_error "$rc" "$fragment" train --fresh "$@"
    expect_error "$rc" "$fragment" ranks 2 "$binary" train tiny.yaml --fresh parallel.ep=2 "$@"
    expect_error "$rc" "$fragment" train run.dir=refused "$@"
}
fresh_refused 64 "matches no parameter" 'optimizer.freeze=*nothing*'
fresh_refused 64 "debug.fault" debug.fault=io:never:1
fresh_refused 65 "bare: no checkpoint here" checkpoint.init_from=bare
fresh_refused 65 "nowhere: no checkpoint here" checkpoint.init_from=nowhere
expect_error 64 "which --fresh renames" train --fresh checkpoint.init_from=run
expect_error 64 "which --fresh renames" train --fresh checkpoint.init_from=run/checkpoints/00000010
[ ! -e refused ] || fail "a refused run made its folder"
expect_same "$description" "$(cat run/config.yaml run/run.json)" "description of the run after refusals"
[ ! -e run.old-1 ] || fail "a refused --fresh moved the run"
expect_error 74 "nowhere: cannot open" "$binary" generate nowhere --prompt a
cp run/config.yaml bare
expect_error 65 "no checkpoint here" "$binary" generate bare --prompt a
expect_error 65 "no checkpoint here" "$binary" eval bare
expect_error 65 "no checkpoint here" train run.dir=from-bare checkpoint.init_from=bare

# damage NAME COMMAND...: a copy of the run where COMMAND, in the newest checkpoint's folder, ruins it.
# train goes on from step 5, says why, and ends with the same losses.
damage() {
    local name=$1
    shift
    cp -r run "$name"
    (cd "$name/checkpoints/00000010" && "$@")
    expect_rc 0 train "run.dir=$name" checkpoint.every_steps=5
    expect_text "resuming at step 5"
    grep -q "warning.*00000010" "$err" || { fail "no warning names the checkpoint ($name)"; show_last; }
    expect_same "$(metric straight loss_hex)" "$(metric "$name" loss_hex)" "losses after damage ($name)"
}
flip() { # FILE OFFSET (negative: from the end)
    python3 - "$1" "$2" <<'PY'
import sys
data = bytearray(open(sys.argv[1], "rb").read())
data[int(sys.argv[2])] ^= 4
open(sys.argv[1], "wb").write(data)
PY
}
cut() { truncate -s "$2" "$1"; }
damage flip-middle flip shard-00000.h5 300000
damage flip-end flip shard-00000.h5 -5
damage flip-start flip shard-00000.h5 9
damage flip-manifest flip manifest.json 500
damage cut-manifest cut manifest.json 700
damage empty-manifest cut manifest.json 0
damage no-manifest rm manifest.json
damage cut-shard cut shard-00000.h5 100000
damage long-shard cut shard-00000.h5 +1
damage no-shard rm shard-00000.h5
damage flip-state flip state.json 20
damage no-state rm state.json

# eval and generate pass over damage too.
expect_rc 0 "$binary" eval run/checkpoints/00000005 --json
cp "$out" good.eval
for ruin in "flip shard-00000.h5 300000" "cut manifest.json 700" "rm shard-00000.h5"; do
    rm -rf used
    cp -r run used
    (cd used/checkpoints/00000010 && $ruin)
    expect_rc 0 "$binary" eval used --json
    expect_text "warning"
    cmp -s good.eval "$out" || fail "eval after '$ruin' is not that of the previous checkpoint"
    expect_rc 0 "$binary" generate used --prompt "the " --count 5
    expect_text "warning"
done
# A half-whole bf16 checkpoint, named itself: damaged, not "of another model".
expect_rc 0 ranks 2 "$binary" train tiny.yaml run.dir=half run.steps=2 train.precision=bf16 parallel.ep=2
cp half/checkpoints/00000002/shard-00001.h5 shard
rm half/checkpoints/00000002/shard-00001.h5
expect_error 65 "shard-00001.h5: missing" "$binary" generate half/checkpoints/00000002 --prompt a
cp shard half/checkpoints/00000002/shard-00001.h5
flip half/checkpoints/00000002/shard-00001.h5 9000
expect_error 65 "damaged" "$binary" generate half/checkpoints/00000002 --prompt a
expect_rc 0 "$binary" ckpt ls used
expect_text "step       10  not usable"

cp -r run ruined
for step in 00000005 00000010; do flip ruined/checkpoints/$step/shard-00000.h5 4000; done
expect_rc 65 train run.dir=ruined
expect_text "none of them usable"
expect_rc 65 "$binary" eval ruined
expect_rc 65 ranks 2 "$binary" generate ruined --prompt a parallel.ep=2
[ -f ruined/checkpoints/00000010/manifest.json ] || fail "a ruined checkpoint was deleted"
expect_rc 0 train run.dir=ruined run.steps=1 --fresh
[ -f ruined.old-1/checkpoints/00000010/manifest.json ] || fail "--fresh lost a ruined checkpoint"

echo "no room, bad disk"
# Save at 5 and 10; one operation of the first save fails.
stride=9
[ "$full" = 0 ] || stride=1
hits=0
for kind in enospc eio; do
    for ((operation = 1; operation < 200; operation += stride)); do
        dir=disk-$kind-$operation
        expect_rc 0 train "run.dir=$dir" run.steps=10 checkpoint.every_steps=5 "debug.fault=io:$kind:$operation"
        expect_same "$(metric straight loss_hex | head -n 10)" "$(metric "$dir" loss_hex)" "losses beside a bad disk"
        [ -f "$dir/checkpoints/00000010/manifest.json" ] || fail "no final checkpoint in $dir"
        ! ls -A "$dir/checkpoints" | grep -q '^\.tmp' || fail "$dir keeps half a save"
        grep -q "warning: checkpoint of step 5 not saved" "$err" || break # beyond the first save
        hits=$((hits + 1))
        [ "$kind" = eio ] || expect_text "free space or "
        rm -r "$dir"
    done
done
[ "$hits" -ge 4 ] || fail "only $hits operations of a save failed"
cp -r run full
expect_rc 74 train run.dir=full debug.fault=io:enospc:1+
expect_text "No space left"
expect_same "$(wc -l <"$err")" 1 "lines about a final save that fails"
expect_rc 0 train run.dir=full
expect_text "resuming at step 10"
expect_same "$(metric straight loss_hex)" "$(metric full loss_hex)" "losses after a full disk"
expect_rc 74 ranks 2 "$binary" train tiny.yaml run.dir=full-2 parallel.ep=2 run.steps=8 checkpoint.every_steps=2 debug.fault=io:enospc:1+
expect_text "training goes on"
expect_error 64 "debug.fault" train run.dir=odd-fault debug.fault=io:never:1
if unshare -m true 2>/dev/null && unshare -m mount -t tmpfs -o size=600k none /mnt 2>/dev/null; then
    # A save that the run waits for: beside one that is written meanwhile, metrics.jsonl may be what finds the disk full.
    expect_rc 74 unshare -m bash -c "mount -t tmpfs -o size=600k none /mnt &&
        '$binary' train '$work/tiny.yaml' run.dir=/mnt/run checkpoint.every_steps=8 checkpoint.async=false"
    expect_text "training goes on"
    expect_text "free space or "
fi

echo "a folder that may not be written"
if [ "$(id -u)" = 0 ] && command -v setpriv >/dev/null; then
    chmod 755 "$work"
    cp "$binary" switchyard
    chmod 755 switchyard
    as_nobody="setpriv --reuid 65534 --regid 65534 --clear-groups env HOME=$work $work/switchyard"
else
    as_nobody=$binary
fi
cp -r run locked
mkdir locked-parent
chmod -R a-w,a+rX locked locked-parent
if [ "$(id -u)" != 0 ] || [ "$as_nobody" != "$binary" ]; then
    expect_error 74 "locked-parent" $as_nobody train tiny.yaml run.dir=locked-parent/run
    expect_error 74 "locked" $as_nobody train tiny.yaml run.dir=locked
    expect_error 74 "locked" $as_nobody train tiny.yaml run.dir=locked --fresh
    expect_rc 0 $as_nobody eval locked # reading is enough for these
    expect_rc 0 $as_nobody generate locked --prompt "the " --count 3
fi
chmod -R u+w locked locked-parent
expect_error 74 "tiny.yaml" train run.dir=tiny.yaml
expect_error 74 "tiny.yaml" train run.dir=tiny.yaml/run

echo "two runs in one folder"
"$binary" train "$work/tiny.yaml" run.dir=held run.steps=1000000 >holder.log 2>&1 &
holder=$!
wait_for 30 has_steps held 3 || fail "no steps within 30 s"
expect_error 64 "another run has this directory" train run.dir=held
expect_text "pid $holder"
expect_error 64 "another run has this directory" train run.dir=held --fresh
expect_error 64 "pid $holder" ranks 2 "$binary" train tiny.yaml run.dir=held parallel.ep=2
[ ! -e held.old-1 ] || fail "--fresh moved a living run away"
kill -TERM "$holder"
wait "$holder" || expect_same 85 $? "exit code of the holder"
expect_same "$(metric held step | tail -n 1)" "$(metric held step | wc -l)" "steps of the holder"

echo "a loss that is not finite"
expect_rc 77 train run.dir=wild optimizer.lr=100 optimizer.clip_norm=0 model.initializer_range=10 run.steps=200 checkpoint.every_steps=1
expect_text "not finite"
expect_same "$(grep -ciE 'nan|inf' wild/metrics.jsonl || true)" 0 "lines of metrics.jsonl that are not finite"

echo "metrics and bench"
python3 - <<'PY' || fail "metrics.jsonl is not what it should be"
import json
fields = """step tokens loss loss_hex aux_loss mtp_loss valid_loss grad_norm lr tokens_per_s mfu step_ms
memory_bytes dropped_fraction extra_rounds expert_load phase_ms""".split()
for number, line in enumerate(open("straight/metrics.jsonl"), 1):
    record = json.loads(line)
    assert [f for f in fields if f not in record] == [], record
    assert record["step"] == number and record["tokens"] in (256, 256 * number), record
    assert float.fromhex(record["loss_hex"]) == record["loss"]
    assert len(record["expert_load"]) == 2 and min(record["expert_load"]) >= 1
    assert record["valid_loss"] is None and record["mtp_loss"] is None
PY
expect_rc 0 train run.dir=measured run.steps=4 eval.every_steps=2 sample.every_steps=4 sample.prompt=the sample.tokens=10
expect_same "null" "$(metric measured valid_loss | head -n 1)" "validation loss of step 1"
expect_rc 0 "$binary" eval measured --json
expect_same "$(metric measured valid_loss | tail -n 1)" \
    "$(sed -n 's/.*"loss":\([^,]*\).*/\1/p' "$out")" "validation loss in training and by eval"
[ -s measured/samples.txt ] || fail "no samples.txt"
expect_rc 0 "$binary" bench tiny.yaml --steps 2 --warmup 1
expect_text "tokens/s"
expect_text "roofline of a step"
expect_rc 0 ranks 2 "$binary" bench tiny.yaml --steps 2 --warmup 1 --learned --json parallel.ep=2
python3 - "$out" <<'PY' || fail "bench --json is not what it should be"
import json, sys
r = json.load(open(sys.argv[1]))
assert r["ranks"] == 2 and r["learned"]["tokens_per_s"] > 0 and "balanced" not in r, r
roofline = r["roofline"]
families = {k: v for k, v in roofline.items() if isinstance(v, dict)}
assert roofline["fma_flops"] > 0 and roofline["copy_bytes_per_s"] > 0 and len(families) >= 15, r
for name, f in families.items():
    assert f["calls"] > 0 and f["ms"] > 0 and f["bytes"] > 0 and f["bound"] in ("flops", "memory"), name
# Forward, and a gradient of either operand: the same FLOPs.
assert families["experts"]["flops"] > 0
for name in "experts_input", "experts_weight":
    assert families[name]["flops"] == families["experts"]["flops"], families
PY
expect_error 64 "--steps" "$binary" bench tiny.yaml --steps 0
expect_rc 0 "$binary" bench tiny.yaml --kernels train.precision=bf16
expect_text "attention_backward"
expect_rc 0 ranks 2 "$binary" bench tiny.yaml --kernels --json parallel.ep=2
python3 - "$out" <<'PY' || fail "bench --kernels --json is not what it should be"
import json, sys
r = json.load(open(sys.argv[1]))
kernels = r["kernels"]
assert r["ranks"] == 2 and r["gemm_peak_flops"] > 0 and len(kernels) >= 14, r
for name, k in kernels.items():
    assert k["ms"] > 0 and (k["flops"] if k["share_of_peak"] is not None else k["bytes_per_s"]) > 0, name
PY
echo "the device"
expect_error 64 "run.comm nccl: carries memory of GPUs" train run.comm=nccl run.dir=gpu
expect_error 64 "run.comm nccl: carries memory of GPUs" ranks 2 "$binary" train tiny.yaml run.comm=nccl run.dir=gpu
if ! "$binary" --version | grep -q '^devices: .*cuda'; then
    expect_error 64 "run.device cuda: not built in this binary" train run.device=cuda run.dir=gpu
elif ! ls /dev/nvidia[0-9]* >/dev/null 2>&1; then
    expect_error 71 "run.device cuda: " train run.device=cuda run.dir=gpu
    expect_error 71 "run.device cuda: " ranks 2 "$binary" train tiny.yaml run.device=cuda run.dir=gpu parallel.ep=2
    expect_rc 0 "$binary" doctor
    expect_text "run.device cuda: "
fi
expect_rc 0 "$binary" doctor
expect_rc 0 "$binary" doctor --json
python3 -m json.tool "$out" >/dev/null || fail "doctor --json is not JSON"
for isa in AVX2 AVX512_CORE; do
    expect_rc 0 env ONEDNN_MAX_CPU_ISA=$isa DNNL_MAX_CPU_ISA=$isa "$binary" doctor --json
    python3 - "$out" <<'PY' || fail "doctor with $isa: $(cat "$out")"
import json, sys
cpu = json.load(open(sys.argv[1]))["devices"][0]
assert cpu["bf16_gemm"] == "float32" and "bf16" not in cpu["gemm"], cpu
PY
done
expect_rc 0 "$binary" ckpt ls run --json
python3 -m json.tool "$out" >/dev/null || fail "ckpt ls --json is not JSON"

echo "JSON whatever the figures and the paths"
odd='a "quoted" \ path'
cp -r run "$odd"
expect_rc 0 "$binary" ckpt ls "$odd" --json
python3 - "$out" "$odd" <<'PY' || fail "ckpt ls --json of a path with quotes: $(cat "$out")"
import json, sys
assert all(entry["path"].startswith(sys.argv[2] + "/") for entry in json.load(open(sys.argv[1])))
PY
expect_rc 0 train run.dir=steep run.steps=1 optimizer.lr=0 model.initializer_range=10 model.hidden_size=1024
expect_rc 0 "$binary" eval steep --json
python3 - "$out" <<'PY' || fail "eval --json of a perplexity beyond doubles: $(cat "$out")"
import json, sys
def never(word):
    raise ValueError(word)
r = json.load(open(sys.argv[1]), parse_constant=never)
assert r["loss"] > 710 and r["perplexity"] is None, r
PY

echo "under mpirun too, one line"
expect_error 64 "did you mean 'train'" ranks 2 "$binary" trian tiny.yaml
expect_error 64 "did you mean '--fresh'" ranks 2 "$binary" train --frehs tiny.yaml
finish
