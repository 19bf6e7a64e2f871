#!/bin/sh
# A SLURM cluster of one node on loopback, for tests: all of its files lie in one folder, no service of the system
# is touched, and it needs neither systemd nor, for jobs of the user who starts it, root.
#
#   cluster.sh start DIR     returns when the node takes jobs; then: export SLURM_CONF=DIR/slurm.conf
#   cluster.sh stop DIR
#
# Needs Debian's packages slurm-wlm and munge.
set -eu

action=$1
mkdir -p "$2"
dir=$(cd "$2" && pwd)
PATH=$PATH:/usr/sbin:/sbin

stop() {
    for name in slurmd slurmctld munged; do
        if [ -f "$dir/$name.pid" ]; then
            pid=$(cat "$dir/$name.pid")
            kill "$pid" 2>/dev/null || true
            waited=0
            while kill -0 "$pid" 2>/dev/null && [ $waited -lt 50 ]; do
                sleep 0.1
                waited=$((waited + 1))
            done
            kill -9 "$pid" 2>/dev/null || true
        fi
    done
}

start() {
    mkdir -p "$dir/state" "$dir/spool"
    chmod 755 "$dir"
    if [ ! -f "$dir/munge.key" ]; then
        (umask 077 && head -c 1024 /dev/urandom > "$dir/munge.key")
    fi
    # --force: the folder may lie in one that others can write to, such as /tmp.
    munged --force --key-file "$dir/munge.key" --socket "$dir/munge.socket" --pid-file "$dir/munged.pid" \
        --log-file "$dir/munged.log" --seed-file "$dir/munge.seed" 2> /dev/null

    host=$(hostname -s)
    # Ports below those that the system hands out, and other ones than a cluster that may run here has.
    port=$((20000 + $$ % 5000 * 2))
    cat > "$dir/slurm.conf" <<EOF
ClusterName=tests
SlurmctldHost=$host(127.0.0.1)
SlurmUser=$(id -un)
SlurmdUser=$(id -un)
SlurmctldPort=$port
SlurmdPort=$((port + 1))
AuthType=auth/munge
AuthInfo=socket=$dir/munge.socket
CryptoType=crypto/munge
StateSaveLocation=$dir/state
SlurmdSpoolDir=$dir/spool
SlurmctldPidFile=$dir/slurmctld.pid
SlurmdPidFile=$dir/slurmd.pid
SlurmctldLogFile=$dir/slurmctld.log
SlurmdLogFile=$dir/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
MpiDefault=none
ReturnToService=2
JobRequeue=1
KillWait=10
SchedulerParameters=batch_sched_delay=0,sched_interval=2,sched_min_interval=0
NodeName=$host NodeAddr=127.0.0.1 CPUs=$(nproc)
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP
EOF
    export SLURM_CONF="$dir/slurm.conf"
    slurmctld
    slurmd
    waited=0
    until sinfo --noheader --format=%t 2> /dev/null | grep -q idle; do
        waited=$((waited + 1))
        if [ $waited -gt 100 ]; then
            tail -n 5 "$dir/slurmctld.log" "$dir/slurmd.log" >&2
            stop
            exit 1
        fi
        sleep 0.2
    done
}

case $action in
    start) start ;;
    stop) stop ;;
    *)
        echo "usage: $0 start|stop DIR" >&2
        exit 2
        ;;
esac
