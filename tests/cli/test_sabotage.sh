#!/usr/bin/env bash
# A sweep of which a fifth of the trials is sabotaged, each in another way: those fail with the exit code that names
# why; the others are bit for bit what they are alone.
# test_sabotage.sh SOURCE_DIR BINARY [TRIALS]: 10 unless said otherwise; the full count is 50.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"
trials=${3:-10}
make_data
make_config
cd "$work"

# Terabytes end in an error only where the kernel refuses them; where it promises anything, the run is killed when it
# writes to them, and perhaps others with it.
export instead_of_memory=memory
if [ "$(cat /proc/sys/vm/overcommit_memory 2>/dev/null || echo 1)" = 1 ] ||
    python3 -c 'import mmap; mmap.mmap(-1, 3 << 39, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)' 2>/dev/null; then
    echo "left out: terabytes of weights: this kernel grants them; an unknown key in their place"
    instead_of_memory=key
fi

# The launcher does it: trial K is known by its run.dir, and of every five one is hit, by the next of these.
cat >launch.sh <<'END'
ways=(fault=segv:4:0 memory fault=nan:6:0 key fault=io:enospc:1+ fault=kill:3:0 data fault=exit:5:0 fault=io:eio:3+ fault=segv:9:0)
dir=$(printf '%s\n' "$@" | sed -n 's/^run.dir=//p')
trial=$((10#${dir##*/}))
way=none
[ $((trial % 5)) != 3 ] || way=${ways[trial / 5 % ${#ways[@]}]}
[ $way != memory ] || way=$instead_of_memory
echo "$way" >"$dir.way"
case $way in
none) exec "$@" ;;
fault=*) exec "$@" "debug.$way" ;;
memory) exec "$@" model.hidden_size=1024 model.intermediate_size=32768 model.num_hidden_layers=64 model.num_local_experts=64 ;; # terabytes
key) exec "$@" optimizer.rl=1 ;;
data) exec "$@" data.train=nowhere.h5 ;;
esac
END
declare -A codes=([fault=segv:4:0]=139 [memory]=71 [fault=nan:6:0]=77 [key]=64 [fault=io:enospc:1+]=74 [fault=kill:3:0]=137
    [data]=74 [fault=exit:5:0]=1 [fault=io:eio:3+]=74 [fault=segv:9:0]=139)
printf '%s\n' "base: tiny.yaml" "dir: sweep" "method: random" "trials: $trials" "metric: loss" "set: {run.steps: 12}" \
    "parameters:" "  optimizer.lr: {low: 1e-4, high: 1e-2, scale: log}" 'launch: {slots: 2, command: "bash launch.sh"}' >sweep.yaml
expect_rc 0 "$binary" sweep sweep.yaml

# of TRIAL KEY: what its record holds.
of() { sed -n 's/.*"'"$2"'": "\{0,1\}\([^",]*\).*/\1/p' "sweep/$1.json"; }
alone=0 hit=0
for ((t = 0; t < trials; t++)); do
    trial=$(printf %04d "$t")
    way=$(cat "sweep/$trial.way")
    if [ "$way" != none ]; then
        expect_same "$(of "$trial" state) $(of "$trial" exit)" "failed ${codes[$way]}" "trial $trial ($way)"
        hit=$((hit + 1))
        continue
    fi
    expect_same "$(of "$trial" state)" "done" "trial $trial"
    expect_rc 0 "$binary" train tiny.yaml run.dir=solo run.steps=12 run.threads=1 run.pin=false "$(sed -n 's/.*"\(optimizer.lr=[^"]*\)".*/\1/p' "sweep/$trial.json")"
    expect_same "$(metric "sweep/$trial" loss_hex)" "$(metric solo loss_hex)" "losses of trial $trial and of its solo run"
    cmp -s "sweep/$trial/checkpoints/00000012/shard-00000.h5" solo/checkpoints/00000012/shard-00000.h5 || fail "weights of trial $trial and of its solo run"
    rm -rf solo
    alone=$((alone + 1))
done
[ "$hit" -ge 2 ] || fail "only $hit trials were sabotaged"
echo "$trials trials: $hit sabotaged, $alone others compared with runs alone, $failures failures"
finish
