# Sourced by all scripts of launch/: `environment ""` or `environment test` makes .venv in the current folder, installs
# this package into it with all features (the extra `all`) and that extra, and does nothing where that was done before. $PYTHON names another interpreter.
# $WHEELHOUSE names a folder of wheels, which are then all that is installed from: nothing is downloaded.
# shellcheck shell=bash

# Large pages for large arrays: with small ones a train step of benchmarks/train_step.py spends 2 of 7 s in page faults.
export GLIBC_TUNABLES=${GLIBC_TUNABLES:-glibc.malloc.hugetlb=1}

fail() {
  printf 'error: %s\n' "$*" >&2
  exit 2
}

# Exit codes of launch.train, as its docstring has them, and of a process that was ended by SIGKILL.
# shellcheck disable=SC2034
BAD_INPUT=2 LOST=75 KILLED=137 STOPPED=143

# decisive: reads a line `STATE WHEN WHO` for each process of a run and prints the one that says how the run ended. STATE is an
# exit code, `running`, `none` (never started, or gone with its machine) or `unreachable`; WHEN is in microseconds. Bad input
# has priority, then any other failure, then a requested stop, then a lost process. Among equal states the earliest counts,
# because the others are consequences. Lines that begin with another word are ignored; prints nothing if no line is left.
decisive() {
  local state when who rank best=99 first=0 line=''
  while read -r state when who; do
    case $state in
      running) rank=0 ;; # nothing is decided yet
      "$BAD_INPUT") rank=1 ;;
      "$STOPPED") rank=3 ;;
      "$KILLED") rank=4 ;;
      "$LOST") rank=5 ;;
      unreachable) rank=6 ;;
      none) rank=7 ;;
      0) rank=8 ;;
      [1-9] | [1-9][0-9] | [12][0-9][0-9]) rank=2 ;;
      *) continue ;;
    esac
    [[ $when =~ ^[0-9]{1,18}$ ]] || when=0
    if ((rank < best || rank == best && when < first)); then
      best=$rank first=$when line="$state $when $who"
    fi
  done
  [[ -z $line ]] || printf '%s\n' "$line"
}

# Whether a command is a Python that is new enough; the shims of version managers may only print an error.
new_enough() {
  "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1
}

find_python() {
  if [[ -n ${PYTHON:-} ]]; then
    new_enough "$PYTHON" || fail "PYTHON=$PYTHON is not Python 3.11 or newer; point it at one."
    printf '%s\n' "$PYTHON"
    return
  fi
  local name
  for name in python3 python3.13 python3.12 python3.11 python; do
    if new_enough "$name"; then
      printf '%s\n' "$name"
      return
    fi
  done
  fail "no Python 3.11 or newer found; install one, or set PYTHON=/path/to/python3.11."
}

# check_inputs FLAG...: exits with one sentence if a file or folder that `launch.train FLAG...` starts from is missing.
check_inputs() {
  local python=.venv/bin/python
  new_enough "$python" || python=$(find_python)
  "$python" -m launch.inputs check "$@" || exit
}

environment() {
  local extra=$1 python stamp begun=$SECONDS sources=()
  if [[ -n ${WHEELHOUSE:-} ]]; then
    sources=(--no-index --find-links="$WHEELHOUSE")
  fi
  if [[ -e .venv ]] && ! new_enough .venv/bin/python; then
    fail ".venv does not hold a working Python 3.11 or newer; remove it (rm -r .venv) and run this again."
  fi
  # Marks what was installed. Its name changes with setup.py, so a new dependency is installed.
  stamp=".venv/s1jax-${extra:-base}-$(cksum <setup.py | cut -d ' ' -f 1)"
  if [[ -e $stamp ]]; then
    return
  fi
  if [[ ! -e .venv ]]; then
    python=$(find_python)
    printf 'Making .venv with %s\n' "$("$python" --version)"
    if uv --version >/dev/null 2>&1; then
      # --seed: with pip, by which other extras are installed; it would have to be downloaded.
      local seed=--seed
      [[ -z ${WHEELHOUSE:-} ]] || seed=--offline
      uv venv --quiet "$seed" --python "$("$python" -c 'import sys; print(sys.executable)')" .venv
    else
      "$python" -m venv .venv ||
        { rm -rf .venv; fail "$python cannot make virtual environments; install its venv module (Debian: python3-venv)."; }
    fi
  fi
  printf 'Installing s1jax and its libraries into .venv (half a minute to a few minutes, by the network)\n'
  local target=".[all${extra:+,$extra}]" remedy=''
  if [[ -n ${WHEELHOUSE:-} ]]; then
    remedy=" The wheels have to be for $(.venv/bin/python -c 'import platform as p; print("Python", p.python_version(), "on", p.machine())')"
    remedy+="; on such a machine, 'python3 -m pip wheel --wheel-dir=FOLDER $target setuptools' in the repository makes them."
  fi
  if uv --version >/dev/null 2>&1; then
    # pip compiles by itself. Images often set PYTHONDONTWRITEBYTECODE, and then every process would compile jax again: 4 s.
    uv pip install --quiet --compile-bytecode --python .venv/bin/python ${sources[@]+"${sources[@]}"} -e "$target" ||
      fail "uv could not install the libraries; see above.$remedy"
  else
    .venv/bin/python -m pip install --quiet --disable-pip-version-check ${sources[@]+"${sources[@]}"} -e "$target" ||
      fail "pip could not install the libraries; see above.$remedy"
  fi
  touch "$stamp" "${stamp/-${extra:-base}-/-base-}" # whoever has an extra has the rest as well
  printf 'Installed in %d s\n' $((SECONDS - begun))
}
