#!/usr/bin/env bash
# SIGKILL to one rank, to all of them or to mpirun at a random time of a run, again and again until it is done:
# the losses of every step and the last checkpoint are those of a run that nobody killed, bit for bit.
# test_kills.sh SOURCE_DIR BINARY [COUNT [SEED [key=value ...]]]: so many kills, 20 unless said otherwise.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"
count=${3:-20}
RANDOM=${4:-1}
steps=30
. "$(dirname "${BASH_SOURCE[0]}")/interrupted.sh"
more=(checkpoint.every_steps=4 "${@:5}")

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
    sleep "$(seconds "$1")"
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

declare -A kills=([rank]=0 [all]=0 [mpirun]=0) takes
victims=(rank all mpirun)
for layout in "${layouts[@]}"; do
    began=$(date +%s%3N)
    settings "$layout" "$(whole_of "$layout")"
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
        # 141: mpirun wrote to ranks that were gone; 70: a rank that was left missed the others first
        case $rc in 137 | 1 | 143 | 141 | 70) ;; *) fail "exit code $rc after SIGKILL to $victim"; show_last ;; esac
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
