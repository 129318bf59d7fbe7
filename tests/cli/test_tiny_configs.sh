#!/usr/bin/env bash
# Every configs/tiny-*.yaml learns the text of quickstart: 60 steps take at least 1.5 nats off the loss.
# Full counts only: the text is 32 MB of headers.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"

if [ "$full" -ne 1 ]; then
    echo "skipped: needs SWITCHYARD_FULL=1 (./check --full)"
    exit 77
fi
cd "$work"
expect_rc 0 "$source_dir/scripts/quickstart-data.sh" "$binary" runs/quickstart-data
for config in "$source_dir"/configs/tiny-*.yaml; do
    name=$(basename "$config" .yaml)
    count=$(sed -nE 's/^# +mpirun -np ([0-9]+) .*/\1/p' "$config") layout=parallel.ep=2
    [ "$count" = 2 ] || layout= # its own
    # shellcheck disable=SC2086
    expect_rc 0 ranks "$count" "$binary" train "$config" run.steps=60 log.every_steps=0 $layout
    losses=$(metric "runs/$name" loss)
    python3 - "$name" $losses <<'PY' || fail "$name did not learn"
import sys
name, losses = sys.argv[1], [float(x) for x in sys.argv[2:]]
print(f"{name}: loss {losses[0]:.4f} to {losses[-1]:.4f} in {len(losses)} steps")
sys.exit(not (len(losses) == 60 and losses[-1] <= losses[0] - 1.5))
PY
done
expect_rc 0 "$binary" generate runs/tiny-coder-fim --fim-prefix '#define ' --fim-suffix '#endif' --count 40
grep -q '^#define ' "$out" && grep -q '#endif$' "$out" || fail "no middle was filled in"
finish
