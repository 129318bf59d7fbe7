#!/usr/bin/env bash
# Layouts of ranks, deepseek_v3: see layouts.sh.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/layouts.sh"
check_layouts deepseek_v3 model.rope_interleave=false model.num_nextn_predict_layers=2
