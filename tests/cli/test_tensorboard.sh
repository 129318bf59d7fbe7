#!/usr/bin/env bash
# TensorBoard's own reader (its wheel, in an environment of the test's own) reads the event files.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"

if ! { python3 -m venv "$work/venv" && "$work/venv/bin/pip" -q install tensorboard 'setuptools<81'; } >"$out" 2>&1; then
    echo "skipped: no environment with the tensorboard wheel can be made here: $(tail -n 1 "$out")"
    exit 77
fi
make_data
make_config
expect_rc 0 train_on 1 1 "$work/run" run.steps=8 sample.every_steps=8
expect_rc 0 train_on 1 1 "$work/run" run.steps=12 sample.every_steps=8
cat >"$work/read.py" <<'PY'
import json, sys
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
run = sys.argv[1]
events = EventAccumulator(run + "/tensorboard", size_guidance={"scalars": 0, "histograms": 0, "tensors": 0})
events.Reload()
want = [(line["step"], line["loss"]) for line in map(json.loads, open(run + "/metrics.jsonl"))]
got = [(event.step, event.value) for event in events.Scalars("loss/train")]
assert [s for s, _ in got] == [s for s, _ in want], got
assert all(abs(a - b) < 1e-5 * b for (_, a), (_, b) in zip(got, want)), (got, want)
histogram = events.Histograms("expert_load/block_001")[-1]
assert histogram.step == 12 and sum(histogram.histogram_value.bucket) == 4, histogram
samples = events.Tensors("sample")
assert [sample.step for sample in samples] == [8, 12], samples
assert all(sample.tensor_proto.string_val[0].decode().startswith("    ") for sample in samples), samples
print("read")
PY
expect_rc 0 "$work/venv/bin/python" "$work/read.py" "$work/run"
expect_text "read"
finish
