#!/usr/bin/env bash
# What the program is built with against being taken over, read from the built file itself.
set -euo pipefail
cd "$1"
switchyard=$2
problems=0
# want WHAT COMMAND...: the command succeeds.
want() {
    local what=$1
    shift
    "$@" >/dev/null || { echo "lost: $what" >&2; problems=$((problems + 1)); }
}

headers=$(readelf --file-header --program-headers --wide "$switchyard")
dynamic=$(readelf --dynamic --wide "$switchyard")
symbols=$(readelf --dyn-syms --wide "$switchyard")
want "position-independent (-pie): Type" grep -qE 'Type: +DYN' <<<"$headers"
want "position-independent (-pie): flag" grep -qE 'FLAGS_1.*PIE' <<<"$dynamic"
want "addresses read-only once bound (-z relro)" grep -q 'GNU_RELRO' <<<"$headers"
want "all bound at the start (-z now)" grep -qE 'BIND_NOW|FLAGS_1.*NOW' <<<"$dynamic"
want "a stack that is no code (-z noexecstack)" grep -qE 'GNU_STACK .* RW +0x' <<<"$headers"
want "guarded frames (-fstack-protector)" grep -q '__stack_chk_fail' <<<"$symbols"
want "checked calls (_FORTIFY_SOURCE)" grep -q '__snprintf_chk' <<<"$symbols"

# Of every file of ours: the options that leave no mark elsewhere stand in the debug information.
units=$(readelf --debug-dump=info --dwarf-depth=1 --wide "$switchyard" | grep 'DW_AT_producer')
want "debug information of our files" [ "$(wc -l <<<"$units")" -ge 100 ]
for option in -fPIE -fstack-protector-strong -fstack-clash-protection; do
    missing=$(grep -vce " $option\b" <<<"$units" || true)
    want "$option in $missing of $(wc -l <<<"$units") files" [ "$missing" = 0 ]
done

# The level of _FORTIFY_SOURCE is no option of code generation: what the build was told.
level=$(sed -n 's/^SWITCHYARD_FORTIFY_3:INTERNAL=1$/3/p' "$(dirname "$switchyard")/CMakeCache.txt")
for room in base kernels parallel data checkpoints trainer switchyard sentencepiece_bridge; do
    flags=$(dirname "$switchyard")/CMakeFiles/$room.dir/flags.make
    [ ! -e "$flags" ] || want "-D_FORTIFY_SOURCE=${level:-2} of $room" grep -qe "-D_FORTIFY_SOURCE=${level:-2}\b" "$flags"
done
exit $((problems > 0))
