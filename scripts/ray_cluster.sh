#!/usr/bin/env bash
# Starts, shows and stops this machine's node of a Ray cluster. Every machine of the cluster has this repository.
#
#   bash scripts/ray_cluster.sh head                         on one machine; prints what to type on the others
#   HEAD=10.0.0.5:6379 bash scripts/ray_cluster.sh worker    on every other machine
#   bash scripts/ray_cluster.sh status                       all nodes, their resources and versions
#   bash scripts/ray_cluster.sh stop                         this machine's node, and no other Ray that runs here
#
# docs/cluster.md says how to train on a cluster, and explains the token by which nodes recognise each other.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

HEAD=${HEAD:-}                  # worker, status: address of the head, IP:PORT; empty for status: the cluster of this machine's node
PORT=${PORT:-6379}              # head: TCP port at which the other nodes find it
NODE_IP=${NODE_IP:-}            # address at which the other nodes reach this machine; empty: the one from which it reaches the head
HARDWARE=${HARDWARE:-auto}      # auto, or the name of a file in configs/hardware
N_GPUS=${N_GPUS:-}              # this machine's GPUs for training; empty: all, or on a CPU one worker, which Ray counts as a GPU
NUM_CPUS=${NUM_CPUS:-}          # CPUs that Ray may use; empty: all, or on a CPU as many as the workers above take
RAY_TMP=${RAY_TMP:-/tmp/tsc-ray-$UID}   # folder of this node for sockets and logs, at most 40 characters; each node needs its own
BLOCK=${BLOCK:-0}               # 1: stay in the foreground until the node ends, for Slurm and containers

START_S=120
PYTHON=.venv/bin/python

fail() { printf 'error: %s\n' "$1" >&2; exit 2; }

# prepare: .venv, the profile of this machine, and the environment that the node's workers inherit
prepare() {
    local found
    PROFILE=${PROFILE:-$([[ $HARDWARE != cpu ]] || echo cpu)} bash scripts/setup_env.sh
    export PATH="$PWD/.venv/bin:$PATH"
    if [[ $HARDWARE == auto ]]; then
        found=$("$PYTHON" recipes/preflight/hardware.py)
        HARDWARE=${found% *} N_GPUS=${N_GPUS:-${found#* }}
    fi
    # what is started here must not join another Ray by itself
    unset RAY_ADDRESS PYTHONDONTWRITEBYTECODE
}

# environment: what the node and its workers read, the nodes' token among it
environment() {
    local lines
    lines=$("$PYTHON" recipes/running/environment.py --hardware "$HARDWARE")
    eval "$lines"
}

usage() { sed -n '2,/^set /{/^set /!s/^# \{0,1\}//p}' "${BASH_SOURCE[0]}"; }

name="the Ray node in $RAY_TMP"
log=$RAY_TMP/node.log pid_file=$RAY_TMP/node.pid

# supervisor: prints the process id of this node's supervisor; nothing if no node runs
supervisor() {
    local pid
    [[ -r $pid_file ]] || return 0
    pid=$(<"$pid_file")
    if tr '\0' ' ' 2>/dev/null <"/proc/$pid/cmdline" | grep -qF -- "--name $name --log "; then printf '%s' "$pid"; fi
}

address() { cat "$RAY_TMP/ray_current_cluster"; }

# resources: prints the options of ray start for the resources of this machine, one per line
resources() {
    local memory
    if [[ $HARDWARE == cpu ]]; then
        # recipes/verl_plugins/cpu pretends that each worker has a GPU, and each takes 3 of Ray's CPUs.
        N_GPUS=${N_GPUS:-1}
        NUM_CPUS=${NUM_CPUS:-$((3 * N_GPUS + 2))}
    fi
    if [[ -n $N_GPUS ]]; then printf '%s\n' "--num-gpus=$N_GPUS"; fi
    if [[ -n $NUM_CPUS ]]; then printf '%s\n' "--num-cpus=$NUM_CPUS"; fi
    memory=$("$PYTHON" -c 'import sys; from recipes.preflight.hardware import load_hardware
print(load_hardware(sys.argv[1]).ray_object_store_memory or "")' "$HARDWARE")
    if [[ -n $memory ]]; then printf '%s\n' "--object-store-memory=$memory"; fi
}

start_node() {  # start_node OPTION OF ray start...
    local pid deadline found interface
    pid=$(supervisor)
    [[ -z $pid ]] || fail "a node runs here already: bash scripts/ray_cluster.sh stop, or another RAY_TMP for a second one"
    prepare
    if [[ $1 == --head && ${RAY_AUTH_MODE:-token} == token ]]; then
        # This keeps an existing token.
        (umask 077 && ray get-auth-token --generate >/dev/null 2>&1) ||
            fail "the token by which nodes recognise each other is missing, and Ray cannot make one: look at ~/.ray/auth_token and RAY_AUTH_TOKEN_PATH"
        # Ray lets every user of the machine read a token that it makes.
        if [[ -O ~/.ray/auth_token && -w ~/.ray/auth_token ]]; then chmod 600 ~/.ray/auth_token; fi
    fi
    environment
    # Ray writes colours even to files.
    export RAY_COLOR_MODE=none
    local -a options
    mapfile -t options < <(resources)
    found=$("$PYTHON" recipes/running/node_address.py ${HEAD:+--head "$HEAD"} ${NODE_IP:+--wanted "$NODE_IP"})
    read -r NODE_IP interface <<<"$found"
    # Without it, torch's Gloo gives the other nodes the address that this machine's name stands for, often 127.0.1.1.
    export GLOO_SOCKET_IFNAME=${GLOO_SOCKET_IFNAME:-$interface}
    options+=("$@" --node-ip-address="$NODE_IP" --temp-dir="$RAY_TMP" --disable-usage-stats --block)

    if [[ -n $(ls -A "$RAY_TMP" 2>/dev/null) && ! -e $pid_file ]]; then
        fail "RAY_TMP=$RAY_TMP holds something else: choose a folder that does not exist yet"
    fi
    rm -rf "$RAY_TMP"
    (umask 077 && mkdir -p "$RAY_TMP")
    # The launchers' supervisor runs it: when the supervisor ends, so does everything that Ray has started here.
    # It has its own session and no parent, so it continues after the shell that started it.
    # shellcheck disable=SC2016
    setsid --fork bash -c 'echo $$ >"$0"; exec "$@"' "$pid_file" \
        "$PYTHON" recipes/running/supervise.py --name "$name" --log "$log" --stall inf -- \
        .venv/bin/ray start "${options[@]}" </dev/null >"$RAY_TMP/supervise.log" 2>&1
    deadline=$((SECONDS + START_S))
    until grep -qs 'Ray runtime started' "$log"; do
        sleep 0.2
        if ((SECONDS >= deadline)) || { [[ -s $pid_file ]] && [[ -z $(supervisor) ]]; }; then
            pid=$(supervisor)
            if [[ -n $pid ]]; then end_supervisor "$pid"; fi
            explain
        fi
    done
}

# explain: says why the node did not start, and exits
explain() {
    printf '%s\n' "--- the end of $log:" >&2
    tail -n 8 "$log" >&2
    printf '%s\n' '---' >&2
    if grep -q 'AuthenticationError' "$log"; then
        fail "the head has another token: copy ~/.ray/auth_token of the head to this machine (chmod 600), or set RAY_AUTH_TOKEN_PATH to it"
    elif grep -q 'Version mismatch' "$log"; then
        fail "this machine and the head have different versions (above): bring both to the same state of the repository"
    elif grep -q 'node timed out during startup' "$log"; then
        fail "Ray waits 30 s for its own node, and this machine is too busy for that: try again when other programs have ended"
    elif [[ -n $HEAD ]]; then
        fail "the node did not start within $START_S s: is the head at HEAD=$HEAD, and does its firewall let this machine in?"
    fi
    fail "the node did not start within $START_S s: $RAY_TMP/session_latest/logs has more"
}

# stay: with BLOCK=1, waits until the node ends
stay() {
    local pid
    if [[ $BLOCK == 0 ]]; then return; fi
    trap 'stop_node; exit 143' TERM INT HUP
    pid=$(supervisor)
    tail --pid="$pid" -f /dev/null &
    wait $! || true
    cat "$RAY_TMP/supervise.log" >&2
    exit 1
}

end_supervisor() {  # end_supervisor PID
    kill -TERM "$1"
    # After 20 s the supervisor kills what has not ended.
    timeout 40 tail --pid="$1" -f /dev/null || fail "process $1 does not end: kill -KILL $1, then end the rest of Ray"
}

stop_node() {
    local pid
    pid=$(supervisor)
    if [[ -z $pid ]]; then return; fi
    end_supervisor "$pid"
    rm -rf "$RAY_TMP"
    printf 'stopped %s\n' "$name"
}

case $BLOCK in 0 | 1) ;; *) fail "BLOCK=$BLOCK is unknown: choose 0 or 1" ;; esac
for knob in PORT N_GPUS NUM_CPUS; do
    [[ ${!knob} =~ ^([1-9][0-9]*)?$ ]] || fail "$knob=${!knob} is not a whole number above 0"
done
if [[ $RAY_TMP != /* || ${#RAY_TMP} -gt 40 ]]; then
    fail "RAY_TMP=$RAY_TMP: choose an absolute path of at most 40 characters, for the sockets in it"
fi

case ${1:-} in
    head)
        HEAD=
        if (: <>"/dev/tcp/${NODE_IP:-127.0.0.1}/$PORT") 2>/dev/null; then
            fail "PORT=$PORT is taken, perhaps by another Ray: choose another port"
        fi
        start_node --head --port="$PORT" --include-dashboard=false
        cat <<TEXT
The head of a Ray cluster runs at $(address).
On every other machine, in this repository's folder there:
    HEAD=$(address) bash scripts/ray_cluster.sh worker
Then train from here, with the number of machines as NNODES:
    RAY_ADDRESS=$(address) NNODES=2 bash scripts/train_grpo.sh
TEXT
        stay
        ;;
    worker)
        [[ $HEAD == *:* ]] || fail "HEAD=$HEAD: give the address that 'bash scripts/ray_cluster.sh head' has printed, IP:PORT"
        start_node --address="$HEAD"
        printf 'This machine is a node of the Ray cluster at %s.\n' "$HEAD"
        stay
        ;;
    status)
        if [[ -z $HEAD ]]; then
            if [[ -z $(supervisor) && -e $pid_file ]]; then
                fail "the node that was started here has ended: start it again. If it ends again within a minute, a firewall may keep the other nodes from its ports (docs/cluster.md). Its log: $log"
            fi
            [[ -n $(supervisor) ]] || fail "this script has no node running here: start one (bash scripts/ray_cluster.sh --help), or name the head with HEAD=IP:PORT if something else has started one"
            HEAD=$(address)
        fi
        prepare
        environment
        "$PYTHON" recipes/running/cluster_check.py --address "$HEAD" --hardware "$HARDWARE"
        ;;
    stop)
        [[ -n $(supervisor) ]] || fail "this script has no node running here (RAY_TMP=$RAY_TMP)"
        stop_node
        ;;
    -h | --help) usage ;;
    *) fail "say what to do: bash scripts/ray_cluster.sh head|worker|status|stop" ;;
esac
