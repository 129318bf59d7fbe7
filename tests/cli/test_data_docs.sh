#!/usr/bin/env bash
# docs/data.md: its examples, all in one empty folder, in order, do what they say.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"
mkdir "$work/bin" "$work/examples"
ln -s "$binary" "$work/bin/switchyard"
export PATH=$work/bin:$PATH
# A block with a language (```yaml, ```json) is shown, not run.
awk '/^```/ { if (inside) inside = 0; else { inside = 1; run = $0 == "```" } next } inside && run' \
    "$source_dir/docs/data.md" >"$work/examples.sh"
[ "$(grep -c . "$work/examples.sh")" -ge 5 ] || fail "docs/data.md has no examples"
cd "$work/examples"
expect_rc 0 bash -euo pipefail "$work/examples.sh"
finish
