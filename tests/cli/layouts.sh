# shellcheck shell=bash disable=SC2034,SC2154
# Shared by tests/cli/test_layouts*.sh, one per family so that they run side by side: the layout of
# ranks changes neither data nor loss: (ranks, ep) against one rank.
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"
make_data

# dir_of NAME LAYOUT: where it trains.
dir_of() {
    echo "$work/$family-$1-${2/,/-}"
}

# every_layout NAME [key=value ...]: trains it on each layout.
every_layout() {
    local name=$1 layout
    shift
    for layout in $layouts; do
        expect_rc 0 train_on "${layout%,*}" "${layout#*,}" "$(dir_of "$name" "$layout")" "$@"
    done
}

# first FIELD DIR: of step 1.
first() {
    metric "$2" "$1" | head -n 1
}

# same_first_loss NAME: bit for bit.
same_first_loss() {
    local layout one
    one=$(dir_of "$1" 1,1)
    for layout in $layouts; do
        expect_same "$(first loss_hex "$one")" "$(first loss_hex "$(dir_of "$1" "$layout")")" \
            "$family $1: loss of step 1 at 1,1 and $layout"
        expect_same "$(first mtp_loss "$one")" "$(first mtp_loss "$(dir_of "$1" "$layout")")" \
            "$family $1: loss of multi-token prediction of step 1 at 1,1 and $layout"
        close_to 1e-5 "$(first grad_norm "$one")" "$(first grad_norm "$(dir_of "$1" "$layout")")" \
            "$family $1: gradient norm of step 1 at 1,1 and $layout"
    done
}

curves() {
    local layout dir field one
    echo "$family: dropless, $steps steps"
    every_layout plain "run.steps=$steps"
    same_first_loss plain
    one=$(dir_of plain 1,1)
    for layout in $layouts; do
        dir=$(dir_of plain "$layout")
        expect_same "$(metric "$dir" step | tr '\n' ' ')" "$(seq "$steps" | tr '\n' ' ')" \
            "$family: steps at $layout"
        for field in loss aux_loss $predicted; do
            close_to 1e-5 "$(metric "$one" "$field")" "$(metric "$dir" "$field")" \
                "$family: $field of $steps steps at 1,1 and $layout"
        done
        close_to 1e-9 "$(metric "$one" lr)" "$(metric "$dir" lr)" "$family: lr at $layout"
    done
    close_to 0.5 "$(first loss "$one")" 5.55 "$family: first loss near ln 257"
    python3 - "$(first loss "$one")" "$(metric "$one" loss | tail -n 1)" <<'PY' ||
import sys
sys.exit(float(sys.argv[2]) > 0.95 * float(sys.argv[1]))
PY
        fail "$family: $steps steps learned nothing"
}

rounds() {
    local layout most
    echo "$family: smallest receive buffer and imbalance: extra rounds, the same loss"
    every_layout rounds run.steps=3 router.buffer_factor=1 model.initializer_range=0.5 \
        router.batch_loss_coef=0
    same_first_loss rounds
    for layout in $layouts; do
        most=$(metric "$(dir_of rounds "$layout")" extra_rounds | sort -n | tail -n 1)
        case $layout in
        *,1) ;;
        *) [ "$most" -gt 0 ] || fail "$family: no extra rounds at $layout" ;;
        esac
    done
}

capacity() {
    local layout dropped
    echo "$family: capacity: dropped tokens are the same ones"
    every_layout capacity run.steps=3 router.capacity_factor=1
    same_first_loss capacity
    for layout in $layouts; do
        dropped=$(first dropped_fraction "$(dir_of capacity "$layout")")
        expect_same "$(first dropped_fraction "$(dir_of capacity 1,1)")" "$dropped" \
            "$family: dropped at $layout"
        case $dropped in 0 | 0.0) fail "$family: nothing dropped at $layout" ;; esac
    done
}

padded() {
    local layout precision
    echo "$family: padded dispatch: the same bits as exact in one round"
    for precision in $precisions; do
        every_layout "exact-$precision" run.steps=4 train.precision=$precision router.buffer_factor=4
        every_layout "padded-$precision" run.steps=4 train.precision=$precision router.dispatch=padded
        for layout in $layouts; do
            same_bits "$precision, padded at $layout" "$(dir_of "exact-$precision" "$layout")" \
                "$(dir_of "padded-$precision" "$layout")"
        done
    done
    every_layout padded-drops run.steps=3 router.capacity_factor=1 router.dispatch=padded
    for layout in $layouts; do
        same_bits "capacity, padded at $layout" "$(dir_of capacity "$layout")" "$(dir_of padded-drops "$layout")"
    done
}

# Experts in parts: what is exchanged is more, what is computed the same.
parts() {
    local parts dir one
    echo "$family: experts in parts beside whole ones"
    one=$(dir_of capacity 1,1)
    for parts in 2,1,2 4,2,2 $([ "$full" != 1 ] || echo 4,1,4); do
        dir=$work/$family-parts-${parts//,/-}
        expect_rc 0 train_on "${parts%%,*}" "$(cut -d, -f2 <<<"$parts")" "$dir" run.steps=3 router.capacity_factor=1 "parallel.etp=${parts##*,}"
        close_to 1e-6 "$(first loss "$one")" "$(first loss "$dir")" "$family: loss of step 1, etp ${parts##*,}"
        expect_same "$(first dropped_fraction "$one")" "$(first dropped_fraction "$dir")" "$family: dropped, etp ${parts##*,}"
        close_to 1e-5 "$(first grad_norm "$one")" "$(first grad_norm "$dir")" "$family: gradient norm, etp ${parts##*,}"
    done
    for precision in $precisions; do
        expect_rc 0 train_on 4 2 "$work/$family-parts-exact-$precision" run.steps=3 parallel.etp=2 train.precision=$precision router.buffer_factor=4
        expect_rc 0 train_on 4 2 "$work/$family-parts-padded-$precision" run.steps=3 parallel.etp=2 train.precision=$precision router.dispatch=padded
        same_bits "etp 2, $precision, padded" "$work/$family-parts-exact-$precision" "$work/$family-parts-padded-$precision"
    done
}

switches() {
    echo "$family: the rest of the model's switches, two layouts"
    every_layout switches run.steps=3 data.mask_documents=true router.z_loss_coef=1e-3 \
        train.recompute=experts optimizer.decay=all "$@"
    same_first_loss switches
}

# Buffers that are made again hold what they held.
recompute() {
    local mode layout field
    echo "$family: the same bits whatever is recomputed, two layouts"
    for mode in none $modes; do
        every_layout "recompute-$mode" run.steps=5 "train.recompute=$mode"
        for layout in $layouts; do
            for field in loss_hex grad_norm aux_loss $predicted; do
                expect_same "$(metric "$(dir_of recompute-none "$layout")" "$field")" \
                    "$(metric "$(dir_of "recompute-$mode" "$layout")" "$field")" \
                    "$family: $field, recompute none and $mode at $layout"
            done
        done
    done
}

# same_bits WHAT DIR DIR
same_bits() {
    expect_same "$(metric "$2" loss_hex)" "$(metric "$3" loss_hex)" "$family: losses, $1"
    expect_same "$(metric "$2" grad_norm)" "$(metric "$3" grad_norm)" "$family: norms, $1"
}

twice() {
    local precision layout threads name
    echo "$family: two runs, one thread and more: the same bits"
    for precision in $precisions; do
        for layout in $twice_layouts; do
            name=$(dir_of "twice-$precision" "$layout")
            for again in a b; do
                expect_rc 0 train_on "${layout%,*}" "${layout#*,}" "$name$again" \
                    "train.precision=$precision" "run.steps=$twice_steps"
            done
            same_bits "two $precision runs at $layout" "${name}a" "${name}b"
        done
        for threads in 1 2 3; do
            name=$(dir_of "threads-$precision" "$threads")
            expect_rc 0 train_on 1 1 "$name" "train.precision=$precision" \
                "run.steps=$twice_steps" run.threads=$threads run.pin=true
            same_bits "$precision, 1 and $threads threads" "$(dir_of "threads-$precision" 1)" "$name"
        done
    done
}

# check_layouts FAMILY SWITCHES...: all of it. Fewer layouts and steps unless SWITCHYARD_FULL is 1, of the
# DeepSeeks fewest: what dispatch, threads and layers of every family share is compared in bf16, of V2 experts in parts
# not at all and of what is recomputed whole blocks, where Mixtral and V3 have the rest.
check_layouts() {
    family=$1
    shift
    layouts="1,1 2,1 2,2 4,1 4,2 4,4" steps=20 twice_layouts="1,1 2,2 4,2" twice_steps=10 predicted=
    precisions="fp32 bf16" modes="norms experts block"
    if [ "$full" != 1 ]; then
        steps=8 twice_layouts="4,2" twice_steps=4
        layouts="1,1 2,2 4,2"
        [ "$family" = mixtral ] || precisions=bf16
        [ "$family" != deepseek_v2 ] || modes=block
        [ "$family" != mixtral ] || layouts="1,1 2,2 4,1 4,2 4,4"
    fi
    [ "$family" != deepseek_v3 ] || predicted=mtp_loss
    make_config "$family"
    curves
    rounds
    capacity
    case $family-$full in *-1 | deepseek_v3-*) parts ;; esac
    case $family-$full in
    *-1) layouts="2,2 4,2 4,4" ;;
    mixtral-*) layouts="2,2 4,2" ;;
    *) layouts="4,2" ;;
    esac
    padded
    layouts="1,1 4,2"
    switches "$@"
    recompute
    twice
    finish
}
