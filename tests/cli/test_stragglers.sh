#!/usr/bin/env bash
# A rank whose work takes 1.5 times as long is named within two looks, and no other; in even runs nobody is, whoever else
# uses the cores.
# test_stragglers.sh SOURCE BINARY [TRIALS [STEPS [BUSY]]]: so many slow ranks; even runs of so many steps; beside so many
# processes that never rest (docs/reliability.md).
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"
trials=${3:-3} even_steps=${4:-100} busy=${5:-0}
if [ ! -r /proc/thread-self/schedstat ]; then
    echo "skipped: the kernel does not say here how long a thread waits for a core (/proc/thread-self/schedstat)"
    exit 77
fi
make_data
make_config
sed -i 's/sequence_length: 32/sequence_length: 128/' "$work/tiny.yaml"
layouts=(2,1 2,2 4,1 4,4) # ranks, ep
# What it says of a rank: "is slow" or "is kept from its cores".
names() { sed -n "s/^warning: \(rank [0-9]*\) .* \($1\).*/\1/p" "$2/log.txt" | sort | uniq -c | tr -s ' \n' ' '; }
starved=0
count_starved() { starved=$((starved + $(grep -c 'is kept from its cores' "$1/log.txt" || true))); }

for ((i = 0; i < busy; i++)); do
    (exec -a "busy beside $work" bash -c 'while :; do :; done') & # `cleanup` of common.sh finds them
done

RANDOM=7
found=0
for trial in $(seq "$trials"); do
    layout=${layouts[trial % 4]} every=$((RANDOM % 15 + 6)) dir=$work/slow-$trial before=$failures
    rank=$((RANDOM % ${layout%,*})) step=$((RANDOM % 20 + 1))
    looks=$(((step + every - 2) / every + 2)) # before it, and the two that it fills
    expect_rc 0 train_on "${layout%,*}" "${layout#*,}" "$dir" run.steps=$((looks * every)) "debug.fault=slow:$step:$rank" watchdog.straggler_every_steps=$every
    expect_same "$(names 'is slow' "$dir")" " 1 rank $rank " "$last: named, how often"
    expect_text "most in forward and backward"
    count_starved "$dir"
    [ "$failures" = "$before" ] || show_last
    found=$((found + (failures == before)))
    rm -rf "$dir"
done
echo "$found of $trials slow ranks named within two looks, nobody else"

flags=0
even_runs() {
    local layout dir
    for layout in "${layouts[@]}"; do
        dir=$work/even-$layout
        expect_rc 0 train_on "${layout%,*}" "${layout#*,}" "$dir" "run.steps=$even_steps"
        flags=$((flags + $(grep -c 'is slow' "$dir/log.txt" || true)))
        count_starved "$dir"
    done
}
even_runs
if [ "$flags" -gt 0 ]; then # something else may have had half of one core throughout: once more
    cat "$work"/even-*/log.txt | grep 'is slow'
    flags=0
    rm -rf "$work"/even-*
    even_runs
fi
[ "$flags" -eq 0 ] || { fail "ranks of even runs were named"; grep -h 'is slow' "$work"/even-*/log.txt; }
echo "$flags flags in ${#layouts[@]} even runs of $even_steps steps; $starved times a rank was kept from its cores, $busy processes beside them"
finish
