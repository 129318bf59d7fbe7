#!/usr/bin/env bash
# h5py reads checkpoints as docs/checkpoints.md says: every tensor of view and shards, f32, bf16 and FP8, also where
# the folder was moved or is behind a link. h5py is the machine's, or goes into a folder of the build; without a
# network it is skipped.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"
python=python3
if ! python3 -c 'import h5py' 2>/dev/null; then
    folder=$(dirname "$binary")/h5py-wheels python=$(dirname "$binary")/h5py-wheels/bin/python
    if [ ! -e "$folder/done" ]; then
        rm -rf "$folder"
        if ! { python3 -m venv "$folder" && "$python" -m pip install -q --disable-pip-version-check h5py==3.16.0; }; then
            echo "skipped: cannot install h5py"
            exit 77
        fi
        touch "$folder/done"
    fi
fi
columns=$source_dir/tests/golden/checkpoints/v2
make_data
make_config
expect_rc 0 train_on 2 2 "$work/run" train.precision=bf16 run.steps=2
expect_rc 0 python3 "$source_dir/tests/cli/hf_model.py" make "$work/hf" deepseek_v3 FP8
expect_rc 0 ranks 2 "$binary" import "$work/hf" "$work/fp8"
expect_rc 0 "$binary" ckpt export-h5 "$work/run" "$work/all.h5"
read_all() {
    expect_rc 0 "$python" "$source_dir/tests/cli/read_by_h5py.py" "$1" "$work/fp8" "$source_dir/docs/checkpoints.md" "$work/all.h5" "$columns"
}
read_all "$work/run/checkpoints/00000002"
cat "$out"
mv "$work/run/checkpoints/00000002" "$work/moved"
read_all "$work/moved"
ln -s moved "$work/link"
cd /
read_all "$work/link"
[ "$failures" -gt 0 ] || rm "$work/moved/shard-00001.h5"
expect_rc 1 "$python" "$source_dir/tests/cli/read_by_h5py.py" "$work/moved" "$work/fp8" "$source_dir/docs/checkpoints.md" "$work/all.h5" "$columns"
finish
