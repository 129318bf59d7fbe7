#!/usr/bin/env bash
# kernel_list.sh OUT.c CUOBJDUMP OBJECT...: the table behind device_kernels (kernels/device.h), from what ptxas said of
# the kernels of the objects (nvcc.sh) and what their SASS holds, for sm_90a. Names are demangled where c++filt is there.
# CUOBJDUMP, which calls nvdisasm: where there is none, or it fails, instructions are not counted.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
out=$1 dump=$2
shift 2
names=$(command -v c++filt || echo cat)
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
counts=$folder/all
if [ -x "$dump" ]; then # a file for each object: two at a time would tear each other's lines
    number=0
    for object in "$@"; do
        number=$((number + 1))
        printf '%s\0%s\0' "$number" "$object"
    done | xargs -0 -P 2 -n 2 bash -c \
        'set -o pipefail; "$1" -sass -arch sm_90a "$5" 2>&1 | awk -f "$2" >"$3/$4" || true' \
        count "$dump" "$here/sass_counts.awk" "$folder"
    cat "$folder"/[0-9]* >"$counts"
else
    : >"$counts"
fi
{
    echo '#include "kernels/device_kind.h"'
    echo 'static const struct device_kernel kernels[] = {'
    awk '
        FILENAME == ARGV[1] {
            split("", figure)
            for (i = 2; i <= NF; i++) { split($i, part, "="); figure[part[1]] = part[2] }
            sass[$1] = figure["instructions"] "," figure["qgmma"] "," figure["hgmma"] "," figure["hmma"] "," figure["tma"] \
                "," figure["ffma"] "," figure["load"] "," figure["store"] "," figure["local"]
            next
        }
        /Compiling entry function/ { split($0, part, "\x27"); hopper = part[4] == "sm_90a"; name = part[2] }
        /bytes stack frame/ { stack = $1; spill = $5 }
        hopper && /Used [0-9]+ registers/ {
            shared = match($0, /[0-9]+ bytes smem/) ? substr($0, RSTART) + 0 : 0
            match($0, /Used [0-9]+/)
            printf "%d %d %d %d {%s} %s\n", substr($0, RSTART + 5, RLENGTH - 5), shared, spill, stack,
                name in sass ? sass[name] : "-1,0,0,0,0,0,0,0,0", name
        }' "$counts" "${@/%/.info}" | "$names" |
        sed -E 's/\(anonymous namespace\):://g; s/ void / /; s/\([a-zA-Z_ ]+\)([-0-9])/\1/g; s/\(.*//
            s/^([0-9]+) ([0-9]+) ([0-9]+) ([0-9]+) ([^ ]+) (.*)$/    {"\6", \1, \2, \3, \4, \5},/' |
        LC_ALL=C sort
    echo '};'
    echo 'int cuda_device_kernels(const struct device_kernel **list)'
    echo '{'
    echo '    *list = kernels;'
    echo '    return sizeof kernels / sizeof kernels[0];'
    echo '}'
} >"$out"
