#!/usr/bin/env bash
# libFuzzer on the manifest's reader, under the address and undefined-behaviour sanitizers: 5 s, 60 s with
# SWITCHYARD_FULL=1, or SWITCHYARD_FUZZ_SECONDS.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/../cli/common.sh"
seconds=${SWITCHYARD_FUZZ_SECONDS:-$([ "$full" = 1 ] && echo 60 || echo 5)}
cd "$source_dir"
printf 'int LLVMFuzzerTestOneInput(const unsigned char *d, unsigned long n);\nint LLVMFuzzerTestOneInput(const unsigned char *d, unsigned long n) { return d == 0 && n == 1; }\n' >"$work/probe.c"
if ! clang -fsanitize=fuzzer,address "$work/probe.c" -o "$work/probe" 2>/dev/null; then
    echo "skipped: needs clang with libFuzzer"
    exit 77
fi
clang -std=c11 -D_POSIX_C_SOURCE=200809L -O1 -g -fsanitize=fuzzer,address,undefined -fno-sanitize-recover=all -I. \
    tests/fuzz/manifest.c checkpoints/manifest.c kernels/base/{hash,io,io_fault,status,tensor}.c \
    $(pkg-config --cflags --libs jansson libxxhash) -o "$work/fuzz"
mkdir "$work/corpus"
python3 - "$source_dir/tests/golden/checkpoints" "$work/corpus" <<'PY'
import json, pathlib, sys
for path in pathlib.Path(sys.argv[1]).glob("*/manifest.json"):
    manifest = json.loads(path.read_text())
    (pathlib.Path(sys.argv[2]) / (path.parent.name + ".json")).write_text(path.read_text())
    manifest["tensors"] = manifest["tensors"][:2]  # short ones are changed more often where it matters
    (pathlib.Path(sys.argv[2]) / (path.parent.name + "-short.json")).write_text(json.dumps(manifest, separators=(",", ":")))
PY
rc=0
ASAN_OPTIONS=detect_leaks=1 "$work/fuzz" -max_total_time="$seconds" -max_len=8192 -timeout=1 -rss_limit_mb=512 \
    -print_final_stats=1 -artifact_prefix="$work/" "$work/corpus" >"$out" 2>"$err" || rc=$?
[ "$rc" = 0 ] || { fail "the fuzzer found something"; tail -n 40 "$err"; }
runs=$(sed -n 's/^stat::number_of_executed_units: *//p' "$err")
[ "${runs:-0}" -gt 1000 ] || fail "only ${runs:-0} executions"
echo "$runs executions in $seconds s"
finish
