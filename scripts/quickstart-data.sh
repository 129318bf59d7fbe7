#!/usr/bin/env bash
# quickstart-data.sh BINARY FOLDER: FOLDER/train.h5 and valid.h5, bytes of the C headers under /usr/include.
set -euo pipefail
switchyard=$1 data=$2

# Headers in sorted order up to 32 MB; every 128th file is held out for validation.
if [ ! -s "$data/train.h5" ] || [ ! -s "$data/valid.h5" ]; then
    mkdir -p "$data"
    find /usr/include -name '*.h' -type f -size -256k | LC_ALL=C sort | xargs -d '\n' stat -c '%s %n' |
        awk -v train="$data/train.txt" -v valid="$data/valid.txt" '
            { bytes += $1; if (bytes > 32e6) next
              sub(/^[0-9]+ /, ""); print > (NR % 128 == 0 ? valid : train) }'
    for part in train valid; do
        echo "preparing the $part text from $(wc -l <"$data/$part.txt") headers under /usr/include"
        xargs -x -s 1500000 -n 100000 -d '\n' "$switchyard" prepare --tokenizer bytes \
            --output "$data/$part.h5" <"$data/$part.txt"
    done
fi
