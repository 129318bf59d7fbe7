# sass_counts.awk: of what `nvdisasm -c` or `cuobjdump -sass` says, one line for each kernel: its mangled name, then
#   instructions         all but NOP
#   hgmma, qgmma, hmma   wgmma of 16-bit and of 8-bit operands, mma.sync
#   tma, multicast       TMA tensor instructions, those of them that load for several blocks
#   ffma                 multiply-adds in f32
#   load, store          of global memory
#   local                loads and stores of local memory
#   register             the highest that is named, accumulators to their last
# as figure=value.
function show() {
    if (k == "") return
    printf "%s instructions=%d hgmma=%d qgmma=%d hmma=%d tma=%d multicast=%d ffma=%d load=%d store=%d local=%d register=%d\n",
        k, instructions, hgmma, qgmma, hmma, tma, multicast, ffma, load, store, local, register
}
function begin(name) {
    show()
    k = name
    instructions = hgmma = qgmma = hmma = tma = multicast = ffma = load = store = local = register = 0
}
/^\.text\./ { name = substr($1, 7); sub(/:$/, "", name); begin(name); next }
/^\t*[ \t]*Function : / { begin($NF); next }
k == "" || !/^[ \t]*\/\*[0-9a-f]+\*\// { next }
{
    sub(/\/\* 0x[0-9a-f]+ \*\/.*/, "")
    wide = 0
    if (match($0, /[HQ]GMMA\.64x[0-9]+/)) {
        if ($0 ~ /HGMMA/) hgmma++; else qgmma++
        shape = substr($0, RSTART, RLENGTH); sub(/.*64x/, "", shape); wide = shape / 2 - 1
    }
    if ($0 !~ /[^A-Z]NOP[ ;]/) instructions++
    if ($0 ~ /[^A-Z]HMMA\./) hmma++
    if ($0 ~ /UTMA(LDG|STG|REDG)/) tma++
    if ($0 ~ /UTMALDG.*MULTICAST/) multicast++
    if ($0 ~ /[^A-Z]FFMA[. ]/) ffma++
    if ($0 ~ /[^A-Z]LDG[. ]/) load++
    if ($0 ~ /[^A-Z]STG[. ]/) store++
    if ($0 ~ /[^A-Z](STL|LDL)[. ]/) local++
    rest = $0; first = 1
    while (match(rest, /[^A-Za-z0-9_]R[0-9]+/)) {
        r = substr(rest, RSTART + 2, RLENGTH - 2) + (first ? wide : 0); first = 0
        if (r > register) register = r
        rest = substr(rest, RSTART + RLENGTH)
    }
}
END { show() }
