#!/usr/bin/env bash
# The part of tpu_vm.sh, gpu_vm.sh and skypilot.yaml that runs on the training machine, in its copy of the repository:
#   worker.sh attach COMMAND           mounts a file system at runs/ by COMMAND, where it is not mounted yet
#   worker.sh need SETTING PATH        fails where PATH, which the run starts from, is not there
#   worker.sh check FLAG...            fails where a path is not there that `launch.train FLAG...` starts from
#   worker.sh expect PATH STAMP        makes ready for a copy to build/incoming/.s1jax-copy; prints `absent` where PATH has to be
#                                      copied, `there` where that copy is there, `other` where something else is: it stays
#   worker.sh receive PATH STAMP       moves that copy to PATH
#   worker.sh install EXTRA [FOLDER]   installs s1jax[all,EXTRA] (`none`: s1jax[all]) into .venv, from the wheels in FOLDER
#   worker.sh start FLAG...            runs `python -m launch.train FLAG...` in the background, output in build/run.log
#   worker.sh follow                   shows that output until the run ends
#   worker.sh state                    prints `running`, `none`, or the run's exit code and when it ended, in microseconds
#   worker.sh report CODE WHEN         shows the last lines of the output where the run ended with that code at that time
#   worker.sh stop                     SIGTERM: the run saves a checkpoint and ends with exit code 143
# A run in the background outlives the connection that started it, so a connection that breaks costs nothing.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source launch/environment.sh

# Numbers of processes start from 1 again when a machine starts again, so the start is part of what is remembered.
boot=$(cat /proc/sys/kernel/random/boot_id)

# Sets `pid`, leader of the run's process group; fails where no run is going on.
running() {
  local when
  [[ ! -e build/run.code ]] || return
  read -r when pid 2>/dev/null <build/run.pid && [[ $when == "$boot" ]] && kill -0 -- "-$pid" 2>/dev/null
}

attach() {
  local mount=$1
  mountpoint -q runs && return
  mkdir -p runs
  if ! bash -c "$mount" || ! mountpoint -q runs; then
    fail "--mount='$mount' did not mount runs/ on $(hostname); see above."
  fi
}

need() {
  local setting=$1 path=$2
  [[ -e $path ]] || fail "$setting $path is not on $(hostname); put it there ($PWD is the folder of relative paths)," \
    "or have it here, under the same relative path, to be copied."
}

check() {
  # Without a Python of its own the machine gets one by `install`, and launch.train looks.
  find_python >/dev/null 2>&1 || return 0
  check_inputs "$@"
}

# The note beside a copy: what it is a copy of.
note() {
  printf '%s/.%s.s1jax-copy\n' "$(dirname "$1")" "$(basename "$1")"
}

expect() {
  local path=$1 stamp=$2 have=''
  if [[ -e $path ]]; then
    have=$(cat "$(note "$path")" 2>/dev/null) || have=other
    [[ $have != "$stamp" ]] || have=there
  fi
  if [[ $have == there || $have == other ]]; then
    echo "$have"
    return
  fi
  mkdir -p build "$(dirname "$path")"
  ln -sfn "$(cd "$(dirname "$path")" && pwd)" build/incoming
  rm -rf build/incoming/.s1jax-copy
  echo absent
}

receive() {
  local path=$1 stamp=$2
  rm -rf "$path"
  mv "$(dirname "$path")/.s1jax-copy" "$path"
  echo "$stamp" >"$(note "$path")"
}

# uv from PyPI, of one version and checked against the digests that PyPI lists for it. It brings a Python from
# github.com/astral-sh/python-build-standalone, whose digests are part of uv.
UV=0.11.33
uv_scripts=$PWD/build/uv/uv-$UV.data/scripts
get_uv() {
  local machine digest place file
  machine=$(uname -m)
  case $machine in
    x86_64)
      file=uv-$UV-py3-none-manylinux_2_17_x86_64.manylinux2014_x86_64.whl
      place=a3/cb/f0ccaba1bf9b0f778dc883e56f3bfb315e3d974ba36fb7432a067b459528
      digest=9542178978b0b6f16a7ae99e55aca039f493a1edb373a15d7993eab80a28615a
      ;;
    aarch64)
      file=uv-$UV-py3-none-manylinux_2_28_aarch64.whl
      place=d5/8c/aa413404a2e9731ccf64dff368875d46395957e12eb129d2d2203f184ef1
      digest=71d00a28beb3924c593ba7ec248263679ae1f7c0f63a8cccc75e7d11ccb2adce
      ;;
    *) fail "$1, and there is no uv for $machine; install Python 3.11 or newer with its venv module on $(hostname)." ;;
  esac
  [[ -z ${WHEELHOUSE:-} ]] ||
    fail "$1, and with --wheelhouse nothing is downloaded; install Python 3.11 or newer with its venv module on $(hostname)."
  mkdir -p build/uv
  curl --location --silent --show-error --fail --connect-timeout 30 --output build/uv/part \
    "https://files.pythonhosted.org/packages/$place/$file" ||
    fail "$1, and uv could not be downloaded from files.pythonhosted.org (see above); install Python 3.11 or newer with its" \
      "venv module on $(hostname)."
  [[ $(sha256sum build/uv/part) == "$digest "* ]] ||
    fail "what files.pythonhosted.org sent to $(hostname) as $file has not the SHA-256 that is known for it; nothing of it was run."
  python3 -m zipfile -e build/uv/part build/uv 2>/dev/null || unzip -oq build/uv/part -d build/uv ||
    fail "uv could not be unpacked on $(hostname), which has neither python3 nor unzip; install one of them."
  chmod +x "$uv_scripts"/uv*
}

install() {
  local extra=$1 own=''
  [[ $extra != none ]] || extra=''
  export WHEELHOUSE=${2:-} PATH=$uv_scripts:$HOME/.local/bin:$PATH
  if [[ ! -e .venv ]]; then
    own=$(find_python 2>/dev/null) || own=''
    # The host's own Python comes first: its pip may be set to an index that answers where PyPI and GitHub do not.
    if [[ -z $own ]]; then
      uv --version >/dev/null 2>&1 || get_uv "$(hostname) has no Python 3.11 or newer"
      uv python install 3.12 ||
        fail "$(hostname) has no Python 3.11 or newer, and uv could not bring one from github.com (see above); install one with" \
          "its venv module there, or set UV_PYTHON_INSTALL_MIRROR there to a mirror."
      own=$(uv python find 3.12)
    elif ! "$own" -c 'import ensurepip, venv' >/dev/null 2>&1; then # Debian has it in a package of its own
      uv --version >/dev/null 2>&1 || get_uv "$own on $(hostname) has no venv module (Debian: python3-venv)"
    fi
    export PYTHON=$own
  fi
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
    echo "$code $(date +%s%6N)" >build/run.part && mv build/run.part build/run.code
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

report() {
  if [[ $(cat build/run.code 2>/dev/null) == "$1 $2" ]]; then
    printf '== %s: exit code %s; its last lines:\n' "$(hostname)" "$1"
    tail --lines=20 build/run.log
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
  attach | need | check | expect | receive | install | start | follow | state | report | stop) "$@" ;;
  *) fail "'${1:-}' is nothing that worker.sh does; its first lines list what it does." ;;
esac
