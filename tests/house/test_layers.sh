#!/usr/bin/env bash
# The rules of the house that a grep can see: includes go downward only, outside libraries stay in
# their rooms, functions and files stay short.
set -euo pipefail
cd "$1"
problems=$(mktemp)
trap 'rm -f "$problems"' EXIT

# allow ROOM PATTERN: files of the room include our headers only from folders that match.
allow() {
    { grep -rnE '#include "' "$1" --include='*.[ch]' --include='*.cu' --include='*.cuh' || true; } |
        { grep -vE "#include \"($2)/" || true; } | sed 's/$/   <- not below this room/' >>"$problems"
}
allow kernels/base 'kernels/base'
allow kernels 'kernels'
allow parallel 'kernels|parallel'
allow data 'kernels|parallel|data'
allow checkpoints 'kernels|parallel|checkpoints'
allow trainer 'kernels|parallel|data|checkpoints|trainer'

# only HEADER PATTERN: the header is included nowhere but in files that match.
only() {
    { grep -rnE "#include [<\"]$1" kernels parallel data checkpoints trainer --include='*.[ch]' \
        --include='*.cu' --include='*.cuh' || true; } |
        { grep -vE "^($2):" || true; } | sed 's/$/   <- belongs elsewhere/' >>"$problems"
}
only 'mpi\.h' 'parallel/comm_mpi\.c'
only 'hdf5\.h' 'kernels/base/h5_(driver|image|reader)\.[ch]|checkpoints/[a-z0-9_]+\.[ch]|data/token_(h5|writer)\.c'
only '(oneapi/)?dnnl' 'kernels/cpu/[a-z0-9_]+\.[ch]'
only 'omp\.h' 'kernels/cpu/[a-z0-9_]+\.[ch]'
only 'yaml\.h' 'trainer/config/config_yaml\.c|trainer/sweep/plan\.c'
only 'pcre2\.h' 'data/splitter\.c'
only 'kernels/cpu/' 'kernels/cpu/[a-z0-9_]+\.[ch]'

# CUDA: its headers in kernels/cuda alone, by way of simt.cuh and ptx.cuh, so that every source also
# runs on the emulator; NCCL's in one module of parallel/; assembly in the two headers.
only '(cuda|cublas|cudnn|cooperative_groups|cub/|thrust/|curand|nvtx)' 'kernels/cuda/[a-z0-9_]+\.(c|h|cuh)|parallel/comm_nccl[a-z_]*\.[ch]'
only 'nccl' 'parallel/comm_nccl[a-z_]*\.[ch]'
only '(emulator|tests)/' 'kernels/cuda/(simt|ptx)\.cuh'
{ grep -rnE '\b(asm|__asm__|asm volatile)\b *(volatile)? *\(' kernels parallel data checkpoints trainer \
    --include='*.[ch]' --include='*.cu' --include='*.cuh' || true; } |
    { grep -vE '^kernels/cuda/(simt|ptx)\.cuh:' || true; } | sed 's/$/   <- assembly belongs in ptx.cuh/' >>"$problems"

# Bodies of functions up to 80 lines (of kernels 150), files up to 600.
find kernels parallel data checkpoints trainer tests/emulator \( -name '*.[ch]' -o -name '*.cu' -o -name '*.cuh' \
    -o -name '*.cpp' \) -print0 | sort -z |
    xargs -0 awk '
        FNR == 1 { open = kernel = 0 }
        /__global__/ { kernel = 70 }
        /^\{/ { open = FNR }
        /^\}/ && open { if (FNR - open > 81 + kernel) print FILENAME ":" open ": function of " FNR - open - 1 " lines"; open = kernel = 0 }
        FNR == 601 { print FILENAME ": more than 600 lines" }' >>"$problems"

if [ -s "$problems" ]; then
    cat "$problems" >&2
    exit 1
fi
