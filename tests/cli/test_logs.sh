#!/usr/bin/env bash
# metrics.jsonl, log.txt and samples.txt that find no room (/dev/full takes nothing): training goes on and saves, what is
# missing is told of once when it begins and at the end, and a resume names the gap. Of standard output: it is the result of
# every other command, which ends with 74.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"
[ -c /dev/full ] || { echo "skipped: there is no /dev/full"; exit 77; }
make_data
make_config
cd "$work"
train() { "$binary" train tiny.yaml log.tensorboard=false "$@"; }

echo "metrics.jsonl"
mkdir metrics
ln -s /dev/full metrics/metrics.jsonl
expect_rc 74 train run.dir=metrics run.steps=8 checkpoint.every_steps=3
expect_same "$(wc -l <"$err")" 2 "lines on stderr"
expect_text "warning: metrics/metrics.jsonl: cannot write: No space left on device: its lines are kept in memory"
expect_text "its last 8 lines are lost; the checkpoint of step 8 is whole"
expect_rc 0 "$binary" ckpt verify metrics
rm metrics/metrics.jsonl
expect_rc 0 train run.dir=metrics run.steps=10
expect_text "resuming at step 8"
expect_text "metrics.jsonl: the lines of steps 1 to 8 are not there"
expect_same "$(metric metrics step | tr '\n' ' ')" "9 10 " "steps in metrics.jsonl"
expect_rc 0 train run.dir=straight run.steps=10
expect_same "$(metric straight loss_hex | tail -n 2)" "$(metric metrics loss_hex)" "losses behind a full disk"

echo "stopped meanwhile"
mkdir stopped
ln -s /dev/full stopped/metrics.jsonl
"$binary" train tiny.yaml log.tensorboard=false run.dir=stopped run.steps=1000000 log.every_steps=1 >"$out" 2>"$err" </dev/null &
runner=$!
last="train run.dir=stopped"
wait_for 60 grep -q "step 3/" stopped/log.txt || { fail "no third step"; show_last; }
kill -TERM "$runner"
rc=0
wait "$runner" || rc=$?
expect_same "$rc" 85 "exit code of a run that is to go on"
expect_text "warning: stopped/metrics.jsonl: cannot write: No space left on device: its last"

echo "log.txt and samples.txt"
mkdir log
ln -s /dev/full log/log.txt
ln -s /dev/full log/samples.txt
expect_rc 0 train run.dir=log run.steps=4 sample.every_steps=4 sample.prompt=int sample.tokens=4
expect_same "$(grep -c "warning: log/log.txt: cannot write" "$err")" 1 "warnings of log.txt"
expect_same "$(grep -c "warning: log/samples.txt: cannot append the sample" "$err")" 1 "warnings of samples.txt"
expect_same "$(wc -l <"$err")" 2 "lines on stderr"
expect_same "$(metric log step | wc -l)" 4 "steps in metrics.jsonl"

echo "standard output"
full() { "$@" >/dev/full; }
expect_error 0 "warning: standard output: cannot be written; the run's lines are in log.txt" full train run.dir=mute run.steps=4 log.every_steps=1
expect_same "$(grep -c "^step .*/4 " mute/log.txt)" 4 "lines of steps in log.txt"
expect_rc 0 "$binary" ckpt verify mute
for command in "--help" "--version" "--help-keys" "train --help" "init" "config tiny.yaml" "plan tiny.yaml" "verify tiny.yaml" \
    "eval mute" "eval mute --json" "generate mute --prompt x --count 3" "ckpt ls mute" "ckpt verify mute" "ckpt diff mute mute" \
    "tokenizer encode --tokenizer bytes train.txt" "prepare --tokenizer bytes --output again.h5 valid.txt"; do
    expect_error 74 "switchyard: standard output: cannot be written" full "$binary" $command
done
expect_error 1 "switchyard: standard output: cannot be written" full "$binary" ckpt diff mute straight # another code stays
expect_error 64 "unknown key" full "$binary" config tiny.yaml run.stpes=3
# A reader that has gone away, where that ends no process.
deaf() (
    trap '' PIPE
    mkfifo gone
    exec 3<>gone 4>gone 3>&-
    rm gone
    "$@" >&4 4>&-
)
for command in "config tiny.yaml" "tokenizer encode --tokenizer bytes train.txt" "train tiny.yaml run.dir=mute run.steps=5"; do
    expect_rc 0 deaf "$binary" $command
    [ ! -s "$err" ] || { fail "words for a reader that has gone away"; show_last; }
done
finish
