#!/usr/bin/env bash
# A run that is asked to stop at random times, in each of the ways it can be asked, saves the step it is in, leaves
# with 85, and the same command goes on: losses and the last checkpoint are those of a run that nobody stopped.
# test_preempt.sh SOURCE_DIR BINARY [COUNT [SEED]]: so many stops, 10 unless said otherwise.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"
count=${3:-10}
seed=${4:-1}
RANDOM=$seed
steps=60
. "$(dirname "${BASH_SOURCE[0]}")/interrupted.sh"

record() { stat -c %i "$1/run.json" 2>/dev/null || echo none; }
is_new() { [ "$(record "$1")" != "$2" ]; }
listens_or_gone() { is_new "$1" "$2" || ! kill -0 "$3" 2>/dev/null; }

# stop WAY MILLISECONDS DIR: starts $command and asks it so long after its ranks listen; a time limit is an eighth of the
# steps' time longer, which leaves most of them over on a machine of any speed. Sets $rc.
stop() {
    local way=$1 dir=$3 before launcher children more=()
    before=$(record "$dir")
    [ "$way" != limit ] || more=("run.time_limit=$(seconds $((1 + takes[$layout] / 8 + $2)))")
    "${command[@]}" "${more[@]}" >"$out" 2>"$err" </dev/null &
    launcher=$!
    last="${command[*]} ($way after $2 ms)"
    wait_for 60 listens_or_gone "$dir" "$before" "$launcher" || fail "no ranks within 60 s"
    sleep "$(seconds "$2")"
    mapfile -t children < <(pgrep -P "$launcher" -f "$binary" || true)
    if [ ${#children[@]} -gt 0 ]; then
        case $way in
        mpirun) kill -USR1 "$launcher" ;;
        rank) kill -USR1 "${children[RANDOM % ${#children[@]}]}" ;;
        ranks) kill -USR1 "${children[@]}" ;;
        term) kill -TERM "${children[@]}" ;;
        limit) ;;
        esac 2>/dev/null || true
    fi
    rc=0
    wait "$launcher" || rc=$?
}

ways=(mpirun rank ranks term limit)
declare -A stops takes
for layout in "${layouts[@]}"; do
    settings "$layout" "$(whole_of "$layout")"
    expect_rc 0 "${command[@]}"
    takes[$layout]=$(($(metric "$(whole_of "$layout")" step_ms | awk '{ sum += $1 } END { print int(sum) }') + 1))
done
done_stops=0 runs=0 attempts=0 most_runs=$((2 * count + 10))
while [ "$done_stops" -lt "$count" ] && [ "$failures" -lt 5 ] && [ "$runs" -lt "$most_runs" ]; do
    layout=${layouts[runs % 2]} dir=$work/stopped rc=85
    runs=$((runs + 1))
    rm -rf "$dir"
    settings "$layout" "$dir"
    for ((i = 0; i < 5 && done_stops < count && rc == 85; i++)); do
        way=${ways[attempts % 5]} # the next one too after a run that was done before it was asked
        attempts=$((attempts + 1))
        stop "$way" $((RANDOM % (takes[$layout] / 4 + 1))) "$dir"
        case $rc in
        0) ;; # done before it was asked
        85)
            stops[$way]=$((${stops[$way]:-0} + 1))
            done_stops=$((done_stops + 1))
            step=$(metric "$dir" step | tail -n 1)
            [ -f "$dir/checkpoints/$(printf %08d "$step")/manifest.json" ] || fail "step $step was not saved"
            ;;
        *) fail "exit code $rc, expected 85"; show_last ;;
        esac
    done
    expect_rc 0 "${command[@]}"
    compare "$layout" "$dir" || true
done
[ "$done_stops" -ge "$count" ] || fail "$done_stops stops in $runs runs, expected $count"
for way in "${ways[@]}"; do
    printf '%-8s %5d\n' "$way" "${stops[$way]:-0}"
done
echo "$done_stops stops in $runs runs of $steps steps, seed $seed: $failures failures"
finish
