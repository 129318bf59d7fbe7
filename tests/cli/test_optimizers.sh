#!/usr/bin/env bash
# Optimizers, moments, running averages, frozen parameters, batch ramps: resumed bit for bit, moved
# to other layouts, used by eval and generate; refused with one line when they can't be.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"
make_data
make_config
ramp="train.batch_ramp.start=4 train.batch_ramp.increment=2 train.batch_ramp.tokens=1500 train.micro_batch=1"

# tensors CKPT_DIR: name and dtype of each, a line each.
tensors() {
    python3 - "$1/manifest.json" <<'PY'
import json, sys
for tensor in json.load(open(sys.argv[1]))["tensors"]:
    print(tensor["name"], tensor["dtype"])
PY
}

echo "10 and 10 steps are 20 steps"
while read -r name layout options; do
    n=${layout%,*} ep=${layout#*,}
    straight=$work/$name-straight halves=$work/$name-halves
    # shellcheck disable=SC2086
    expect_rc 0 train_on "$n" "$ep" "$straight" $options
    # shellcheck disable=SC2086
    expect_rc 0 train_on "$n" "$ep" "$halves" $options checkpoint.every_steps=7 run.steps=10
    # shellcheck disable=SC2086
    expect_rc 0 train_on "$n" "$ep" "$halves" $options
    expect_text "resuming at step 10"
    for field in loss_hex grad_norm lr tokens; do
        expect_same "$(metric "$straight" $field)" "$(metric "$halves" $field)" "$name: $field"
    done
    for ((rank = 0; rank < n; rank++)); do
        cmp "$straight/checkpoints/00000020/shard-0000$rank.h5" \
            "$halves/checkpoints/00000020/shard-0000$rank.h5" || fail "$name: shard $rank differs"
    done
done <<CASES
bf16-moments 2,1 train.precision=bf16 optimizer.moments=bf16 optimizer.ema=0.9
muon 2,2 optimizer.name=muon optimizer.moments=bf16 optimizer.ema=0.99
muon-fp32 2,1 optimizer.name=muon optimizer.freeze=*embed*,*norm*
frozen 1,1 optimizer.freeze=[*experts.1.*,*.gate.*]
ramp 2,2 $ramp
CASES

echo "moments in bf16 follow those in fp32"
expect_rc 0 train_on 2 1 "$work/fp32-moments" train.precision=bf16
close_to 5e-3 "$(metric "$work/fp32-moments" loss)" "$(metric "$work/bf16-moments-straight" loss)" "losses"
! cmp -s <(metric "$work/fp32-moments" loss) <(metric "$work/bf16-moments-straight" loss) ||
    fail "moments in bf16 changed nothing"

echo "a batch ramp"
expect_same "$(metric "$work/ramp-straight" tokens | tr '\n' ' ')" \
    "$(python3 - <<'PY'
position = 0
for _ in range(20): # 4 to 8 by 2 over 1500 tokens in samples of 32
    batch = 8 if position * 32 >= 1500 else 4 + 2 * (position * 32 * 2 // 1500)
    print(batch * 32, end=" ")
    position += batch
PY
)" "tokens of each step of a ramp"
expect_rc 0 train_on 1 1 "$work/ramp-1" $ramp
close_to 1e-6 "$(metric "$work/ramp-straight" loss)" "$(metric "$work/ramp-1" loss)" "a ramp on 1 and 2 ranks"
expect_rc 0 train_on 1 1 "$work/ramp-moved" $ramp run.steps=3 # in the middle of it
expect_rc 0 train_on 2 1 "$work/ramp-moved" $ramp
expect_same "$(metric "$work/ramp-moved" tokens)" "$(metric "$work/ramp-straight" tokens)" "tokens of a moved ramp"
close_to 1e-5 "$(metric "$work/ramp-straight" loss)" "$(metric "$work/ramp-moved" loss)" "a moved ramp"
[ ! -e "$work/refused" ] || fail "a folder called refused"
expect_error 64 "a batch of 6 (start 4, increment 2) is not a multiple of train.micro_batch 1 x 4 ranks" \
    train_on 4 2 "$work/refused" $ramp
[ ! -e "$work/refused" ] || fail "a refused ramp made its folder"

echo "what a checkpoint holds"
names=$(tensors "$work/bf16-moments-straight/checkpoints/00000020")
expect_same "$(grep -c '^moment[12]/.* bfloat16$' <<<"$names")" "$(grep -c '^moment' <<<"$names")" "moments in bf16"
expect_same "$(grep -c '^ema/.* float32$' <<<"$names")" "$(grep -c '^moment1' <<<"$names")" "averages"
names=$(tensors "$work/muon-straight/checkpoints/00000020")
grep -q '^moment1/.*q_proj' <<<"$names" || fail "no momentum of q_proj"
! grep -q '^moment2/.*_proj\|^moment2/.*experts' <<<"$names" || fail "second moments of Muon's matrices"
grep -q '^moment2/model.embed' <<<"$names" || fail "no second moment of the embedding"

echo "other layouts and other dtypes go on"
moved=$work/moved
expect_rc 0 train_on 2 2 "$moved" optimizer.name=muon optimizer.ema=0.9 run.steps=8
expect_rc 0 train_on 4 2 "$moved" optimizer.name=muon optimizer.ema=0.9 run.steps=14
expect_rc 0 train_on 1 1 "$moved" optimizer.name=muon optimizer.ema=0.9
expect_rc 0 train_on 1 1 "$moved-not" optimizer.name=muon optimizer.ema=0.9
close_to 1e-5 "$(metric "$moved-not" loss)" "$(metric "$moved" loss)" "Muon on three layouts"
expect_rc 0 train_on 2 1 "$work/dtypes" optimizer.moments=bf16 run.steps=8
expect_rc 0 train_on 1 1 "$work/dtypes" optimizer.moments=fp32 run.steps=14
expect_rc 0 train_on 2 2 "$work/dtypes" optimizer.moments=bf16
expect_rc 0 train_on 1 1 "$work/dtypes-not"
close_to 5e-3 "$(metric "$work/dtypes-not" loss)" "$(metric "$work/dtypes" loss)" "moments to and fro"

echo "from AdamW to Muon, and not back"
expect_rc 0 train_on 1 1 "$work/switch" run.steps=5
expect_rc 0 train_on 2 1 "$work/switch" run.steps=10 optimizer.name=muon
expect_text "resuming at step 5"
expect_error 65 "written with optimizer.name muon, no moment2/" train_on 1 1 "$work/switch" optimizer.name=adamw
expect_rc 0 train_on 1 1 "$work/switched" run.steps=2 "checkpoint.init_from=$work/switch"

echo "running averages"
expect_rc 0 train_on 1 1 "$work/average" optimizer.ema=0.8 run.steps=10
for layout in 1,1 2,2; do
    expect_rc 0 ranks "${layout%,*}" "$binary" eval "$work/average" --ema --json "parallel.ep=${layout#*,}"
    now=$(tr -d '\r' <"$out" | sed -n 's/.*"loss_hex":"\([^"]*\)".*/\1/p')
    expect_same "${seen:-$now}" "$now" "eval of an average at $layout"
    seen=$now
done
expect_rc 0 "$binary" eval "$work/average" --json
! grep -qF "$seen" "$out" || fail "eval --ema is eval"
expect_rc 0 "$binary" generate "$work/average" --ema --prompt "the " --count 5
expect_error 65 "holds no ema/ weights" "$binary" eval "$work/switched" --ema
expect_error 65 "holds no ema/ weights" "$binary" generate "$work/switched" --ema --prompt a
expect_rc 0 train_on 1 1 "$work/average" optimizer.ema=0 run.steps=12
expect_text "left behind: optimizer.ema is 0"
expect_rc 0 train_on 2 1 "$work/average" optimizer.ema=0.8 run.steps=13
expect_text "the average starts from its weights"
expect_rc 0 "$binary" eval "$work/average" --ema

echo "frozen parameters"
expect_error 64 "optimizer.freeze: '*experts.9.*' matches no parameter" \
    train_on 2 2 "$work/none" 'optimizer.freeze=*norm*,*experts.9.*'
frozen=$work/frozen-straight/checkpoints/00000020
expect_rc 0 train_on 1 1 "$work/start" run.steps=1 optimizer.lr=0
python3 - "$work/start/checkpoints/00000001" "$frozen" <<'PY' || fail "frozen weights moved, or others did not"
import json, re, sys
# Single-rank fp32 checkpoints: each tensor is one piece of one file.
def read(folder):
    manifest = json.load(open(folder + "/manifest.json"))
    found = {}
    for tensor in manifest["tensors"]:
        if "/" in tensor["name"]:
            continue
        data = b""
        for index, _, count, offset in tensor["pieces"]:
            with open(folder + "/" + manifest["files"][index]["name"], "rb") as file:
                file.seek(offset)
                data += file.read(4 * count)
        found[tensor["name"]] = data
    return found
before, after = read(sys.argv[1]), read(sys.argv[2])
assert before.keys() == after.keys() and len(before) > 10
for name in before:
    frozen = re.search(r"experts\.1\.|\.gate\.", name) is not None
    assert (before[name] == after[name]) == frozen, name
PY

echo "keys"
expect_error 64 "multistep needs schedule.milestones" "$binary" train "$work/tiny.yaml" schedule.kind=multistep
expect_error 64 "'sgd' is not one of adamw, muon" "$binary" train "$work/tiny.yaml" optimizer.name=sgd
expect_error 64 "train.batch_ramp: key 'increment' is missing" "$binary" train "$work/tiny.yaml" \
    train.batch_ramp.start=4 train.batch_ramp.tokens=100
finish
