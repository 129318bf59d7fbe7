#!/usr/bin/env bash
# SIGKILL to one rank, to all of them or to mpirun at a random time of a run, again and again until it is done:
# the losses of every step and the last checkpoint are those of a run that nobody killed, bit for bit.
# test_kills.sh SOURCE_DIR BINARY [COUNT [SEED [key=value ...]]]: so many kills, 20 unless said otherwise.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"
count=${3:-20}
RANDOM=${4:-1}
more=("${@:5}")
steps=60
make_data
make_config
sed -i "s/micro_batch: 2, global_batch: 8/micro_batch: 1, global_batch: 4/" "$work/tiny.yaml"

# settings LAYOUT DIR: sets $command. Four ranks train in bf16, two in fp32.
settings() {
    local n=${1%,*} precision=fp32
    [ "$n" = 2 ] || precision=bf16
    command=(mpirun --allow-run-as-root --oversubscribe --bind-to none -q -np "$n" "$binary" train "$work/tiny.yaml"
        "run.dir=$2" "parallel.ep=${1#*,}" "train.precision=$precision" "run.steps=$steps" checkpoint.every_steps=4
        model.router_jitter_noise=0.05 "${more[@]}")
}

# What Open MPI sometimes does when ranks die while they connect to it is to wait for them for ever: after 20 s
# it goes, too, and is counted.
stuck=0
collect() {
    wait_for 20 all_gone "$1" || { stuck=$((stuck + 1)) && kill -KILL "$1"; }
    rc=0
    wait "$1" 2>/dev/null || rc=$?
}

all_gone() {
    local pid state
    for pid in "$@"; do
        state=$(ps -o stat= -p "$pid") || continue
        [ "${state:0:1}" = Z ] || return 1
    done
}

# interrupt MILLISECONDS: starts $command and kills $victim of it after that time. Sets $rc, and $hit to
# whether it ran still.
interrupt() {
    local launcher children
    "${command[@]}" >"$out" 2>"$err" </dev/null &
    launcher=$!
    sleep "$(printf '%d.%03d' $(($1 / 1000)) $(($1 % 1000)))"
    mapfile -t children < <(pgrep -P "$launcher" -f "$binary" || true)
    hit=1
    if [ "$victim" = mpirun ] || [ ${#children[@]} = 0 ]; then
        victim=mpirun
        kill -KILL "$launcher" 2>/dev/null || hit=0
    elif [ "$victim" = all ]; then
        kill -KILL "${children[@]}" 2>/dev/null || true
    else
        kill -KILL "${children[RANDOM % ${#children[@]}]}" 2>/dev/null || hit=0
    fi
    collect "$launcher"
    wait_for 20 all_gone "${children[@]}" || fail "ranks outlive mpirun by 20 s"
    [ "$rc" -ne 0 ] || hit=0
}

# compare LAYOUT DIR: with the run that nobody killed.
compare() {
    local whole=$work/whole-${1/,/-} file before=$failures
    expect_same "$(metric "$whole" loss_hex)" "$(metric "$2" loss_hex)" "losses at $1"
    expect_same "$(metric "$2" step | tr '\n' ' ')" "$(seq $steps | tr '\n' ' ')" "steps at $1"
    for file in "$whole"/checkpoints/000000$steps/*.h5; do
        cmp -s "$file" "$2/checkpoints/000000$steps/${file##*/}" || fail "$1: ${file##*/} differs"
    done
    [ "$before" -eq "$failures" ]
}

declare -A kills=([rank]=0 [all]=0 [mpirun]=0) takes
victims=(rank all mpirun)
layouts=(2,2 4,2)
for layout in "${layouts[@]}"; do
    began=$(date +%s%3N)
    settings "$layout" "$work/whole-${layout/,/-}"
    expect_rc 0 "${command[@]}"
    takes[$layout]=$(($(date +%s%3N) - began))
done
done_kills=0 runs=0 survived=0 starts=0
while [ "$done_kills" -lt "$count" ]; do
    layout=${layouts[runs % 2]} dir=$work/killed rc=1
    runs=$((runs + 1))
    rm -rf "$dir"
    settings "$layout" "$dir"
    pending=0
    # At most six kills of one run, so that most are in the middle of something.
    for ((i = 0; i < 6 && done_kills < count && rc != 0; i++)); do
        victim=${victims[RANDOM % 3]}
        interrupt $(((RANDOM * 32768 + RANDOM) % takes[$layout]))
        starts=$((starts + 1))
        [ "$hit" = 1 ] || continue
        case $rc in 137 | 1 | 143) ;; *) fail "exit code $rc after SIGKILL to $victim"; show_last ;; esac
        kills[$victim]=$((kills[$victim] + 1))
        done_kills=$((done_kills + 1))
        pending=$((pending + 1))
    done
    expect_rc 0 "${command[@]}"
    if compare "$layout" "$dir"; then survived=$((survived + pending)); fi
    [ $((runs % 10)) != 0 ] || echo "... $done_kills kills, $survived survived" >&2
    [ "$failures" -lt 5 ] || break
done
echo "kills        tried"
for victim in "${victims[@]}"; do
    printf '%-10s %7d\n' "$victim" "${kills[$victim]}"
done
echo "$done_kills kills in $runs runs of $steps steps ($starts starts): $survived survived, $((done_kills - survived)) lost"
[ "$stuck" = 0 ] || echo "mpirun did not end by itself within 20 s: $stuck times"
finish
