#!/usr/bin/env bash
# libFuzzer on the manifest's reader: 3 s, 30 s with SWITCHYARD_FULL=1, or SWITCHYARD_FUZZ_SECONDS.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/fuzz.sh"
seconds_of 3 30
build_fuzzer tests/fuzz/manifest.c checkpoints/{boxes,manifest,manifest_text}.c kernels/base/{hash,io,io_fault,status,tensor}.c \
    $(pkg-config --cflags --libs jansson libxxhash)
python3 - "$source_dir/tests/golden/checkpoints" "$work/corpus" <<'PY'
import json, pathlib, sys
for path in pathlib.Path(sys.argv[1]).glob("*/manifest.json"):
    manifest = json.loads(path.read_text())
    (pathlib.Path(sys.argv[2]) / (path.parent.name + ".json")).write_text(path.read_text())
    manifest["tensors"] = manifest["tensors"][:2]  # short ones are changed more often where it matters
    (pathlib.Path(sys.argv[2]) / (path.parent.name + "-short.json")).write_text(json.dumps(manifest, separators=(",", ":")))
PY
run_fuzzer 8192 500
finish
