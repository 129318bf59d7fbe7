#!/usr/bin/env bash
# init: a config of every family that loads and trains; rerun: the same bits again.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"
make_data
cd "$work"

echo "init"
for family in mixtral deepseek_v2 deepseek_v3; do
    expect_rc 0 "$binary" init --family $family --output $family.yaml
    expect_rc 0 "$binary" config $family.yaml
    cp "$out" loaded.yaml
    # Without its comments it is what config prints of it.
    expect_same "$(grep -cE '^ +[a-z_0-9]+: ' $family.yaml)" "$(grep -c ' # ' $family.yaml)" "keys and explanations of $family"
    "$binary" config loaded.yaml >again.yaml
    cmp loaded.yaml again.yaml || fail "$family: printed configs differ"
done
expect_rc 0 "$binary" train deepseek_v3.yaml data.train=train.h5 run.steps=1 run.dir=started
expect_error 64 "is there already" "$binary" init --output mixtral.yaml
expect_error 64 "gpt" "$binary" init --family gpt
sed 's/"max_position_embeddings": [0-9]*/"max_position_embeddings": 4096/' "$source_dir/tests/golden/hf_tiny/deepseek_v3/config.json" >config.json
expect_error 64 "give one of the two" "$binary" init --hf-config config.json --family mixtral
expect_rc 0 "$binary" init --hf-config config.json
expect_text "family: deepseek_v3"
expect_text "vocab_size: $(sed -n 's/.*"vocab_size": \([0-9]*\).*/\1/p' config.json) "

echo "rerun"
make_config deepseek_v3
expect_rc 0 train_on 2 1 old run.steps=4 train.precision=bf16 model.initializer_range=0.03
expect_rc 0 ranks 2 "$binary" rerun old/run.json
expect_text "4 steps, bit for bit the same as old"
has_steps old-rerun 4 || fail "the repetition is elsewhere"
expect_error 64 "ran on 2 ranks, there are 1 now: mpirun -np 2" "$binary" rerun old/run.json --dir third
expect_error 64 "old-rerun: is there already" ranks 2 "$binary" rerun old
sed -i '3s/"loss":\([0-9]\)\.\([0-9]\)/"loss":\1.9\2/' old/metrics.jsonl
expect_rc 1 ranks 2 "$binary" rerun old/ --dir fourth
expect_text "step 3 differs"

echo "rerun of a run that was made longer, under a schedule that knows its length"
longer() { expect_rc 0 train_on "$1" 1 longer schedule.kind=cosine run.steps="$2"; }
longer 2 4
[ ! -e longer/config.until-00000004.yaml ] || fail "changed settings of a run that began"
longer 2 4
longer 2 6
grep -q '"changed": "run.steps 4 -> 6"' longer/run.json || fail "run.json does not say what changed"
longer 1 8
expect_rc 0 ranks 2 "$binary" rerun longer/run.json
expect_text "longer: settings changed behind step 4: run.steps 4 -> 6: the steps up to there are repeated"
expect_text "4 steps, bit for bit the same as longer"
expect_same "$(metric longer-rerun step | tail -n 1)" 4 "steps repeated"
sed -i '3s/"loss":\([0-9]\)\.\([0-9]\)/"loss":\1.9\2/' longer/metrics.jsonl
expect_rc 1 ranks 2 "$binary" rerun longer --dir fifth
expect_text "step 3 differs"
expect_rc 85 train_on 2 1 paused schedule.kind=cosine run.pause_at=2
expect_rc 0 train_on 2 1 paused schedule.kind=cosine run.steps=4 # of 20
expect_rc 0 ranks 2 "$binary" rerun paused
expect_text "2 steps, bit for bit the same as paused"
rm -r longer/checkpoints
longer 2 3
expect_rc 0 ranks 2 "$binary" rerun longer --dir sixth # begun again: nothing changed
expect_text "3 steps, bit for bit the same as longer"

mkdir empty
cp old/config.yaml old/run.json empty
: >empty/metrics.jsonl
expect_error 65 "empty: no steps in its metrics.jsonl to compare with" ranks 2 "$binary" rerun empty
[ ! -e empty-rerun ] || fail "trained though there is nothing to compare with"
finish
