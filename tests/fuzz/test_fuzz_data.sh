#!/usr/bin/env bash
# libFuzzer on the readers of tokenizer.json, of lines of .jsonl, and of token files (ours, Megatron's index, llm.c's), under
# the address and undefined-behaviour sanitizers: 10 s each, or SWITCHYARD_FUZZ_SECONDS.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/../cli/common.sh"
seconds=${SWITCHYARD_FUZZ_SECONDS:-10}
cd "$source_dir"
printf 'int LLVMFuzzerTestOneInput(const unsigned char *d, unsigned long n);\nint LLVMFuzzerTestOneInput(const unsigned char *d, unsigned long n) { return d == 0 && n == 1; }\n' >"$work/probe.c"
if ! clang -fsanitize=fuzzer,address "$work/probe.c" -o "$work/probe" 2>/dev/null; then
    echo "skipped: needs clang with libFuzzer"
    exit 77
fi
hdf5=$(pkg-config --exists hdf5-serial && echo hdf5-serial || echo hdf5)
# one library of the readers for all three; pieces that a target does not use are left out when it is linked
mkdir "$work/objects"
(
    cd "$work/objects"
    files=("$source_dir"/data/{block_file,bpe,chat,compose,compose_new,document_line,lists,pattern,phrases,splitter,token_h5,token_llmc,token_megatron,token_store,token_table,tokenizer,tokenizer_json,unicode_new,utf8}.c
        "$source_dir/data/absent/sentencepiece_none.c" "$source_dir"/kernels/base/{h5_reader,hash,io,io_fault,status}.c)
    # shellcheck disable=SC2046
    printf '%s\n' "${files[@]}" | xargs -P 2 -n 6 clang -std=c11 -D_POSIX_C_SOURCE=200809L -O1 -g -fsanitize=fuzzer-no-link,address,undefined \
        -fno-sanitize-recover=all -I"$source_dir" -c $(pkg-config --cflags "$hdf5" jansson libxxhash libpcre2-8 libutf8proc)
    ar rcs ../readers.a ./*.o
)
corpus() {
    mkdir "$work/$1"
    case $1 in
    tokenizer_json)
        python3 - "$source_dir/tests/tokenizers/files" "$work/$1" <<'PY'
import json, pathlib, sys
for path in pathlib.Path(sys.argv[1]).glob("*.json"):
    file = json.loads(path.read_text())
    model = file["model"]
    model["merges"] = model["merges"][:3]
    made = {"".join(m if isinstance(m, list) else m.split(" ")) for m in model["merges"]}
    model["vocab"] = {k: v for k, v in model["vocab"].items() if len(k) == 1 or k in made}
    file["added_tokens"] = file["added_tokens"][:3]
    (pathlib.Path(sys.argv[2]) / path.name).write_text(json.dumps(file, separators=(",", ":"), ensure_ascii=False))
PY
        ;;
    document_line)
        printf '{"text": "caf\\u00e9 \\ud83d\\ude00 a"}' >"$work/$1/text"
        printf '{"tokens": [1, 2, 70000], "loss_mask": [0, 1, 1]}' >"$work/$1/tokens"
        printf '{"messages": [{"role": "system", "content": "s"}, {"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]}' >"$work/$1/messages"
        ;;
    token_files)
        mkdir "$work/written"
        (
            cd "$work/written"
            python3 "$source_dir/tests/unit/write_token_files.py"
            for file in *.idx; do
                size=$(stat -c %s "${file%.idx}.bin" 2>/dev/null || echo 0)
                { printf "\\x$(printf %02x $((size % 256)))\\x$(printf %02x $((size / 256)))" && cat "$file"; } >"../token_files/$file"
            done
            for file in gpt2.bin llama3.bin; do
                { printf '\0\0' && cat "$file"; } >"../token_files/$file"
            done
            printf '{"tokens": [1, 2, 3], "loss_mask": [0, 1, 1]}\n{"tokens": [4]}\n' >t.jsonl
            "$binary" prepare --tokenizer none --vocab-size 9 --output t.h5 t.jsonl >/dev/null
            { printf '\0\0' && cat t.h5; } >../token_files/t.h5
        )
        ;;
    esac
}
for target in tokenizer_json document_line token_files; do
    # shellcheck disable=SC2046
    clang -std=c11 -D_POSIX_C_SOURCE=200809L -O1 -g -fsanitize=fuzzer,address,undefined -fno-sanitize-recover=all -I. "tests/fuzz/$target.c" \
        "$work/readers.a" $(pkg-config --cflags --libs "$hdf5" jansson libxxhash libpcre2-8 libutf8proc) -o "$work/fuzz-$target"
    corpus $target
    rc=0
    ASAN_OPTIONS=detect_leaks=1 "$work/fuzz-$target" -max_total_time="$seconds" -max_len=16384 -timeout=30 -rss_limit_mb=1024 -verbosity=0 \
        -print_final_stats=1 -artifact_prefix="$work/" "$work/$target" >"$out" 2>"$err" || rc=$?
    [ "$rc" = 0 ] || {
        fail "$target: the fuzzer found something"
        tail -n 40 "$err"
        [ -z "${SWITCHYARD_FUZZ_KEEP:-}" ] || cp "$work"/crash-* "$work"/timeout-* "$work"/oom-* "$work"/leak-* "$SWITCHYARD_FUZZ_KEEP" 2>/dev/null || true
    }
    runs=$(sed -n 's/^stat::number_of_executed_units: *//p' "$err")
    [ "${runs:-0}" -gt 100 ] || fail "$target: only ${runs:-0} executions"
    echo "$target: $runs executions in $seconds s"
done
finish
