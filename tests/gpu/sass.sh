#!/usr/bin/env bash
# sass.sh RULES NVCC NVDISASM SOURCE...: disassembles each source's code for sm_90a and holds every kernel against the
# rules that match it. A violation is one line: rule, kernel, figure.
#
# SASS_OBJECTS, SASS_CUOBJDUMP: a folder with NAME.o and NAME.o.info (kernels/cuda/nvcc.sh), what the program is linked
# of, and cuobjdump, which takes the code out of it; without one of them the source is compiled, as the build does.
# RULES: lines `FILE KERNEL NEED...`. FILE and KERNEL are extended regular expressions for the whole path from the
# source folder and the whole demangled name without arguments; !KERNEL: all that do not match. NEED is FIGURE OP NUMBER in one word, OP one of
# >= <= =:
#   a figure of the SASS: kernels/cuda/sass_counts.awk
#   spill, stack         bytes that ptxas spilled (stores), bytes of stack frame
# A rule whose FILE is among the sources must match a kernel there, so that a renamed kernel does not leave its rule.
#
# SASS_FLAGS: more options of nvcc. SASS_TABLE=1: prints every kernel's figures.
# Exit code 1: a rule is broken; 70: nvcc or nvdisasm failed. A source without kernels passes.
set -uo pipefail
rules=$1 nvcc=$2 nvdisasm=$3
shift 3
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# One line per kernel on stdout: FILE MANGLED figure=value ...
figures() { # FILE CUBIN PTXAS_LOG
    "$nvdisasm" -c "$2" | awk -f "$root/kernels/cuda/sass_counts.awk" >"$work/counts" &&
        awk -v file="$1" '
            FNR != NR { print file, $0, "spill=" spill[$1] + 0, "stack=" stack[$1] + 0; next }
            /Function properties for/ { k = $NF }
            /bytes stack frame/ { stack[k] = $1; spill[k] = $5 }' "$3" "$work/counts"
}

# Leaves NAME.cubin and NAME.log, what ptxas said, in the working folder.
built() { # NAME
    local object=${SASS_OBJECTS:-}/$1.o
    [ -f "$object.info" ] && [ -x "${SASS_CUOBJDUMP:-}" ] &&
        (cd "$work" && "$SASS_CUOBJDUMP" -xelf "$1.sm_90a" "$(realpath "$object")" >/dev/null) &&
        mv "$work/$1".sm_90a*.cubin "$work/$1.cubin" &&
        awk '/Compiling entry function/ { split($0, part, "\x27"); ours = part[4] == "sm_90a" } ours' "$object.info" >"$work/$1.log"
}
compiled() { # NAME SOURCE
    # shellcheck disable=SC2086
    "$nvcc" -std=c++17 -I"$root" -I"$root/tests/emulator" -I"$root/tests" -gencode=arch=compute_90a,code=sm_90a -O3 \
        ${SASS_FLAGS:-} -Xptxas -v -cubin -o "$work/$1.cubin" "$root/$2" >"$work/$1.log" 2>&1 ||
        { cat "$work/$1.log" >&2; echo "sass.sh: nvcc failed on $2" >&2; exit 70; }
}

for source in "$@"; do
    source=${source#"$root/"}
    name=$(basename "$source" .cu)
    built "$name" || compiled "$name" "$source"
    if ! figures "$source" "$work/$name.cubin" "$work/$name.log" >"$work/$name.figures" ||
        [ "$(grep -c 'Compiling entry function' "$work/$name.log")" -ne "$(wc -l <"$work/$name.figures")" ]; then
        echo "sass.sh: $nvdisasm does not show every kernel of $source" >&2
        exit 70
    fi
    cat "$work/$name.figures" >>"$work/mangled"
done
[ -s "$work/mangled" ] || { echo "no kernels: launchers only" && exit 0; }
# Demangled, arguments and return type dropped, spaces removed: `void f<int, 3>(float*)` becomes f<int,3>.
paste -d' ' <(cut -d' ' -f1 "$work/mangled") \
    <(cut -d' ' -f2 "$work/mangled" | c++filt | sed -E 's/\(anonymous namespace\):://g; s/^void //; s/\(([a-zA-Z_ ]+)\)([-0-9])/\2/g; s/\(.*//; s/ //g') \
    <(cut -d' ' -f3- "$work/mangled") >"$work/figures"
[ "${SASS_TABLE:-0}" = 0 ] || column -t "$work/figures"

awk -v sources="$*" -v root="$root/" '
    FNR == NR { kernel[++kernels] = $0; next }
    /^[ \t]*(#|$)/ { next }
    {
        matched = there = 0
        not = sub(/^!/, "", $2); pattern = $2
        count = split(sources, list, " ")
        for (i = 1; i <= count; i++) { s = list[i]; if (index(s, root) == 1) s = substr(s, length(root) + 1); there += s ~ ("^(" $1 ")$") }
        for (i = 1; i <= kernels; i++) {
            split(kernel[i], word, " ")
            if (word[1] !~ ("^(" $1 ")$") || (word[2] ~ ("^(" pattern ")$")) == not) continue
            matched++
            for (n = 3; n <= NF; n++) check($n, kernel[i])
        }
        if (there && !matched) { printf "%s: no kernel matches %s (rule in line %d)\n", $1, $2, FNR; bad = 1 }
        held += matched
    }
    function check(need, line,   op, figure, limit, have, word, j, parts) {
        op = match(need, />=|<=|=/) ? substr(need, RSTART, RLENGTH) : ""
        figure = substr(need, 1, RSTART - 1); limit = substr(need, RSTART + RLENGTH) + 0; have = -1
        parts = split(line, word, " ")
        for (j = 3; j <= parts; j++) if (index(word[j], figure "=") == 1) have = substr(word[j], length(figure) + 2) + 0
        if (op == "" || have < 0) { printf "rule in line %d: what is %s?\n", FNR, need; bad = 1; return }
        checks++
        if ((op == ">=" && have >= limit) || (op == "<=" && have <= limit) || (op == "=" && have == limit)) return
        printf "%s: %s: %s is %d, want %s (rule in line %d)\n", word[1], word[2], figure, have, need, FNR
        bad = 1
    }
    END {
        printf "%d kernels, %d matches of rules, %d figures held\n", kernels, held, checks
        exit bad || !checks
    }' "$work/figures" "$rules"
