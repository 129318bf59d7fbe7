#!/usr/bin/env bash
# Several hosts, as network namespaces of this one: each with an address and a host name of its own, joined by a
# cable. Two with two ranks each train as four on one do; one that dies ends the run, which resumes on the other.
# Skipped where the kernel or the user may not.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"

skip() {
    echo "skipped: hosts as network namespaces: $*"
    exit 77
}
command -v ip >/dev/null || skip "no ip command (iproute2)"
[ "$(id -u)" -eq 0 ] || skip "not root"

hosts=(sy$$a sy$$b)
addresses=(10.77.0.1 10.77.0.2)
# Everything inside the hosts, then they themselves.
remove_hosts() {
    local host
    for host in "${hosts[@]}"; do
        ip netns pids "$host" 2>/dev/null | xargs -r kill -KILL 2>/dev/null || true
        ip netns del "$host" 2>/dev/null || true
    done
    cleanup
}
trap remove_hosts EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP
for host in "${hosts[@]}"; do
    ip netns add "$host" 2>"$err" || skip "ip netns add: $(cat "$err")"
done
ip link add "v$$a" netns "${hosts[0]}" type veth peer name "v$$b" netns "${hosts[1]}" 2>"$err" ||
    skip "ip link add type veth: $(cat "$err")"
for i in 0 1; do
    side=v$$$([ $i = 0 ] && echo a || echo b)
    {
        ip -n "${hosts[i]}" addr add "${addresses[i]}/24" dev "$side" &&
            ip -n "${hosts[i]}" link set lo up &&
            ip -n "${hosts[i]}" link set "$side" up
    } 2>"$err" || skip "ip addr, ip link: $(cat "$err")"
    ip netns exec "${hosts[i]}" unshare -u true 2>"$err" || skip "ip netns exec unshare -u: $(cat "$err")"
done

# What ssh is elsewhere: enter ADDRESS COMMAND..., in that host.
cat >"$work/enter" <<EOF
#!/bin/bash
case \$1 in ${addresses[0]}) host=${hosts[0]} ;; *) host=${hosts[1]} ;; esac
shift
export HOST_NAME=\$host HOST_COMMAND="\$*"
exec ip netns exec \$host unshare -u bash -c 'hostname \$HOST_NAME; eval "exec \$HOST_COMMAND"'
EOF
chmod +x "$work/enter"
printf '%s slots=2\n' "${addresses[@]}" >"$work/hostfile"
make_data
make_config deepseek_v3

# on_both COMMAND...: four ranks, two on each host, started from the first.
on_both() {
    "$work/enter" "${addresses[0]}" mpirun --hostfile "$work/hostfile" --map-by slot --bind-to none -q -np 4 \
        --mca plm_rsh_agent "$work/enter" --mca oob_tcp_if_include 10.77.0.0/24 \
        --mca btl_tcp_if_include 10.77.0.0/24 "$@"
}

echo "they are two hosts"
expect_rc 0 on_both bash -c "'hostname; cat /proc/net/dev'"
expect_same "$(grep -c "^${hosts[0]}$" "$out")$(grep -c "^${hosts[1]}$" "$out")" 22 "ranks of each host"
expect_same "$(grep -c "v$$a:" "$out")$(grep -c "v$$b:" "$out")" 22 "network of each host"

# sent HOST SIDE: bytes that left it.
sent() {
    ip netns exec "$1" cat "/sys/class/net/$2/statistics/tx_bytes" 2>/dev/null || echo 0
}

echo "two hosts of two ranks, one of four: the same losses"
settings=(run.steps=10 parallel.ep=4 checkpoint.every_steps=0)
expect_rc 0 train_on 4 4 "$work/one" "${settings[@]}"
before=$(sent "${hosts[1]}" "v$$b")
expect_rc 0 on_both "$binary" train "$work/tiny.yaml" "run.dir=$work/two" "${settings[@]}"
expect_same "$(metric "$work/one" loss_hex)" "$(metric "$work/two" loss_hex)" "losses on one host and on two"
expect_same "$(metric "$work/one" grad_norm)" "$(metric "$work/two" grad_norm)" "gradient norms"
expect_same "$(metric "$work/two" step | wc -l)" 10 "steps"
[ "$(sent "${hosts[1]}" "v$$b")" -gt $((before + 1000000)) ] || fail "the ranks did not talk over the cable"

echo "tokens cross the cable once for each host: the same losses, fewer bytes than from rank to rank"
many=(run.steps=3 checkpoint.every_steps=0 parallel.ep=4 train.sequence_length=256 train.micro_batch=8 train.global_batch=32
    model.num_experts_per_tok=4 model.n_group=1 model.topk_group=1 model.hidden_size=128)
bytes=()
for way in flat hierarchical; do
    before=$(sent "${hosts[1]}" "v$$b")
    expect_rc 0 on_both "$binary" train "$work/tiny.yaml" "run.dir=$work/$way" "${many[@]}" parallel.node_dispatch=$way
    [ $way = flat ] || expect_text "ep spans 2 nodes of 2 ranks"
    bytes[${#bytes[@]}]=$(($(sent "${hosts[1]}" "v$$b") - before))
done
expect_same "$(metric "$work/flat" loss_hex)" "$(metric "$work/hierarchical" loss_hex)" "losses of both ways"
expect_same "$(metric "$work/flat" grad_norm)" "$(metric "$work/hierarchical" grad_norm)" "gradient norms of both ways"
echo "bytes from the second host: ${bytes[*]}"
[ $((bytes[1] * 100)) -lt $((bytes[0] * 84)) ] || fail "bytes from the second host: ${bytes[*]}"

echo "a host dies: the run ends, and goes on where it had saved, on the other"
settings=(run.steps=300 parallel.ep=4 checkpoint.every_steps=4 checkpoint.async=false)
on_both "$binary" train "$work/tiny.yaml" "run.dir=$work/dies" "${settings[@]}" >"$out" 2>"$err" </dev/null &
job=$!
wait_for 60 has_steps "$work/dies" 10 || { fail "no ten steps within 60 s"; show_last; }
ip netns pids "${hosts[1]}" | xargs -r kill -KILL
rc=0
wait "$job" || rc=$?
[ "$rc" -ne 0 ] || fail "mpirun ended with 0"

wait_for 20 bash -c "[ -z \"\$(ip netns pids ${hosts[0]})\" ]" || fail "ranks of the other host survived"
died=$(metric "$work/dies" step | tail -n 1)
[ "$died" -lt 300 ] || fail "the run was over before the host died"
expect_rc 0 train_on 4 4 "$work/dies" "${settings[@]}" run.steps=$((died + 4))
expect_text "resuming at step"
expect_rc 0 train_on 4 4 "$work/whole" "${settings[@]}" run.steps=$((died + 4)) checkpoint.every_steps=0
expect_same "$(metric "$work/whole" loss_hex)" "$(metric "$work/dies" loss_hex)" "losses with and without the death"
finish
