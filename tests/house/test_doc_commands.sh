#!/usr/bin/env bash
# Every command in README and docs/ runs, or is skipped by name with a reason; and all that calls the program, run or
# not, names commands, options and keys that it has.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/../cli/common.sh"
read_pages() { python3 "$source_dir/tests/house/doc_commands.py" "$@"; }

cd "$source_dir"
pages=(README.md SECURITY.md checkpoints/FORMAT.md docs/*.md tests/gpu/README.md)
expect_rc 0 read_pages check "$binary" "${pages[@]}"

# What a reader is supposed to have: some text, a config of their own, a folder of Hugging Face's. The model of
# quickstart is smaller here, so that its steps take less; it learns the same text.
bring() {
    mkdir -p bin build my_texts
    ln -s "$binary" bin/switchyard
    ln -s "$binary" build/switchyard
    ln -s "$source_dir/scripts" "$source_dir/tests" .
    cp -r "$source_dir/configs" .
    mkdir -p runs ../shared/quickstart-data ../shared/sweeps # made once: pages that come later find both done
    ln -s ../../shared/quickstart-data ../../shared/sweeps runs
    sed -i -E 's/(hidden_size|intermediate_size): [0-9]+/\1: 32/; s/num_hidden_layers: 4/num_hidden_layers: 1/; s/, steps: 3000/, steps: 500/' configs/quickstart.yaml
    cp "$work/train.txt" my_texts
    echo '{"text": "a document"}' >more.jsonl
    cp "$work/train.h5" .
    cp "$work/valid.h5" other.h5
    sed -e "s|dir: .*/run,|dir: runs/mine,|; s|^data:.*|data: {train: train.h5}|; s/micro_batch: 2/micro_batch: 1/" "$work/tiny.yaml" >my.yaml
    "$binary" train "$work/tiny.yaml" run.dir=imported run.steps=1 data.train="$work/train.h5" >/dev/null
    "$binary" export imported Mixtral-8x7B-v0.1 >/dev/null
}

make_data
make_config
export OMPI_MCA_rmaps_base_oversubscribe=1 # more ranks than cores, as on the reader's cluster
ran=0
for page in "${pages[@]}"; do
    script=$work/commands.sh
    read_pages script "$page" "$([ "$full" = 1 ] && echo full || echo quick)" >"$script"
    grep -q '^echo .commands at' "$script" || continue
    mkdir "$work/place"
    cd "$work/place"
    bring
    began=$SECONDS
    PATH=$work/place/bin:$PATH expect_rc 0 bash "$script"
    grep 'commands at' "$err" | tail -n 1 | sed "s/^/last: /; s/$/, $((SECONDS - began)) s/"
    ran=$((ran + 1))
    cd "$source_dir"
    rm -rf "$work/place"
done
[ "$ran" -ge 4 ] || fail "only $ran pages with commands to run"
finish
