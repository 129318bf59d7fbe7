#!/usr/bin/env bash
# Context parallelism by the program: losses and gradient norms of one rank on every layout, packed documents and
# prediction modules included; verify; checkpoints from one cp to another; what is refused, by name.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"
make_data

# Documents of 1 to 12 words: most sequences have several, and some chunk begins inside one.
python3 - "$work/documents.jsonl" <<'PY'
import json, sys
words = "the int of return void struct char if else for while define include static const".split()
state = 3
with open(sys.argv[1], "w") as out:
    for _ in range(500):
        state = (state * 6364136223846793005 + 1442695040888963407) % 2**64
        count = 1 + (state >> 33) % 12
        text = " ".join(words[(state >> (20 + 3 * i)) % len(words)] for i in range(count))
        out.write(json.dumps({"text": text}) + "\n")
PY
"$binary" prepare --tokenizer bytes --output "$work/documents.h5" "$work/documents.jsonl" >/dev/null

# compare FAMILY NAME "RANKS,EP,CP ..." [key=value ...]: ten steps on each layout as on one rank.
compare() {
    local family=$1 name=$2 layouts=$3 one layout count ep cp dir field
    shift 3
    echo "$family, $name: $layouts"
    make_config "$family"
    one=$work/$family-$name
    expect_rc 0 train_on 1 1 "$one" run.steps=10 eval.every_steps=5 "$@"
    for layout in $layouts; do
        IFS=, read -r count ep cp <<<"$layout"
        dir=$one-${layout//,/-}
        expect_rc 0 train_on "$count" "$ep" "$dir" "parallel.cp=$cp" run.steps=10 eval.every_steps=5 "$@"
        close_to 1e-6 "$(metric "$one" loss | head -n 1)" "$(metric "$dir" loss | head -n 1)" \
            "$family $name: loss of step 1 at $layout"
        for field in loss aux_loss grad_norm; do
            close_to 1e-5 "$(metric "$one" $field)" "$(metric "$dir" $field)" "$family $name: $field at $layout"
        done
        close_to 1e-5 "$(metric "$one" valid_loss | grep -v null)" "$(metric "$dir" valid_loss | grep -v null)" \
            "$family $name: validation loss at $layout"
        [ "$family" != deepseek_v3 ] ||
            close_to 1e-5 "$(metric "$one" mtp_loss)" "$(metric "$dir" mtp_loss)" "$family $name: mtp_loss at $layout"
    done
}

documents=(data.train="$work/documents.h5" data.valid="$work/documents.h5" data.mask_documents=true eval.batches=4)
if [ "$full" = 1 ]; then
    every="2,1,2 2,2,2 4,1,4 4,2,2 4,1,2 4,4,4"
    compare mixtral plain "$every"
    compare deepseek_v2 plain "2,2,2 4,1,4"
    compare deepseek_v3 plain "$every"
    compare mixtral documents "2,1,2 4,2,4" "${documents[@]}" data.packing=best_fit
    compare deepseek_v3 documents "2,1,2 4,2,4" "${documents[@]}" model.num_nextn_predict_layers=2
    compare mixtral window "4,2,4" model.sliding_window=9 model.router_jitter_noise=0.1 router.z_loss_coef=1e-3
    echo "verify, tp and pp too"
    for family in mixtral deepseek_v2 deepseek_v3; do
        make_config "$family"
        expect_rc 0 ranks 4 "$binary" verify "$work/tiny.yaml" parallel.cp=2 parallel.ep=2
        expect_text "4 ranks, ep 2, etp 1, edp 2, tp 1, cp 2, pp 1 against one rank"
        expect_text "verified: this layout computes what one rank does"
        expect_rc 0 ranks 4 "$binary" verify "$work/tiny.yaml" parallel.cp=2 parallel.pp=2 parallel.ep=2
    done
    # bf16, at most 1.5e-4 measured: roundings of 2^-9 in another order, of which thousands are averaged.
    expect_rc 0 train_on 1 1 "$work/narrow-1" run.steps=5 train.precision=bf16
    expect_rc 0 train_on 2 2 "$work/narrow-2" run.steps=5 train.precision=bf16 parallel.cp=2
    close_to 1e-3 "$(metric "$work/narrow-1" loss)" "$(metric "$work/narrow-2" loss)" "losses in bf16"
    close_to 1e-2 "$(metric "$work/narrow-1" grad_norm)" "$(metric "$work/narrow-2" grad_norm)" "gradient norms in bf16"
    expect_rc 0 ranks 4 "$binary" verify "$work/tiny.yaml" parallel.cp=2 parallel.tp=2 parallel.ep=4
    expect_rc 0 ranks 2 "$binary" verify "$work/tiny.yaml" parallel.cp=2 optimizer.name=muon
    expect_rc 1 ranks 2 "$binary" verify "$work/tiny.yaml" parallel.cp=2 debug.fault=gradient:1:1
    expect_text "BAD  gradients"
else
    compare deepseek_v3 documents "2,2,2" "${documents[@]}"
fi

echo "a trace: attention of each turn between a message's start and its finish"
make_config mixtral
expect_rc 0 train_on 2 2 "$work/traced" parallel.cp=2 run.steps=2 data.valid=null debug.profile="$work/trace.json" \
    debug.profile_from=2 debug.profile_steps=1
python3 - "$work/trace.json" <<'PY' || fail "messages of the ring do not stand beside attention"
import json, sys
trace = json.load(open(sys.argv[1]))
for rank in (0, 1):
    spans = [e for e in trace["traceEvents"] if e.get("ph") == "X" and e["pid"] == rank]
    layers = sum(e["name"] == "attention" for e in spans)
    for name, count in (("keys", 2), ("gradients of keys", 1)):  # of a sequence: forward and backward
        messages = [e for e in spans if e["name"] == name]
        assert layers > 0 and messages and len(messages) % (count * layers) == 0, (name, len(messages), layers)
    wanted = "exchange, start of a pass", "attention, turn", "attention, backward turn", "exchange, finish"
    order = [e["name"] for e in sorted(spans, key=lambda e: e["ts"]) if e["name"] in wanted]
    starts = [i for i, name in enumerate(order) if name == wanted[0]]
    assert starts and all(order[i + 1] in wanted[1:3] and order[i + 2] == wanted[3] for i in starts), order
    assert 0 <= trace["otherData"]["rank %d" % rank]["hidden_communication"] <= 1
PY

echo "from one rank to cp 2 and back"
saves=(run.steps=4 checkpoint.every_steps=2 data.valid=null)
expect_rc 0 train_on 1 1 "$work/whole" "${saves[@]}"
expect_rc 0 train_on 1 1 "$work/parts" "${saves[@]}" run.steps=2
expect_rc 0 train_on 2 1 "$work/parts" "${saves[@]}" run.steps=3 parallel.cp=2
expect_rc 0 train_on 1 1 "$work/parts" "${saves[@]}"
close_to 1e-5 "$(metric "$work/whole" loss)" "$(metric "$work/parts" loss)" "losses of a run that changed its cp"

echo "refused"
# refused FRAGMENT key=value ...
refused() {
    local fragment=$1
    shift
    expect_error 64 "$fragment" "$binary" config "$work/tiny.yaml" parallel.cp=2 "$@"
}
refused "cuts train.sequence_length 30 into 4 chunks" train.sequence_length=30
refused "with run.deterministic layout: not built" run.deterministic=layout
refused "with debug.trace: not built" debug.trace="$work/t.h5"
refused "with sample.every_steps 5: not built" sample.every_steps=5
expect_error 64 "parallel.cp 2: divides a model in training only" "$binary" eval "$work/whole" parallel.cp=2 \
    --data "$work/valid.h5"
make_config deepseek_v3
refused "more than model.num_nextn_predict_layers 2 are needed" parallel.cp=8 model.num_nextn_predict_layers=2
finish
