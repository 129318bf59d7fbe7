# shellcheck shell=bash disable=SC2154
# Shared by tests that interrupt a run again and again until it is done (after common.sh; $steps is set): what is run, and
# that it ends as a run that nobody interrupted.
make_data
make_config
sed -i "s/micro_batch: 2, global_batch: 8/micro_batch: 1, global_batch: 4/" "$work/tiny.yaml"
layouts=(2,2 4,2)
more=()

# settings LAYOUT DIR: sets $command, $more added. Four ranks train in bf16, two in fp32.
settings() {
    local n=${1%,*} precision=fp32
    [ "$n" = 2 ] || precision=bf16
    command=(mpirun --allow-run-as-root --oversubscribe --bind-to none -q -np "$n" "$binary" train "$work/tiny.yaml"
        "run.dir=$2" "parallel.ep=${1#*,}" "train.precision=$precision" "run.steps=$steps" model.router_jitter_noise=0.05
        "${more[@]}")
}

whole_of() { echo "$work/whole-${1/,/-}"; }

# seconds MILLISECONDS
seconds() { printf '%d.%03d' $(($1 / 1000)) $(($1 % 1000)); }

# compare LAYOUT DIR: with the run of that layout that nobody interrupted.
compare() {
    local whole file before=$failures
    whole=$(whole_of "$1")
    expect_same "$(metric "$whole" loss_hex)" "$(metric "$2" loss_hex)" "losses at $1"
    expect_same "$(metric "$2" step | tr '\n' ' ')" "$(seq $steps | tr '\n' ' ')" "steps at $1"
    for file in "$whole"/checkpoints/000000$steps/*.h5; do
        cmp -s "$file" "$2/checkpoints/000000$steps/${file##*/}" || fail "$1: ${file##*/} differs"
    done
    [ "$before" -eq "$failures" ]
}
