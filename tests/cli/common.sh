# shellcheck shell=bash disable=SC2034
# Shared by tests/cli/test_*.sh, which ctest calls with: SOURCE_DIR BINARY.
# A failed expectation is printed and counted; `finish` at the end of a script turns the count into
# the exit code, so that one run shows all that is wrong.
export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1
export OMP_WAIT_POLICY=passive OMPI_MCA_mpi_yield_when_idle=1 # several ranks share a core here
export OMPI_MCA_ess_singleton_isolated=1 # one rank without mpirun: no daemon of Open MPI beside it
source_dir=$(realpath "$1")
binary=$(realpath "$2")
full=${SWITCHYARD_FULL:-0}
# Hundreds of runs save, each waiting for the disk: in memory, where it has room. (On disks: tests/unit, tests/parallel.)
roomy() {
    local least=$((8 << 20)) # KiB
    [ -w /dev/shm ] && ! grep -qE '^[^ ]+ /dev/shm [^ ]+ [^ ]*noexec' /proc/mounts &&
        [ "$(df -k --output=avail /dev/shm | tail -n 1)" -ge $least ] &&
        [ "$(sed -n 's/^MemAvailable: *\([0-9]*\) kB/\1/p' /proc/meminfo)" -ge $least ]
} 2>/dev/null
scratch=/tmp
! roomy || scratch=/dev/shm
work=$(mktemp -d "${TMPDIR:-$scratch}/switchyard-XXXXXX")
# Launches of other tests remove the common folder while this one makes its own there.
export OMPI_MCA_orte_tmpdir_base=$work
# Started hundreds of times: the interpreter itself, with nothing but its own library.
python_path=$(python3 -c 'import sys; print(sys.executable)')
python3() { "$python_path" -S "$@"; }
failures=0
out=$work/stdout err=$work/stderr last="(nothing yet)"

# Whatever of ours still runs has the folder's name on its command line.
cleanup() {
    local pids
    pids=$(pgrep -f "$work" || true)
    [ -z "$pids" ] || kill -KILL $pids 2>/dev/null || true
    rm -rf "$work"
}
trap cleanup EXIT

fail() {
    failures=$((failures + 1))
    printf 'FAILED: %s\n' "$*"
}

finish() {
    [ "$failures" -eq 0 ] || { echo "$failures expectations failed"; exit 1; }
    echo "all as expected"
}

# coded_messages FILE ROWS SLOTS WIDTH: messages of a run in FP8 with padded dispatch, each of ROWS rows, of tokens that have
# SLOTS experts on a rank: rows to experts and gradients of their outputs travel as codes with scales, results and
# gradients of inputs in bf16, and nothing else is as large. FILE: debug.profile's, or what the emulator of NCCL counted.
coded_messages() {
    python3 - "$@" <<'PY' || fail "messages in $1"
import collections, json, re, sys
rows, slots, width = (int(x) for x in sys.argv[2:])
packed = (width + (width + 127) // 128 * 4 + 15) // 16 * 16
text = open(sys.argv[1]).read()
seen = collections.Counter()
if text.startswith("{"):
    for e in json.loads(text)["traceEvents"]:
        if e.get("pid") == 0 and e.get("args", {}).get("group") == "ep" and e["name"] == "all_to_all":
            seen[e["args"]["bytes"]] += 1
for count, size in re.findall(r"emulator: sent (\d+) messages of (\d+) bytes", text):
    seen[int(size)] += int(count)
results = rows * slots
there, back = seen[rows * packed], seen[results * packed]  # a graph's replays are not counted: not as often both
want = {rows * packed: there, results * packed: back, results * 2 * width: there + back}
large = {size: count for size, count in seen.items() if size >= rows * packed}
assert slots > 1 and there > 0 and back > 0 and large == want, (dict(seen), want)
PY
}

show_last() {
    printf '  command: %s\n' "$last"
    sed 's/^/  stdout: /' "$out" | tail -n 5
    sed 's/^/  stderr: /' "$err" | tail -n 15
}

# expect_rc RC COMMAND...: runs it, keeps stdout and stderr for the expectations that follow.
expect_rc() {
    local want=$1 rc=0
    shift
    last="$*"
    "$@" >"$out" 2>"$err" </dev/null || rc=$?
    [ "$rc" -eq "$want" ] || { fail "exit code $rc, expected $want"; show_last; }
}

# expect_text FRAGMENT: stands in what the last command printed.
expect_text() {
    grep -qF -e "$1" "$out" "$err" || { fail "'$1' was not printed"; show_last; }
}

# expect_error RC FRAGMENT COMMAND...: that code, and one line on stderr with the fragment in it.
expect_error() {
    local want=$1 fragment=$2 lines before=$failures
    shift 2
    expect_rc "$want" "$@"
    lines=$(wc -l <"$err")
    [ "$lines" -eq 1 ] || { fail "$lines lines on stderr, expected 1"; }
    grep -qF -e "$fragment" "$err" || fail "'$fragment' is not in the error"
    [ "$before" -eq "$failures" ] || show_last
}

# expect_same A B WHAT: equal, and not both empty.
expect_same() {
    [ -n "$1" ] && [ "$1" = "$2" ] || fail "$3: '$1' and '$2'"
}

ranks() {
    local count=$1
    shift
    mpirun --allow-run-as-root --oversubscribe --bind-to none -q -np "$count" "$@"
}

# train_on RANKS EP RUN_DIR [key=value ...]
train_on() {
    local count=$1 ep=$2 dir=$3
    shift 3
    ranks "$count" "$binary" train "$work/tiny.yaml" "run.dir=$dir" "parallel.ep=$ep" "$@"
}

# Of every line of RUN_DIR/metrics.jsonl: the value of FIELD.
metric() {
    sed -n 's/.*"'"$2"'":"\{0,1\}\([^",}]*\).*/\1/p' "$1/metrics.jsonl"
}

# close_to TOLERANCE "a b ..." "a b ..." WHAT: element by element, relative.
close_to() {
    python3 - "$1" "$2" "$3" <<'PY' || fail "$4: $(tr '\n' ' ' <<<"$2") and $(tr '\n' ' ' <<<"$3")"
import sys
tolerance, a, b = float(sys.argv[1]), sys.argv[2].split(), sys.argv[3].split()
same = len(a) == len(b) and len(a) > 0
sys.exit(not (same and all(abs(float(x) - float(y)) <= tolerance * abs(float(x)) for x, y in zip(a, b))))
PY
}

# all_bits DIR: every figure of every step that is not a time, and each tensor's hash, which does not depend on who
# saved which part of it.
all_bits() {
    python3 - "$1" <<'PY'
import glob, json, sys
keys = ("step", "loss_hex", "grad_norm", "aux_loss", "mtp_loss", "expert_load", "dropped_fraction", "lr")
for line in open(sys.argv[1] + "/metrics.jsonl"):
    step = json.loads(line)
    print({k: step[k] for k in keys})
newest = sorted(glob.glob(sys.argv[1] + "/checkpoints/*/manifest.json"))[-1]
for tensor in sorted(json.load(open(newest))["tensors"], key=lambda t: t["name"]):
    print(tensor["name"], tensor["hash"])
PY
}

# wait_for SECONDS COMMAND...: until it succeeds.
wait_for() {
    local tries=$((100 * $1))
    shift
    while ! "$@" >/dev/null 2>&1; do
        tries=$((tries - 1))
        [ "$tries" -gt 0 ] || return 1
        sleep 0.01
    done
}

# has_steps RUN_DIR N: metrics.jsonl holds at least N steps.
has_steps() {
    [ -f "$1/metrics.jsonl" ] && [ "$(wc -l <"$1/metrics.jsonl")" -ge "$2" ]
}

# Words in an order that a generator without state outside fixes: there is something to learn, and
# nothing to download.
make_text() {
    python3 - "$1" "$2" <<'PY'
import sys
words = "the int of return void struct char if else for while define include static const".split()
state, parts = 1, []
for _ in range(int(sys.argv[2])):
    state = (state * 6364136223846793005 + 1442695040888963407) % 2**64
    parts.append(words[(state >> 33) % len(words)] + ("\n" if (state >> 40) % 7 == 0 else " "))
open(sys.argv[1], "w").write("".join(parts))
PY
}

make_data() {
    make_text "$work/train.txt" 6000
    make_text "$work/valid.txt" 300
    "$binary" prepare --tokenizer bytes --output "$work/train.h5" "$work/train.txt" >/dev/null
    "$binary" prepare --tokenizer bytes --output "$work/valid.h5" "$work/valid.txt" >/dev/null
}

# The model of a FAMILY as lines of YAML.
model_of() {
    case $1 in
    mixtral)
        cat <<YAML
  intermediate_size: 48
  num_hidden_layers: 2
  num_key_value_heads: 2
  num_local_experts: 4
  num_experts_per_tok: 2
  rope_theta: 10000
YAML
        ;;
    deepseek_v2 | deepseek_v3)
        cat <<YAML
  intermediate_size: 64
  moe_intermediate_size: 24
  num_hidden_layers: 3
  first_k_dense_replace: 1
  n_routed_experts: 8
  n_shared_experts: 1
  num_experts_per_tok: 3
  n_group: 4
  topk_group: 2
  kv_lora_rank: 16
  qk_nope_head_dim: 8
  qk_rope_head_dim: 4
  v_head_dim: 8
YAML
        ;;
    esac
}

# What else a FAMILY trains with.
extras_of() {
    case $1 in
    deepseek_v2)
        cat <<YAML
  aux_loss_alpha: 0.003
  rope_scaling: {type: yarn, factor: 40, mscale: 0.707, mscale_all_dim: 0.707}
router:     {device_loss_coef: 0.05, communication_loss_coef: 0.02}
YAML
        ;;
    deepseek_v3)
        cat <<YAML
  q_lora_rank: 24
  aux_loss_alpha: 0.0001
  num_nextn_predict_layers: 1
router:     {bias_update_speed: 0.001}
YAML
        ;;
    esac
}

# make_config [FAMILY]: $work/tiny.yaml of a Mixtral, or of that family.
make_config() {
    local family=${1:-mixtral}
    {
        cat <<YAML
run:        {dir: $work/run, seed: 7, steps: 20, threads: 1, pin: false}
model:
  family: $family
  vocab_size: 257
  hidden_size: 32
  num_attention_heads: 4
YAML
        model_of "$family"
        extras_of "$family"
        cat <<YAML
train:      {sequence_length: 32, micro_batch: 2, global_batch: 8, precision: fp32}
optimizer:  {lr: 3e-3}
schedule:   {kind: constant, warmup_steps: 0}
data:       {train: $work/train.h5, valid: $work/valid.h5}
checkpoint: {every_steps: 0}
log:        {every_steps: 0}
YAML
    } >"$work/tiny.yaml"
}
