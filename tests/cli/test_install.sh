#!/usr/bin/env bash
# What is installed runs and is whole; batch files and completion are sound.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"
expect_rc 0 cmake --install "$(dirname "$binary")" --prefix "$work/prefix"
for file in bin/switchyard share/switchyard/configs/quickstart.yaml share/switchyard/configs/slurm/one-node.sbatch \
    share/doc/switchyard/README.md share/doc/switchyard/docs/first-run.md share/bash-completion/completions/switchyard; do
    [ -e "$work/prefix/$file" ] || fail "$file was not installed"
done
expect_rc 0 "$work/prefix/bin/switchyard" config "$work/prefix/share/switchyard/configs/quickstart.yaml"

for script in "$source_dir"/configs/slurm/*.sbatch "$source_dir/scripts/completion.bash"; do
    bash -n "$script" || fail "$script is not bash"
done
if command -v shellcheck >/dev/null; then
    shellcheck "$source_dir"/configs/slurm/*.sbatch "$source_dir/scripts/completion.bash" || fail "shellcheck"
else
    echo "skipped: shellcheck is not installed"
fi

# The batch file as Slurm would run it: SIGUSR1 to the shell, 85 comes out, the job is queued again.
make_data
make_config
mkdir "$work/fake"
printf '#!/bin/bash\necho "$@" >>"%s/requeued"\n' "$work" >"$work/fake/scontrol"
chmod +x "$work/fake/scontrol"
PATH=$work/fake:$PATH SWITCHYARD=$binary SLURM_NTASKS=2 SLURM_JOB_ID=7 \
    bash "$source_dir/configs/slurm/one-node.sbatch" "$work/tiny.yaml" "run.dir=$work/batch" run.steps=1000000 >"$out" 2>"$err" &
batch=$!
wait_for 30 has_steps "$work/batch" 3 || fail "no steps within 30 s"
kill -USR1 "$batch"
rc=0
wait "$batch" || rc=$?
expect_same "$rc" 85 "exit code of the batch file"
expect_same "$(cat "$work/requeued")" "requeue 7" "what scontrol was asked"

# doctor names what a run may stumble over, with a remedy where there is one.
(cd "$work" && expect_rc 0 ranks 2 "$binary" doctor --json && python3 - "$out" "$(nproc)" <<'PY') || fail "doctor --json is not what it should be"
import json, sys
report = json.load(open(sys.argv[1]))
findings = {f["name"]: f for f in report["findings"]}
assert {"/dev/shm", "open files", "memory limit", "disk speed", "clocks", "threads here"} <= set(findings), findings
assert findings["disk speed"]["disk_write_gb_per_s"] > 0 and findings["clocks"]["clock_skew_s"] < 10, findings
assert report["ranks"] == 2 and bool(findings["threads here"]["remedy"]) == (int(sys.argv[2]) < 2), findings
PY
(cd "$work" && ulimit -n 40 && "$binary" doctor >"$out") || fail "doctor under a limit"
expect_text "few for 1 ranks: ulimit -n 4096"

# complete WORDS...: what the last of them becomes.
complete_words() {
    bash -c 'source "$1"; compopt() { :; }; shift; COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); _switchyard; echo "${COMPREPLY[*]}"' _ \
        "$source_dir/scripts/completion.bash" "$@"
}
expect_same "$(complete_words "$binary" trai)" train "completion of a command"
expect_same "$(complete_words "$binary" train optimizer.beta1)" optimizer.beta1= "completion of a key"
expect_same "$(complete_words "$binary" report --ou)" --output "completion of an option"
expect_same "$(complete_words "$binary" ckpt ver)" verify "completion of an action"
expect_same "$(complete_words "$binary" ckpt rm --dam)" --damaged "completion of an action's option"
expect_same "$(complete_words "$binary" tokenizer "")" "encode decode train --help" "actions of the tokenizer"
# All of them: commands as --help has them, keys of every section as docs/config.md has them.
commands=$("$binary" --help | sed -n 's/^  \([a-z]*\) .*/\1/p' | tr '\n' ' ')
expect_same "$(complete_words "$binary" "")" "$commands--help --help-keys --version" "commands"
for section in $(sed -n 's/^| `\([a-z0-9]*\)\..*/\1/p' "$source_dir/docs/config.md" | sort -u); do
    keys=$(sed -n "s/^| \`\($section\.[^\`]*\)\`.*/\1=/p" "$source_dir/docs/config.md" | sort | tr '\n' ' ')
    expect_same "$(complete_words "$binary" train "$section." | tr ' ' '\n' | sort | tr '\n' ' ')" "$keys" "keys of $section"
done
finish
