#!/usr/bin/env bash
# program.sh SOURCE_DIR SWITCHYARD_EMULATED: the program on emulated GPUs does what it does on the CPU.
set -euo pipefail
. "$1/tests/cli/common.sh"
make_data
make_config
cd "$work"
train() { "$binary" train tiny.yaml run.steps=3 log.every_steps=1 "$@"; }

# losses DIR: of its steps, one a line.
losses() {
    python3 -c '
import json, sys
for line in open(sys.argv[1] + "/metrics.jsonl"):
    record = json.loads(line)
    if "loss" in record:
        print(repr(record["loss"]))' "$1"
}
# expect_near A B BOUND: losses of two runs, relative.
expect_near() {
    python3 - <(losses "$1") <(losses "$2") "$3" <<'PY' || fail "losses of $1 and $2 differ by more than $3"
import sys
a, b = ([float(x) for x in open(path)] for path in sys.argv[1:3])
assert len(a) == len(b) == 3, (a, b)
assert all(abs(x - y) <= float(sys.argv[3]) * abs(x) for x, y in zip(a, b)), (a, b)
PY
}

expect_rc 0 "$binary" doctor
expect_text "emulated sm_90a"
expect_rc 0 "$binary" doctor --json
python3 -c 'import json, sys
cuda = json.load(open(sys.argv[1]))["devices"][1]
assert cuda["device"] == "cuda" and cuda["gflops_bf16"] > 0, cuda' "$out" || fail "doctor --json"

echo "one rank"
for precision in fp32 bf16; do
    bound=2e-6
    [ $precision = fp32 ] || bound=5e-3
    expect_rc 0 train run.dir=cpu-$precision train.precision=$precision
    expect_rc 0 train run.dir=cuda-$precision train.precision=$precision run.device=cuda
    expect_near cpu-$precision cuda-$precision $bound
done
for device in cpu cuda; do
    expect_rc 0 train run.dir=muon-$device optimizer.name=muon run.device=$device
    expect_rc 0 train run.dir=more-$device optimizer.moments=bf16 model.router_jitter_noise=0.1 model.sliding_window=8 \
        router.z_loss_coef=1e-3 run.device=$device
done
expect_near muon-cpu muon-cuda 5e-5
expect_near more-cpu more-cuda 2e-5
grep -q emulated cuda-fp32/run.json || fail "run.json does not name the GPU"
export EMU_SEED=5
expect_rc 0 train run.dir=seed run.device=cuda
unset EMU_SEED
expect_same "$(losses cuda-fp32)" "$(losses seed)" "losses under another order of threads and blocks"

echo "saved and resumed, evaluated, continued"
expect_rc 0 train run.dir=parts run.steps=2 run.device=cuda
expect_rc 0 train run.dir=parts run.device=cuda
expect_same "$(losses cuda-fp32)" "$(losses parts)" "losses of a run in two parts"
expect_rc 0 train run.dir=moved run.steps=2 run.device=cuda
expect_rc 0 train run.dir=moved run.device=cpu
expect_near cuda-fp32 moved 2e-6
for device in cpu cuda; do
    expect_rc 0 "$binary" eval parts --json run.device=$device
    python3 -c 'import json, sys; print("%.5f" % json.load(open(sys.argv[1]))["loss"])' "$out" >eval-$device
    expect_rc 0 "$binary" generate parts --prompt int --count 8 --temperature 0 --json run.device=$device
    cp "$out" text-$device
done
expect_same "$(cat eval-cpu)" "$(cat eval-cuda)" "losses of eval"
expect_same "$(cat text-cpu)" "$(cat text-cuda)" "texts of generate"

echo "scores beyond all measure"
for device in cpu cuda; do
    expect_rc 0 train run.dir=huge-$device optimizer.lr=100 optimizer.clip_norm=0 model.initializer_range=10 \
        train.global_batch=2 train.sequence_length=8 run.device=$device
done

echo "bench"
small=(train.sequence_length=8 train.global_batch=4 run.device=cuda)
expect_rc 0 "$binary" bench tiny.yaml --steps 1 --warmup 1 --json "${small[@]}"
python3 - "$out" <<'PY' || fail "bench --json: balanced routing is not balanced, or memory is not the GPU's"
import json, sys
said = json.load(open(sys.argv[1]))
assert said["balanced"]["expert_load"] == 1 < said["learned"]["expert_load"], said
assert said["reserved_bytes"] < said["peak_memory_bytes"] < said["reserved_bytes"] + 64 * 2**20, said
PY
expect_rc 0 "$binary" bench tiny.yaml --kernels "${small[@]}"
expect_same "$(metric cuda-fp32 memory_bytes | sort -u | wc -l)" 1 "different sizes of the GPU's memory, step by step"

echo "two ranks"
for comm in nccl mpi; do
    expect_rc 0 ranks 2 "$binary" train tiny.yaml run.steps=3 log.every_steps=1 run.dir=$comm run.device=cuda \
        run.comm=$comm parallel.ep=2 debug.profile=$comm.json debug.profile_from=2 debug.profile_steps=2
    python3 - $comm.json <<'PY' || fail "$comm.json: hidden_communication"
import json, sys
for rank in json.load(open(sys.argv[1]))["otherData"].values():
    share = rank["hidden_communication"]
    assert share == 0 if sys.argv[1] == "mpi.json" else 0 <= share <= 1, rank
PY
    wire=$comm
    [ $comm = nccl ] || wire=staged
    grep -q "\"gpu_comm\": \"$wire\"" $comm/run.json || fail "run.json does not say what carries memory of the GPUs"
    expect_near cuda-fp32 $comm 2e-6
done
export EMU_DEVICES=1
expect_error 64 "share GPU" ranks 2 "$binary" train tiny.yaml run.dir=shared run.device=cuda run.comm=nccl parallel.ep=2
expect_rc 0 ranks 2 "$binary" train tiny.yaml run.steps=3 log.every_steps=1 run.dir=shared run.device=cuda parallel.ep=2 \
    run.comm=mpi
expect_near cuda-fp32 shared 2e-6

echo "two stages"
expect_rc 0 ranks 2 "$binary" train tiny.yaml run.steps=3 log.every_steps=1 run.dir=stages run.device=cuda parallel.pp=2 \
    run.comm=mpi
expect_near cuda-fp32 stages 2e-6
unset EMU_DEVICES
expect_rc 0 ranks 2 "$binary" train tiny.yaml run.steps=3 log.every_steps=1 run.dir=stages-nccl run.device=cuda parallel.pp=2 \
    run.comm=nccl debug.profile=stages.json debug.profile_from=2 debug.profile_steps=2
python3 - stages.json <<'PY' || fail "stages.json: hidden_communication"
import json, sys
for rank in json.load(open(sys.argv[1]))["otherData"].values(): # messages between stages are the host's
    assert 0 <= rank["hidden_communication"] <= 1 and rank["idle_ms"] > 0 and rank["exposed_ms"] > 0, rank
PY
expect_near cuda-fp32 stages-nccl 2e-6

echo "no GPU, or one that is full"
export EMU_DEVICES=0
expect_error 71 "no GPU is visible" train run.dir=none run.device=cuda
expect_rc 0 "$binary" doctor
expect_text "no GPU is visible"
unset EMU_DEVICES
export EMU_DEVICE_BYTES=1048576
expect_rc 71 train run.dir=full run.device=cuda
finish
