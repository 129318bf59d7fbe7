# shellcheck shell=bash disable=SC2154
# Shared by tests/fuzz/test_*.sh: libFuzzer under the address and undefined-behaviour sanitizers.
. "$(dirname "${BASH_SOURCE[0]}")/../cli/common.sh"

# seconds_of PLAIN FULL: SWITCHYARD_FUZZ_SECONDS goes before both.
seconds_of() {
    seconds=${SWITCHYARD_FUZZ_SECONDS:-$([ "$full" = 1 ] && echo "$2" || echo "$1")}
}

# build_fuzzer SOURCES AND LIBRARIES...: $work/fuzz, or ends as skipped.
build_fuzzer() {
    cd "$source_dir"
    printf 'int LLVMFuzzerTestOneInput(const unsigned char *d, unsigned long n);\nint LLVMFuzzerTestOneInput(const unsigned char *d, unsigned long n) { return d == 0 && n == 1; }\n' >"$work/probe.c"
    if ! clang -fsanitize=fuzzer,address "$work/probe.c" -o "$work/probe" 2>/dev/null; then
        echo "skipped: needs clang with libFuzzer"
        exit 77
    fi
    clang -std=c11 -D_POSIX_C_SOURCE=200809L -O1 -g -fsanitize=fuzzer,address,undefined -fno-sanitize-recover=all -I. \
        "$@" -o "$work/fuzz"
    mkdir "$work/corpus"
}

# run_fuzzer MOST_BYTES LEAST_RUNS [OPTION...]
run_fuzzer() {
    local rc=0 runs most=$1 least=$2
    shift 2
    echo "leak:libhdf5" >"$work/not-ours" # of files that it refuses
    ASAN_OPTIONS=detect_leaks=1 LSAN_OPTIONS="suppressions=$work/not-ours:print_suppressions=0" "$work/fuzz" -max_total_time="$seconds" -max_len="$most" -timeout=30 -rss_limit_mb=512 \
        -print_final_stats=1 "$@" -artifact_prefix="$work/" "$work/corpus" >"$out" 2>"$err" || rc=$?
    [ "$rc" = 0 ] || { fail "the fuzzer found something"; tail -n 40 "$err"; }
    runs=$(sed -n 's/^stat::number_of_executed_units: *//p' "$err")
    [ "${runs:-0}" -gt "$least" ] || fail "only ${runs:-0} executions"
    echo "$runs executions in $seconds s"
}
