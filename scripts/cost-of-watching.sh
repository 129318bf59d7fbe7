#!/usr/bin/env bash
# cost-of-watching.sh BINARY [ROUNDS [STEPS [CONFIG [key=value ...]]]]: what looking for slow ranks, comparing copies of
# weights and debug.profile cost, on two ranks of a machine that does nothing else. Each round runs all variants, one
# behind the other; what is printed are medians over the rounds, of differences within a round. Looks and comparisons,
# which come every 50 and 100 steps, are made in every step to be seen at all.
set -euo pipefail
switchyard=$(realpath "$1") rounds=${2:-4} steps=${3:-200} config=${4:-configs/quickstart.yaml}
shift $(($# < 4 ? $# : 4))
export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
off="watchdog.straggler_every_steps=0 guard.replicas_every_steps=0"
variants=(off straggler look replicas profile)
declare -A settings=(
    [off]="$off"
    [straggler]="$off watchdog.straggler_every_steps=1000000"
    [look]="$off watchdog.straggler_every_steps=1"
    [replicas]="$off guard.replicas_every_steps=1"
    [profile]="$off debug.profile=$work/trace.json debug.profile_from=1 debug.profile_steps=$steps"
)
for round in $(seq "$rounds"); do
    for variant in "${variants[@]}"; do
        dir=$work/$variant-$round
        began=$(date +%s%N)
        # shellcheck disable=SC2086
        mpirun -np 2 --bind-to none "$switchyard" train "$config" "run.dir=$dir" "run.steps=$steps" eval.every_steps=0 \
            sample.every_steps=0 checkpoint.every_steps=0 log.every_steps=0 log.tensorboard=false "$@" ${settings[$variant]} >"$work/log" 2>&1 ||
            { cat "$work/log"; exit 1; }
        echo $(($(date +%s%N) - began)) >"$dir/wall_ns"
        echo "round $round of $rounds: $variant" >&2
    done
done
python3 - "$work" "$rounds" "$steps" <<'PY'
import json, sys
from statistics import median
work, rounds, steps = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
def in_step(variant, r): # ms
    lines = [json.loads(line) for line in open(f"{work}/{variant}-{r}/metrics.jsonl")]
    return median(line["step_ms"] for line in lines[steps // 10:])
def in_all(variant, r): # ms of the whole command, a step: what is done between steps, too
    return int(open(f"{work}/{variant}-{r}/wall_ns").read()) / 1e6 / steps
def paired(variant, figure, base="off"):
    return median(figure(variant, r) - figure(base, r) for r in range(1, rounds + 1))
step = median(in_step("off", r) for r in range(1, rounds + 1))
noise = median(abs(in_step("off", r) - step) for r in range(1, rounds + 1))
reads = paired("straggler", in_step)
look = paired("look", in_all, "straggler")
compare = paired("replicas", in_all)
profile = paired("profile", in_step)
print(f"a step: {step:.3f} ms, {noise:.3f} ms from run to run (median distance from the median)")
print(f"slow ranks: {reads:.4f} ms a step, {look:.4f} ms a look: {100 * (reads + look / 50) / step:.3f} % with a look every 50 steps")
print(f"copies: {compare:.4f} ms a comparison: {100 * compare / 100 / step:.3f} % with one every 100 steps")
print(f"profile: {profile:.4f} ms a step, {100 * profile / step:.3f} %, while it records")
PY
