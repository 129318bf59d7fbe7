#!/usr/bin/env bash
# The same command again goes on where the last one stopped, bit for bit; other layouts go on too.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"
make_data
make_config

# whole_once DIR: metrics.jsonl has steps 1 to 20, each once.
whole_once() {
    expect_same "$(metric "$1" step | tr '\n' ' ')" "$(seq 20 | tr '\n' ' ')" "steps in $1"
}

echo "10 and 10 steps are 20 steps"
for precision in fp32 bf16; do
    for layout in 1,1 2,2; do
        n=${layout%,*} ep=${layout#*,}
        dir=$work/$precision-$n
        straight=$dir-straight halves=$dir-halves
        more="train.precision=$precision model.router_jitter_noise=0.05"
        expect_rc 0 train_on "$n" "$ep" "$straight" $more
        expect_rc 0 train_on "$n" "$ep" "$halves" $more run.steps=10
        expect_rc 0 train_on "$n" "$ep" "$halves" $more
        expect_text "resuming at step 10"
        expect_same "$(metric "$straight" loss_hex)" "$(metric "$halves" loss_hex)" \
            "$precision at $layout: straight and resumed losses"
        expect_same "$(metric "$straight" grad_norm)" "$(metric "$halves" grad_norm)" \
            "$precision at $layout: straight and resumed gradient norms"
        whole_once "$halves"
    done
done
# The files say the same too: weights, masters, moments.
for file in shard-00000.h5 shard-00001.h5 model.h5; do
    cmp "$work/bf16-2-straight/checkpoints/00000020/$file" \
        "$work/bf16-2-halves/checkpoints/00000020/$file" || fail "$file differs after a resume"
done

echo "a schedule with a past: killed, not asked for fewer steps"
cosine="schedule.kind=cosine schedule.warmup_steps=5 checkpoint.every_steps=7"
expect_rc 0 train_on 1 1 "$work/cosine" $cosine
# The kill is at the second save (step 14): steps 8 to 14 are done again.
expect_rc 137 "$binary" train "$work/tiny.yaml" "run.dir=$work/killed" $cosine checkpoint.async=false debug.fault=io:kill-after:60
killed_at=$(metric "$work/killed" step | tail -n 1)
[ "$killed_at" -lt 20 ] || fail "it was not killed before its end (step $killed_at)"
expect_rc 0 train_on 1 1 "$work/killed" $cosine
expect_text "resuming at step"
expect_same "$(metric "$work/cosine" loss_hex)" "$(metric "$work/killed" loss_hex)" "cosine, killed"
expect_same "$(metric "$work/cosine" lr)" "$(metric "$work/killed" lr)" "learning rates, killed"
whole_once "$work/killed"

echo "a torn last line of metrics.jsonl"
cp -r "$work/fp32-1-halves" "$work/torn"
rm -r "$work/torn/checkpoints/00000020"
printf '{"step":21,"lo' >>"$work/torn/metrics.jsonl"
expect_rc 0 train_on 1 1 "$work/torn" model.router_jitter_noise=0.05
whole_once "$work/torn"
expect_same "$(metric "$work/fp32-1-straight" loss_hex)" "$(metric "$work/torn" loss_hex)" "torn metrics"

echo "other layouts go on"
for precision in fp32 bf16; do
    dir=$work/move-$precision
    expect_rc 0 train_on 2 2 "$dir" train.precision=$precision run.steps=5
    expect_rc 0 train_on 1 1 "$dir" train.precision=$precision run.steps=10
    expect_text "resuming at step 5"
    expect_rc 0 train_on 4 2 "$dir" train.precision=$precision run.steps=15
    expect_text "resuming at step 10"
    expect_rc 0 train_on 2 1 "$dir" train.precision=$precision
    whole_once "$dir"
    expect_rc 0 train_on 2 2 "$dir-stays" train.precision=$precision
    case $precision in fp32) tolerance=1e-5 ;; *) tolerance=1e-2 ;; esac
    for step in 6 11 16 20; do
        close_to $tolerance "$(metric "$dir-stays" loss | sed -n ${step}p)" \
            "$(metric "$dir" loss | sed -n ${step}p)" "$precision: loss of step $step after moving"
    done
done

echo "a finished run has nothing to do"
before=$(cat "$work/move-fp32/metrics.jsonl")
expect_rc 0 train_on 2 1 "$work/move-fp32"
expect_same "$before" "$(cat "$work/move-fp32/metrics.jsonl")" "metrics of a finished run"
expect_rc 0 train_on 2 1 "$work/move-fp32" run.steps=10
expect_same "$before" "$(cat "$work/move-fp32/metrics.jsonl")" "metrics when fewer steps are asked for"

echo "other settings are told, and where the data goes on"
cp -r "$work/fp32-1-halves" "$work/other"
expect_rc 0 train_on 2 2 "$work/other" model.router_jitter_noise=0.05 run.steps=22 optimizer.lr=1e-3 data.shuffle=false
expect_text "other settings than step 20 was saved with: run.steps 20 -> 22, optimizer.lr 0.003 -> 0.001, parallel.ep 1 -> 2, data.shuffle true -> false; epochs under way are read on as they were begun"
grep -q "other settings than step 20" "$work/other/log.txt" || fail "log.txt does not tell other settings"
# 22 steps of 8 samples of 32 tokens are 176 samples, or 117 and a third of 48.
expect_rc 0 train_on 1 1 "$work/other" model.router_jitter_noise=0.05 run.steps=23 optimizer.lr=1e-3 data.shuffle=false \
    train.sequence_length=48
expect_text "train.sequence_length 32 -> 48"
expect_text "epochs under way are read on as they were begun"
position=$(python3 -c 'import json, sys; print(json.load(open(sys.argv[1]))["position"])' \
    "$work/other/checkpoints/00000023/state.json")
expect_same "$position" $((118 + 8)) "position after another sequence length"
expect_rc 0 train_on 1 1 "$work/other" model.router_jitter_noise=0.05 run.steps=23 optimizer.lr=1e-3 data.shuffle=false \
    train.sequence_length=48
! grep -q "other settings" "$out" || fail "the same settings are told as others"

echo "--fresh sets the old run aside"
expect_rc 0 train_on 1 1 "$work/move-fp32" run.steps=2 --fresh
expect_same "$before" "$(cat "$work/move-fp32.old-1/metrics.jsonl")" "metrics set aside"
expect_same "$(metric "$work/move-fp32" step | tr '\n' ' ')" "1 2 " "steps after --fresh"
[ -f "$work/move-fp32.old-1/checkpoints/00000020/manifest.json" ] || fail "the old checkpoint is gone"
expect_rc 0 train_on 1 1 "$work/move-fp32" run.steps=2 --fresh
[ -d "$work/move-fp32.old-2" ] || fail "a second --fresh made no .old-2"
expect_rc 0 train_on 1 1 "$work/move-fp32//" run.steps=2 --fresh
[ -d "$work/move-fp32.old-3/checkpoints" ] || fail "--fresh with a slash made no .old-3"

echo "a run without checkpoints begins again, and keeps what the one before wrote"
lines=$(cat "$work/move-fp32/metrics.jsonl")
rm -r "$work/move-fp32/checkpoints"
expect_rc 0 train_on 2 2 "$work/move-fp32" run.steps=1
expect_text "move-fp32/metrics.jsonl: of a run that left no checkpoint: kept as $work/move-fp32/metrics.jsonl.old-1; steps begin with 1"
expect_same "$lines" "$(cat "$work/move-fp32/metrics.jsonl.old-1")" "metrics of the run before"
expect_same "$(metric "$work/move-fp32" step)" 1 "steps of the run that begins again"
expect_rc 0 train_on 2 2 "$work/move-fp32" run.steps=2
[ ! -e "$work/move-fp32/metrics.jsonl.old-2" ] || fail "a resume sets metrics aside"

echo "keep_last"
expect_rc 0 train_on 2 2 "$work/keep" checkpoint.every_steps=3 checkpoint.keep_last=3
expect_same "$(ls "$work/keep/checkpoints" | tr '\n' ' ')" "00000015 00000018 00000020 LATEST " \
    "checkpoints kept"
expect_rc 0 "$binary" ckpt ls "$work/keep"
expect_text "step       18"

echo "init_from takes weights only"
expect_rc 0 train_on 1 1 "$work/tuned" run.steps=1 "checkpoint.init_from=$work/keep"
started=$(metric "$work/tuned" loss)
close_to 0.35 "$(metric "$work/keep" loss | tail -n 1)" "$started" "first loss from trained weights"
expect_same "$(metric "$work/tuned" step)" 1 "first step with init_from"

echo "eval: the same bits twice, and at every layout"
rm -rf "$work/eval-seen"
for precision in fp32 bf16; do
    seen=""
    for layout in 1,1 1,1 2,1 2,2 4,2 4,4; do
        [ $precision = fp32 ] || [ $layout = 1,1 ] || continue
        expect_rc 0 ranks "${layout%,*}" "$binary" eval "$work/$precision-1-straight" --json \
            "parallel.ep=${layout#*,}"
        now=$(tr -d '\r' <"$out" | sed -n 's/.*"loss_hex":"\([^"]*\)".*/\1/p')
        expect_same "${seen:-$now}" "$now" "eval in $precision at $layout"
        seen=$now
    done
done
expect_rc 0 "$binary" eval "$work/fp32-1-straight" --data "$work/train.h5" --json
expect_text '"labels":32640'
expect_rc 0 "$binary" eval "$work/tiny.yaml" "run.dir=$work/fp32-1-straight"
expect_text "perplexity"
finish
