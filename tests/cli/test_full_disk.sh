#!/usr/bin/env bash
# A disk that is really full (a small tmpfs): the save says so, training goes on, checkpoints before stay whole, and
# the run resumes when there is space. Where mounting is refused it is skipped: test_errors.sh injects the error.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"
disk=$work/disk
mkdir "$disk"
if ! mount -t tmpfs -o size=16m tmpfs "$disk" 2>/dev/null; then
    echo "skipped: this user may not mount a tmpfs"
    exit 77
fi
trap 'umount -l "$disk"; cleanup' EXIT
disk_of() {
    umount "$disk"
    mount -t tmpfs -o "$1" tmpfs "$disk"
}
make_data
make_config
common="checkpoint.every_steps=2 checkpoint.keep_last=20"
train_in() {
    local dir=$1
    shift
    "$binary" train "$work/tiny.yaml" "run.dir=$dir" "$@"
}
expect_rc 0 train_in "$work/straight" $common

# full DIR MESSAGE: trains until three saves in a row have failed, then with space to the end.
full() {
    local dir=$1 whole
    expect_rc 74 train_in "$dir" $common
    expect_text "$2"
    expect_text "not saved"
    whole=$("$binary" ckpt ls "$dir" | grep -c MiB)
    [ "$whole" -ge 2 ] || fail "$whole checkpoints before the disk was full"
    expect_rc 0 "$binary" ckpt verify "$dir" --deep
    expect_same "$(grep -c ': whole: ' "$out")" "$whole" "whole checkpoints on the full disk"
    ! ls -A "$dir/checkpoints" | grep '^\.t' || fail "something half-made is left"
    mount -o remount,size=64m,nr_inodes=10000 "$disk"
    expect_rc 0 train_in "$dir" $common
    expect_text "resuming at step $((2 * whole))"
    expect_same "$(metric "$work/straight" loss_hex)" "$(metric "$dir" loss_hex)" "losses after a full disk"
    cmp "$work/straight/checkpoints/00000020/model.h5" "$dir/checkpoints/00000020/model.h5" || fail "model.h5 differs"
}

echo "no space: found before the save"
disk_of size=3m
mkdir "$work/space"
ln -s "$disk" "$work/space/checkpoints"
full "$work/space" "MiB are free: free space or set another run.dir"

echo "no room for another file: met in the middle of a save"
for inodes in 19 20; do
    disk_of size=16m,nr_inodes=$inodes
    rm -rf "$work/files"
    mkdir "$work/files"
    ln -s "$disk" "$work/files/checkpoints"
    full "$work/files" "No space left on device"
done

echo "space again while it trains"
disk_of size=3m
head -c 2800k /dev/zero >"$disk/filler"
mkdir "$work/on"
ln -s "$disk" "$work/on/checkpoints"
"$binary" train "$work/tiny.yaml" "run.dir=$work/on" run.threads=1 run.steps=1000000 checkpoint.every_steps=400 \
    >"$out" 2>"$err" </dev/null &
launcher=$!
wait_for 120 grep -q "training goes on" "$err" || { fail "no warning of a failed save"; show_last; }
rm "$disk/filler"
wait_for 120 test -f "$disk/LATEST" || fail "no checkpoint after there was space"
kill -USR1 "$launcher"
rc=0
wait "$launcher" || rc=$?
expect_same "$rc" 85 "exit code after a signal"
expect_rc 0 "$binary" ckpt verify "$work/on"

echo "no room for metrics.jsonl, then some"
disk_of size=1m
touch "$disk/metrics.jsonl"
head -c 2m /dev/zero >"$disk/filler" 2>/dev/null || true
mkdir "$work/late"
ln -s "$disk/metrics.jsonl" "$work/late/metrics.jsonl"
"$binary" train "$work/tiny.yaml" "run.dir=$work/late" run.threads=1 run.steps=1000000 log.every_steps=1 >"$out" 2>"$err" </dev/null &
launcher=$!
wait_for 120 grep -q "step 20/" "$work/late/log.txt" || { fail "training did not go on"; show_last; }
expect_text "metrics.jsonl: cannot write: No space left on device"
mount -o remount,size=64m "$disk"
wait_for 120 grep -q "metrics.jsonl: written again; 0 lines are lost" "$work/late/log.txt" || fail "no lines when there was space"
kill -USR1 "$launcher"
rc=0
wait "$launcher" || rc=$?
expect_same "$rc" 85 "exit code after a signal"
steps=$(metric "$work/late" step)
expect_same "$steps" "$(seq "$(tail -n 1 <<<"$steps")")" "steps of a disk that was full for a while"
[ "$(wc -l <<<"$steps")" -ge 20 ] || fail "only $(wc -l <<<"$steps") steps"
expect_same "$(metric "$work/straight" loss_hex)" "$(metric "$work/late" loss_hex | head -n 20)" "their losses"

echo "the whole run on the full disk"
disk_of size=3m
head -c 2600k /dev/zero >"$disk/filler"
expect_rc 74 train_in "$disk/run" $common run.steps=2000 checkpoint.every_steps=0
mount -o remount,size=64m "$disk"
expect_rc 0 train_in "$disk/run" $common
expect_same "$(metric "$work/straight" loss_hex)" "$(metric "$disk/run" loss_hex)" "losses of the run on the disk"
finish
