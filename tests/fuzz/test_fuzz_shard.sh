#!/usr/bin/env bash
# libFuzzer on shards as `ckpt verify --deep` reads them: 2 s, 30 s with SWITCHYARD_FULL=1, or
# SWITCHYARD_FUZZ_SECONDS.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/fuzz.sh"
seconds_of 2 30
build_fuzzer tests/fuzz/shard.c checkpoints/{blocks,boxes,checkpoint_load,h5,manifest,manifest_text,shard,tensor_hash,verify,wanted}.c \
    kernels/base/{h5_image,h5_reader,hash,io,io_fault,io_queue,status,tensor}.c $(pkg-config --cflags --libs jansson libxxhash hdf5-serial)
printf '\0\0\211' >"$work/corpus/whole"
printf '\10\0\2' >"$work/corpus/superblock"
# HDF5 keeps memory between files: leaks are looked for at the end.
run_fuzzer 64 20 -detect_leaks=0
finish
