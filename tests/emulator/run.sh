#!/usr/bin/env bash
# run.sh MODE PROGRAM [NAME=VALUE...] [-n RANKS] clean            right and silent under every seed
# run.sh MODE PROGRAM [...] finds all|any|none REGEX              the seeded bug is found, with that report,
#                                                                 under all, some or (known blind spot) no seeds
# MODE plain, asan or tsan. SWITCHYARD_FULL=1: more seeds. Skipped (77) where a sanitizer cannot run.
set -uo pipefail
mode=$1 program=$2
shift 2
ranks=0
while [ $# -gt 0 ]; do
    case "$1" in
    *=*) export "${1?}" && shift ;;
    -n) ranks=$2 && shift 2 ;;
    *) break ;;
    esac
done
want=$1 how=${2:-} regex=${3:-}
full=${SWITCHYARD_FULL:-0}
case $mode-$full in
plain-0) seeds=(0 1 2 7) ;;
plain-1) seeds=(0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15) ;;
asan-0) seeds=(2) ;;
asan-1) seeds=(1 2 3 4) ;;
tsan-0) seeds=(2 3) ;;
*) seeds=(0 1 2 3 4 5) ;;
esac
# Right under two orders, with SWITCHYARD_FULL=1 under sixteen (whole ops: four, six by the race check; late and eager ones
# among them); what is seeded to be wrong is looked for under four.
[ "$mode-$full-$want" != plain-0-clean ] || seeds=(0 7)
case $mode-$full-${TWO_PASSES:-0} in # a seed is two orders (ops_case.h)
plain-0-1) seeds=(0) ;;
plain-1-1) seeds=(0 1) ;;
asan-1-1) seeds=(1 2) ;;
tsan-1-1) seeds=(2 3 4) ;;
esac
[ "$ranks" -eq 0 ] || seeds=("${seeds[@]:0:3}")
export ASAN_OPTIONS=detect_leaks=0:exitcode=87
export UBSAN_OPTIONS=print_stacktrace=0
export TSAN_OPTIONS=halt_on_error=1:exitcode=66:atexit_sleep_ms=0:report_signal_unsafe=0:history_size=4
# Emulated ranks are single-threaded; Open MPI refuses root unless told twice.
export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1 OMPI_MCA_rmaps_base_oversubscribe=1
export OMPI_MCA_mpi_yield_when_idle=1

command=("$program")
if [ "$ranks" -gt 0 ]; then
    command=("${MPIEXEC:-mpirun}" --bind-to none -np "$ranks" "$program")
    # Launches of other tests remove the common folder while this one makes its own there.
    OMPI_MCA_orte_tmpdir_base=$(mktemp -d)
    export OMPI_MCA_orte_tmpdir_base
    trap 'rm -rf "$OMPI_MCA_orte_tmpdir_base"' EXIT
fi
attempt() {
    output=$(timeout 300 "${command[@]}" "$1" 2>&1)
    code=$?
}
# Newer kernels place mappings where this compiler's ThreadSanitizer does not expect them.
misplaced() { [ "$mode" = tsan ] && grep -q 'unexpected memory mapping' <<<"$output"; }

found=0
for seed in "${seeds[@]}"; do
    attempt "$seed"
    if misplaced; then
        command=(setarch "$(uname -m)" -R "${command[@]}")
        attempt "$seed"
        if misplaced || grep -q '^setarch:' <<<"$output"; then
            echo "ThreadSanitizer cannot run on this kernel"
            exit 77
        fi
    fi
    if [ "$want" = clean ]; then
        [ $code -eq 0 ] && continue
        head -40 <<<"$output"
        echo "seed $seed: exit code $code, want 0"
        exit 1
    fi
    [ $code -ne 124 ] || { echo "seed $seed: timed out" && exit 1; }
    if [ $code -ne 0 ] && grep -qE -- "$regex" <<<"$output"; then
        found=$((found + 1))
    elif [ $code -ne 0 ] || [ "$how" = all ]; then
        head -40 <<<"$output"
        echo "seed $seed: exit code $code, no report like '$regex'"
        [ "$how" = any ] || exit 1
    fi
done
[ "$want" = clean ] && exit 0
echo "$found of ${#seeds[@]} seeds find it"
case $how in
all) [ $found -eq ${#seeds[@]} ] ;;
any) [ $found -gt 0 ] ;;
none) [ $found -eq 0 ] ;;
*) exit 64 ;;
esac
