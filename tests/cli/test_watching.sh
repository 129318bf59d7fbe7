#!/usr/bin/env bash
# What a run shows of itself: TensorBoard's events, watch, report.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"
make_data
make_config deepseek_v3
run=$work/run other=$work/other

echo "two runs, one of them resumed"
shown="eval.every_steps=4 sample.every_steps=8"
expect_rc 0 train_on 2 2 "$run" $shown run.steps=8
expect_rc 0 train_on 2 2 "$run" $shown run.steps=16
expect_rc 0 train_on 1 1 "$other" $shown run.steps=16 optimizer.lr=1e-3 router.capacity_factor=1 log.tensorboard=false
[ ! -e "$other/tensorboard" ] || fail "events in spite of log.tensorboard=false"

echo "events say what metrics.jsonl says"
expect_rc 0 python3 "$source_dir/tests/cli/read_events.py" "$run"
expect_text "32 frames of steps"

echo "watch"
expect_rc 0 "$binary" watch "$run" --once --ascii
expect_text "done"
expect_text "16/16"
expect_text "$(printf 'loss %.4g' "$(metric "$run" loss | tail -n 1)")"
LC_ALL=C grep -q '[^ -~]' "$out" && fail "--ascii drew more than ASCII"
expect_rc 0 "$binary" watch "$run"
expect_same "$(wc -l <"$out")" 1 "lines of a run that is done"
mkdir "$work/going"
cp "$run/config.yaml" "$work/going"
head -n 8 "$run/metrics.jsonl" >"$work/going/metrics.jsonl"
"$binary" watch "$work/going" --interval 0.1 >"$work/followed" &
watcher=$!
wait_for 30 grep -q "step 8/16" "$work/followed" || fail "watch did not show step 8"
sed -n 9,16p "$run/metrics.jsonl" >>"$work/going/metrics.jsonl"
wait_for 30 grep -q "step 16/16" "$work/followed" || fail "watch did not follow"
wait "$watcher" || fail "watch ended with $?"
expect_rc 85 train_on 1 1 "$work/paused" run.steps=4 run.pause_at=2
expect_rc 0 "$binary" watch "$work/paused" --once
expect_text "stopped"
expect_text "2/4"
expect_error 74 "no such file" "$binary" watch "$work/nothing"
expect_error 64 "--interval 0" "$binary" watch "$run" --interval 0

echo "report"
expect_rc 0 "$binary" report "$run" "$other" --output "$work/page.html"
expect_rc 0 python3 "$source_dir/tests/cli/read_report.py" "$work/page.html" "$run" "$other"
expect_text "all charts have axes, lines and legend"
expect_rc 0 "$binary" report "$run"
expect_rc 0 python3 "$source_dir/tests/cli/read_report.py" "$run/report.html" "$run"
expect_error 74 "no such file" "$binary" report "$run" "$work/nothing"

echo "figures beyond all reason"
mkdir "$work/h %s <b>"
for ((i = 1; i < 30; i++)); do
    echo "{\"step\":$i,\"loss\":$([ $((i % 2)) = 0 ] && echo -)1.7e308,\"grad_norm\":$([ $((i % 3)) = 0 ] && echo 1 || echo 5e-324),\"phase_ms\":{\"a\":1e308,\"b\":1e308}}"
done >"$work/h %s <b>/metrics.jsonl"
expect_rc 0 timeout 20 "$binary" report "$work/h %s <b>"
grep -qE '[" ]-?(inf|nan)' "$work/h %s <b>/report.html" && fail "places that are no numbers"
expect_rc 0 timeout 20 "$binary" watch "$work/h %s <b>" --once
: >"$work/h %s <b>/metrics.jsonl"
expect_rc 0 "$binary" report "$work/h %s <b>"
expect_rc 0 "$binary" watch "$work/h %s <b>" --once
expect_text "no step yet"
# shellcheck disable=SC2046
expect_error 64 "report: at most 64 at a time, '$run' is one too many" "$binary" report $(for ((i = 0; i < 65; i++)); do echo "$run"; done)
finish
