#!/usr/bin/env bash
# Layouts of ranks, deepseek_v2: see layouts.sh.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/layouts.sh"
check_layouts deepseek_v2 model.topk_method=greedy router.communication_loss_coef=0 model.seq_aux=false \
    model.n_shared_experts=0
