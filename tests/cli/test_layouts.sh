#!/usr/bin/env bash
# Layouts of ranks, mixtral: see layouts.sh.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/layouts.sh"
check_layouts mixtral model.sliding_window=9 model.router_jitter_noise=0.1
