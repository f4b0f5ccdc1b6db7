#!/usr/bin/env bash
# What tpu_vm.sh, gpu_vm.sh and skypilot.yaml do on a machine that trains, in the copy of the repository there:
#   worker.sh install EXTRA [COMMAND]  mounts runs/ by COMMAND where it is not mounted yet, installs s1jax[EXTRA] into .venv
#   worker.sh start FLAG...            runs `python -m launch.train FLAG...` in the background, output in build/run.log
#   worker.sh follow                   shows that output until the run ends
#   worker.sh state                    prints `running`, the run's exit code, or `none`
#   worker.sh stop                     SIGTERM: the run saves a checkpoint and ends with exit code 143
# A run in the background outlives the connection that started it, so a connection that breaks costs nothing.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source launch/environment.sh

# Numbers of processes begin anew when a machine starts again, so the start is part of what is remembered.
boot=$(cat /proc/sys/kernel/random/boot_id)

# Sets `pid`, leader of the run's process group; fails where no run is going on.
running() {
  local when
  [[ ! -e build/run.code ]] || return
  read -r when pid 2>/dev/null <build/run.pid && [[ $when == "$boot" ]] && kill -0 -- "-$pid" 2>/dev/null
}

install() {
  local extra=$1 mount=${2:-}
  if [[ -n $mount ]] && ! mountpoint -q runs; then
    mkdir -p runs
    if ! bash -c "$mount" || ! mountpoint -q runs; then
      fail "--mount='$mount' did not mount runs/ on $(hostname); see above."
    fi
  fi
  # Images for accelerators often have an older Python than 3.11; uv brings its own.
  export PATH=$HOME/.local/bin:$PATH
  if ! uv --version >/dev/null 2>&1; then
    curl --location --silent --show-error --fail https://astral.sh/uv/install.sh | sh
  fi
  uv python install --quiet 3.12
  PYTHON=$(uv python find 3.12)
  environment "$extra"
}

start() {
  stop # other workers may not have noticed yet that one was lost, and a device serves one process only
  mkdir -p build
  rm -f build/run.code
  export PYTHONUNBUFFERED=1 TF_CPP_MIN_LOG_LEVEL=${TF_CPP_MIN_LOG_LEVEL:-2}
  # The shell outlives SIGTERM to write down how the run ended; a trap, unlike an ignored signal, is not inherited.
  # shellcheck disable=SC2016
  setsid nohup bash -c '
    trap : TERM
    code=0
    .venv/bin/python -m launch.train "$@" || code=$?
    echo "$code" >build/run.part && mv build/run.part build/run.code
  ' run "$@" >build/run.log 2>&1 </dev/null &
  echo "$boot $!" >build/run.pid
}

follow() {
  local pid
  if running; then
    tail --lines=+1 --pid="$pid" --follow build/run.log
  else
    cat build/run.log
  fi
}

state() {
  local pid
  if running; then
    echo running
  else
    cat build/run.code 2>/dev/null || echo none
  fi
}

stop() {
  local pid second
  running || return 0
  kill -TERM -- "-$pid"
  for ((second = 0; second < 600; second++)); do
    running || return 0
    sleep 1
  done
  kill -KILL -- "-$pid"
}

case ${1:-} in
  install | start | follow | state | stop) "$@" ;;
  *) fail "'${1:-}' is nothing that worker.sh does; its first lines list what it does." ;;
esac
