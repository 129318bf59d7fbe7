#!/usr/bin/env bash
# bundle_test.sh BUNDLE: moved elsewhere and with an empty environment, the bundle runs: its own libraries and Open MPI's
# plugins but glibc's, the version, five steps of training by two ranks.
set -euo pipefail
bundle=$1
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
fail() { echo "$1" >&2; exit 1; }
cp -r "$bundle" "$work/moved here"
ln -s "moved here" "$work/moved"
bin=$work/moved/bin
clean() { env -i HOME="$work" TMPDIR="$work" PATH=/usr/bin:/bin OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1 "$@"; }

grep -q '^switchyard [0-9]' <<<"$(clean "$bin/switchyard" --version)" || fail "switchyard --version"
clean "$bin/switchyard" prepare --tokenizer bytes --output "$work/text.h5" "$work/moved/docs/LICENSE" >/dev/null
clean LD_DEBUG=libs LD_DEBUG_OUTPUT="$work/loaded" "$bin/mpirun" -q --oversubscribe --bind-to none -np 2 \
    "$bin/switchyard" train "$work/moved/configs/tiny-mixtral-8x7b.yaml" "run.dir=$work/run" "data.train=$work/text.h5" \
    data.valid=null run.steps=5 schedule.warmup_steps=1 parallel.ep=2 train.sequence_length=32 model.num_hidden_layers=2 \
    >"$work/log" 2>&1 || { tail -20 "$work/log"; fail "training by two ranks"; }
[ "$(wc -l <"$work/run/metrics.jsonl")" -eq 5 ] || fail "$(wc -l <"$work/run/metrics.jsonl") steps, want 5"

# What was initialised, in every process: the bundle's, or glibc's.
others=$(sed -n 's/.*calling init: //p' "$work"/loaded.* | grep -v "^$work/" |
    grep -vE '/(ld-linux[^/]*|libc|libm|libdl|librt|libpthread|libresolv|libutil|libnss_[a-z]*)\.so' |
    grep -vE '/lib(tinfo|selinux|pcre2?[-0-9]*)\.so' | sort -u || true) # of the shell
[ -z "$others" ] || fail "libraries of this machine: $others"
