#!/usr/bin/env bash
# kernel_list.sh OUT.c OBJECT...: the table behind device_kernels (kernels/device.h), from what ptxas said of the
# kernels of the objects (nvcc.sh), for sm_90a. Names are demangled where c++filt is there.
set -euo pipefail
out=$1
shift
names=$(command -v c++filt || echo cat)
{
    echo '#include "kernels/device_kind.h"'
    echo 'static const struct device_kernel kernels[] = {'
    awk '
        /Compiling entry function/ { split($0, part, "\x27"); hopper = part[4] == "sm_90a"; name = part[2] }
        /bytes stack frame/ { stack = $1; spill = $5 }
        hopper && /Used [0-9]+ registers/ {
            shared = match($0, /[0-9]+ bytes smem/) ? substr($0, RSTART) + 0 : 0
            match($0, /Used [0-9]+/)
            printf "%d %d %d %d %s\n", substr($0, RSTART + 5, RLENGTH - 5), shared, spill, stack, name
        }' "${@/%/.info}" | "$names" |
        sed -E 's/\(anonymous namespace\):://g; s/ void / /; s/\([a-zA-Z_ ]+\)([-0-9])/\1/g; s/\(.*//
            s/^([0-9]+) ([0-9]+) ([0-9]+) ([0-9]+) (.*)$/    {"\5", \1, \2, \3, \4},/' |
        LC_ALL=C sort
    echo '};'
    echo 'int cuda_device_kernels(const struct device_kernel **list)'
    echo '{'
    echo '    *list = kernels;'
    echo '    return sizeof kernels / sizeof kernels[0];'
    echo '}'
} >"$out"
