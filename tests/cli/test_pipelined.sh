#!/usr/bin/env bash
# Pipelines: a run goes on over pp 1 and 2 as on one rank, and eval and generate read what it saved; with SWITCHYARD_FULL=1 over pp 4,
# interleaved and uneven beside ep, evaluated as it goes; zero_bubble and dualpipe_v among them. tests/parallel/test_pipe.c compares more layouts.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"
make_data

# piped RANKS RUN_DIR [key=value ...]
piped() {
    local count=$1 dir=$2
    shift 2
    expect_rc 0 ranks "$count" "$binary" train "$work/tiny.yaml" "run.dir=$dir" "$@"
}

# as_one RUN_DIR WHAT: step 1 within 1e-6, all others within 1e-5 of $work/$family-one.
as_one() {
    local field one=$work/$family-one
    close_to 1e-6 "$(metric "$one" loss | head -n 1)" "$(metric "$1" loss | head -n 1)" "$family: loss of step 1, $2"
    for field in loss aux_loss grad_norm $predicted $evaluated; do
        close_to 1e-5 "$(metric "$one" $field | grep -v null)" "$(metric "$1" $field | grep -v null)" "$family: $field, $2"
    done
}

# across WAY: the run goes on with another pp, of another schedule where it says so (2:zero_bubble), after every third step.
across() {
    local step=0 part pp dir=$work/$family-${1//[ :]/-}
    for part in $1; do
        step=$((step + 3)) pp=${part%:*}
        local own=(parallel.pp="$pp")
        [ "$part" = "$pp" ] || own+=(parallel.schedule="${part#*:}")
        piped "$pp" "$dir" "${own[@]}" "run.steps=$step" checkpoint.every_steps=3
    done
    as_one "$dir" "over pp $1"
}

check_family() {
    family=$1 predicted= evaluated=
    [ "$family" != deepseek_v3 ] || predicted=mtp_loss
    make_config "$family"
    sed -i 's/num_hidden_layers: .*/num_hidden_layers: 4/' "$work/tiny.yaml"
    if [ "$full" != 1 ]; then
        piped 1 "$work/$family-one" run.steps=6
        across "1 2"
        across "2:dualpipe_v 2:zero_bubble"
        expect_rc 0 "$binary" eval "$work/$family-1-2"
        expect_rc 0 "$binary" generate "$work/$family-1-2" --tokens 1,2,3 --count 2
        expect_error 64 "parallel.pp 2: divides a model in training only" "$binary" eval "$work/$family-1-2" parallel.pp=2
        return
    fi
    sed -i 's/^log:/eval: {every_steps: 5, batches: 3}\nlog:/' "$work/tiny.yaml"
    evaluated=valid_loss
    piped 1 "$work/$family-one" run.steps=9 eval.every_steps=0
    evaluated=
    across "1 2 4"
    across "4 1 2"
    across "2:dualpipe_v 1 4:zero_bubble"
    evaluated=valid_loss
    rm -r "$work/$family-one"
    piped 1 "$work/$family-one" run.steps=10
    local name layout rest=3
    [ "$family" != deepseek_v3 ] || rest=4
    while read -r name layout; do
        # shellcheck disable=SC2086
        piped 4 "$work/$family-$name" run.steps=10 $layout
        as_one "$work/$family-$name" "$layout"
    done <<LAYOUTS
uneven parallel.pp=2 parallel.stages=[1,$rest] parallel.ep=2
thin parallel.pp=2 parallel.virtual_stages=2
late parallel.pp=2 parallel.schedule=zero_bubble parallel.stages=[1,$rest] parallel.ep=2
LAYOUTS
}

# Batches from fewer micro-batches than stages to twice as many and more; a router's bias that flips on one stage; gradients
# that begin on another one.
check_others() {
    local base=$work/$family-ramp
    piped 1 "$base-1" run.steps=6 train.global_batch=24 train.batch_ramp.start=2 train.batch_ramp.increment=2 train.batch_ramp.tokens=512
    piped 2 "$base-2" run.steps=6 train.global_batch=24 train.batch_ramp.start=2 train.batch_ramp.increment=2 train.batch_ramp.tokens=512 parallel.pp=2
    piped 2 "$base-3" run.steps=6 train.global_batch=24 train.batch_ramp.start=2 train.batch_ramp.increment=2 train.batch_ramp.tokens=512 parallel.pp=2 parallel.schedule=zero_bubble
    [ "$(metric "$base-1" tokens | sort -u | wc -l)" -ge 3 ] || fail "the batch did not grow"
    close_to 1e-5 "$(metric "$base-1" loss)" "$(metric "$base-2" loss)" "losses of a growing batch"
    close_to 1e-5 "$(metric "$base-1" loss)" "$(metric "$base-3" loss)" "losses of a growing batch, zero_bubble"
    expect_error 64 "pipeline dualpipe_v needs at least 2 x 2 micro-batches, not 1" ranks 2 "$binary" train "$work/tiny.yaml" "run.dir=$work/few" parallel.pp=2 parallel.schedule=dualpipe_v train.batch_ramp.start=2 train.batch_ramp.increment=2 train.batch_ramp.tokens=512
    expect_rc 77 ranks 2 "$binary" train "$work/tiny.yaml" "run.dir=$work/bias" parallel.pp=2 run.steps=6 guard.replicas_every_steps=1 debug.fault=bias:3:0
    expect_text "step 3: copies of e_score_correction_bias"
    expect_error 64 "name a rank of it, from 1 on" ranks 2 "$binary" train "$work/tiny.yaml" "run.dir=$work/wrong" parallel.pp=2 run.verify=true debug.fault=gradient:1:0
    expect_rc 1 ranks 2 "$binary" train "$work/tiny.yaml" "run.dir=$work/wrong" parallel.pp=2 run.verify=true debug.fault=gradient:1:1
}

check_family deepseek_v3
[ "$full" != 1 ] || check_others
[ "$full" != 1 ] || check_family mixtral
finish
