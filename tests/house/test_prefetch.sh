#!/usr/bin/env bash
# The wide kernel's prefetches (kernels/cpu/gemm_wide.c) are in the built file: they change no result, and GCC takes a
# function that does nothing else for one without effect, and leaves it out.
set -euo pipefail
switchyard=$2
if [ "$(uname -m)" != x86_64 ] || ! command -v objdump >/dev/null; then
    echo "needs x86-64 and objdump"
    exit 77
fi

# prefetches FUNCTION [KIND]: how many instructions of its code are, with what GCC has split from it.
prefetches() {
    objdump --disassemble --no-show-raw-insn "$switchyard" |
        awk -v name="$1" -v kind="${2:-prefetch}" '/^[0-9a-f]+ </ { here = $2 ~ "^<" name "[.>]" } here && $0 ~ kind { n++ } END { print n + 0 }'
}

# Four lines of what is packed next, and one of A for each row, of 1 to 14 rows.
for kernel in kernel_pairs kernel_f32; do
    found=$(prefetches $kernel)
    [ "$found" -ge $((14 * 4 + 105)) ] || { echo "$kernel: $found prefetches" >&2; exit 1; }
done
# Lines of C, to be written.
[ "$(prefetches multiply prefetchw)" -ge 1 ] || { echo "multiply: no prefetchw" >&2; exit 1; }
