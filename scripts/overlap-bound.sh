#!/usr/bin/env bash
# overlap.sh BINARY [MBIT [ROUNDS [STEPS [key=value ...]]]]: what dualpipe_v's pairs gain side by side (parallel.overlap), on
# four ranks, pp 2 and ep 2, of a machine that does nothing else. Each round trains with `on` and `off`, one behind the
# other; what is printed are medians over rounds and ranks, from debug.profile (docs/health.md) and metrics.jsonl. MBIT: 0:
# ranks share memory; else two hosts, as network namespaces with a cable of so many Mbit/s each way (root, tc with tbf):
# every stage stands on both, so that rows of experts cross and messages between stages do not.
set -euo pipefail
source_dir=$(realpath "$(dirname "${BASH_SOURCE[0]}")/..")
switchyard=$(realpath "$1") mbit=${2:-0} rounds=${3:-3} steps=${4:-6}
shift $(($# < 4 ? $# : 4))
export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1 OMPI_MCA_mpi_yield_when_idle=1 OMP_WAIT_POLICY=passive
work=$(mktemp -d)
hosts=(sy$$a sy$$b) addresses=(10.77.1.1 10.77.1.2)
clean() {
    [ "$mbit" = 0 ] || for host in "${hosts[@]}"; do ip netns del "$host" 2>/dev/null || true; done
    rm -rf "$work"
}
trap clean EXIT
launch=(mpirun --oversubscribe --bind-to core:overload-allowed --map-by core -q -np 4)
if [ "$mbit" != 0 ]; then
    for host in "${hosts[@]}"; do ip netns add "$host"; done
    ip link add "v$$a" netns "${hosts[0]}" type veth peer name "v$$b" netns "${hosts[1]}"
    for i in 0 1; do
        side=v$$$([ $i = 0 ] && echo a || echo b)
        ip -n "${hosts[i]}" addr add "${addresses[i]}/24" dev "$side"
        ip -n "${hosts[i]}" link set lo up
        ip -n "${hosts[i]}" link set "$side" up
        tc -n "${hosts[i]}" qdisc add dev "$side" root tbf rate "${mbit}mbit" burst 64k latency 400ms
    done
    # What ssh is elsewhere: enter ADDRESS COMMAND..., in that host.
    cat >"$work/enter" <<ENTER
#!/bin/bash
case \$1 in ${addresses[0]}) host=${hosts[0]} ;; *) host=${hosts[1]} ;; esac
shift
export HOST_NAME=\$host HOST_COMMAND="\$*"
exec ip netns exec \$host unshare -u bash -c 'hostname \$HOST_NAME; eval "exec \$HOST_COMMAND"'
ENTER
    chmod +x "$work/enter"
    printf '%s slots=2\n' "${addresses[@]}" >"$work/hostfile"
    launch=("$work/enter" "${addresses[0]}" mpirun --hostfile "$work/hostfile" --map-by node --bind-to none -q -np 4
        --mca plm_rsh_agent "$work/enter" --mca oob_tcp_if_include 10.77.1.0/24 --mca btl_tcp_if_include 10.77.1.0/24)
fi
python3 - "$work/train.txt" <<'PY'
import random, sys
random.seed(1)
words = "the int of return void struct char if else for while define include static const".split()
open(sys.argv[1], "w").write(" ".join(random.choice(words) for _ in range(200000)))
PY
"$switchyard" prepare --tokenizer bytes --output "$work/train.h5" "$work/train.txt" >/dev/null
for round in $(seq "$rounds"); do
    for way in on off; do
        "${launch[@]}" "$switchyard" train "$source_dir/configs/tiny-deepseek-v3.yaml" "run.dir=$work/$way-$round" "run.steps=$steps" \
            run.threads=1 run.pin=false data.train="$work/train.h5" data.valid=null sample.every_steps=0 log.every_steps=0 \
            log.tensorboard=false schedule.warmup_steps=0 model.num_nextn_predict_layers=0 model.num_hidden_layers=8 \
            train.sequence_length=256 train.micro_batch=1 train.global_batch=16 parallel.pp=2 parallel.ep=2 \
            parallel.schedule=dualpipe_v parallel.overlap=$way debug.profile="$work/$way-$round.json" debug.profile_from=2 \
            "debug.profile_steps=$steps" "$@" >"$work/log" 2>&1 </dev/null || { cat "$work/log"; exit 1; }
        echo "round $round of $rounds: $way" >&2
    done
done
[ -z "${KEEP:-}" ] || cp "$work"/*.json "$KEEP"
python3 - "$work" "$rounds" "$steps" <<'PY'
import json, sys
from statistics import median
work, rounds, steps = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]) - 1
print("a rank, ms a step: step, in calls that communicate, of it idle; exposed, hidden, share hidden")
for way in ("on", "off"):
    ranks, step = [], []
    for r in range(1, rounds + 1):
        ranks += json.load(open(f"{work}/{way}-{r}.json"))["otherData"].values()
        lines = [json.loads(line) for line in open(f"{work}/{way}-{r}/metrics.jsonl")]
        step += [line["step_ms"] for line in lines[1:]]
    of = lambda key: median(rank[key] for rank in ranks)
    figures = [median(step)] + [of(key) / steps for key in ("communication_ms", "idle_ms", "exposed_ms", "hidden_ms")]
    print(f"{way:4}" + "".join(f"{figure:9.1f}" for figure in figures) + f"{100 * of('hidden_communication'):7.0f} %   (steps {min(step):.0f} to {max(step):.0f})")
PY
