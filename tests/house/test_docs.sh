#!/usr/bin/env bash
# What the documents say is what the program does.
set -euo pipefail
cd "$1"
switchyard=$2
fail() {
    echo "$1" >&2
    exit 1
}

diff <("$switchyard" config --markdown) docs/config.md ||
    fail "docs/config.md is stale: switchyard config --markdown > docs/config.md"

# Every command of the help has help of its own, and the README names it.
commands=$("$switchyard" --help | sed -n 's/^  \([a-z]*\) .*/\1/p')
[ -n "$commands" ] || fail "--help lists no commands"
for command in $commands; do
    "$switchyard" "$command" --help | grep -q "^usage: switchyard $command" || fail "$command --help"
    grep -q "switchyard $command\|\`$command" README.md || fail "README.md does not name '$command'"
done

# Help fits a terminal.
for command in "" $commands; do
    # shellcheck disable=SC2086
    "$switchyard" $command --help | awk 'length > 120 { print; bad = 1 } END { exit bad }' ||
        fail "$command --help is too wide"
done

# Files the README points at are there.
grep -oE '\]\([a-zA-Z0-9_./-]+\)' README.md | tr -d '])(' | while read -r file; do
    [ -e "$file" ] || fail "README.md points at $file, which is not there"
done
for config in configs/*.yaml; do
    "$switchyard" config "$config" >/dev/null || fail "$config does not load"
done
