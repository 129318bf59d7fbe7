#!/usr/bin/env bash
# Under a real Slurm of one node, started here (Debian's slurm-wlm, as root): a job that is told that its time is
# over saves, is queued again and goes on; a sweep as a job array. Bits as of a run that nobody interrupted.
set -euo pipefail
skip() {
    echo "skipped: $*"
    exit 77
}
[ "$(id -u)" = 0 ] || skip "not root"
for program in slurmctld slurmd sbatch scontrol sinfo squeue scancel; do
    command -v $program >/dev/null || skip "no $program (apt-get install slurm-wlm)"
done
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"
make_data
make_config
cd "$work"
# Both held at once, so that they are two.
read -r ctld_port slurmd_port < <(python3 -c 'import socket
held = [socket.create_server(("127.0.0.1", 0)) for _ in range(2)]
print(*(s.getsockname()[1] for s in held))')
mkdir state spool
cat >slurm.conf <<END
ClusterName=test
SlurmctldHost=$(hostname -s)(127.0.0.1)
SlurmctldPort=$ctld_port
SlurmdPort=$slurmd_port
AuthType=auth/none
CredType=cred/none
SlurmUser=root
SlurmdUser=root
StateSaveLocation=$work/state
SlurmdSpoolDir=$work/spool
SlurmctldPidFile=$work/slurmctld.pid
SlurmdPidFile=$work/slurmd.pid
SlurmctldLogFile=$work/slurmctld.log
SlurmdLogFile=$work/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
ReturnToService=2
SlurmdParameters=config_overrides
JobRequeue=1
KillWait=30
SchedulerParameters=sched_interval=1
SchedulerType=sched/builtin
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
NodeName=$(hostname -s) NodeAddr=127.0.0.1 CPUs=4 State=UNKNOWN
PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE State=UP
END
export SLURM_CONF=$work/slurm.conf SWITCHYARD=$binary
slurmctld -D -f "$SLURM_CONF" >ctld.out 2>&1 &
ctld=$!
slurmd -D -f "$SLURM_CONF" >d.out 2>&1 &
slurmd=$!

# no_slurm WHY: what the daemons said last, and no test. No log is there of one that never began.
no_slurm() {
    tail -n 5 ctld.out d.out slurmctld.log slurmd.log probe.log 2>/dev/null || true
    skip "$*"
}
# By the clock: without a daemon each of these commands takes its own time to give up.
timeout 30 sh -c 'until sinfo -h -o %t 2>/dev/null | grep -q idle; do sleep 0.1; done' || no_slurm "Slurm did not start"

# state_of JOB: RUNNING, PENDING, ..., as Slurm shows it.
state_of() { scontrol show job "$1" | sed -n 's/.*JobState=\([A-Z]*\).*/\1/p'; }
is() { [ "$(state_of "$1")" = "$2" ]; }
probe=$(timeout 30 sbatch --parsable --ntasks=2 --time=10 --output=probe.log --wrap=true) || no_slurm "Slurm takes no job"
timeout 60 sh -c "until scontrol show job $probe | grep -q JobState=COMPLETED; do sleep 0.1; done" ||
    no_slurm "Slurm runs no job here"

echo "a job that is interrupted, queued again and goes on"
expect_rc 0 train_on 2 2 solo run.steps=12
job=$(sbatch --parsable --ntasks=2 --time=10 --output=job.log "$source_dir/configs/slurm/one-node.sbatch" tiny.yaml run.dir=job parallel.ep=2 run.steps=1000000)
wait_for 60 has_steps job 5 || { fail "no steps within 60 s"; cat job.log; }
scancel --batch --signal=USR1 "$job"
wait_for 60 grep -q "exits with 85\|saved at step\|same command resumes" job.log || { fail "no save"; cat job.log; }
step=$(metric job step | tail -n 1)
wait_for 30 sh -c "[ \$(scontrol show job $job | sed -n 's/.*Restarts=\([0-9]*\).*/\1/p') = 1 ]" || fail "the job was not queued again"
# Slurm holds a job that was queued again for a while (two minutes): let it begin now, but not in the second in which it
# was ended. Slurm's stamps are whole seconds, and a start of that second is taken for one that was revoked.
sleep 2
timeout 150 sh -c "until scontrol show job $job | grep -q JobState=RUNNING; do scontrol update jobid=$job StartTime=now; sleep 1; done" 2>update.log ||
    { fail "not started again"; scontrol show job "$job"; scontrol show node; tail -n 3 update.log; tail -n 30 slurmctld.log slurmd.log; }
wait_for 60 grep -q "resuming at step $step" job.log || { fail "not resumed at step $step"; cat job.log; }
wait_for 60 has_steps job $((step + 12)) || fail "no steps after the restart"
scancel "$job"
wait_for 60 is "$job" CANCELLED || fail "still there after scancel: $(state_of "$job")"
expect_same "$(metric job loss_hex | head -n 12)" "$(metric solo loss_hex)" "losses of the job and of a run alone"

echo "a sweep as a job array"
printf '%s\n' "base: tiny.yaml" "dir: array" "set: {run.steps: 5}" "metric: loss" "parameters: {optimizer.lr: [1e-3, 2e-3, 4e-3]}" >array.yaml
expect_rc 0 "$binary" sweep array.yaml --slurm
job=$(sbatch --parsable --time=10 --output=array-%a.log array/sweep.sbatch)
all_done() { [ "$("$binary" sweep array.yaml --table | grep -c ' done ')" = 3 ]; }
wait_for 120 all_done || { fail "the array's trials are not done"; "$binary" sweep array.yaml --table; cat array-*.log; }
wait_for 60 sh -c "! squeue -h -j $job 2>/dev/null | grep -q ." || fail "tasks of the array are left"

# A daemon that does not go by itself is no finding about us.
timeout 10 scontrol shutdown || true
gone() { ! kill -0 "$ctld" 2>/dev/null && ! kill -0 "$slurmd" 2>/dev/null; }
wait_for 20 gone || kill -KILL "$ctld" "$slurmd" 2>/dev/null || true
wait
finish
