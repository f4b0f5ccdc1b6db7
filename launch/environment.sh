# Sourced by quickstart.sh and test.sh: `environment ""` or `environment test` makes .venv in the current folder, installs
# this package into it with that extra, and does nothing where that was done before. $PYTHON names another interpreter.
# shellcheck shell=bash

# Large pages for large arrays: with small ones a train step of benchmarks/train_step.py spends 2 of 7 s in page faults.
export GLIBC_TUNABLES=${GLIBC_TUNABLES:-glibc.malloc.hugetlb=1}

fail() {
  printf 'error: %s\n' "$*" >&2
  exit 2
}

# Whether a command is a Python that is new enough; version managers leave names that only print an error.
new_enough() {
  "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1
}

find_python() {
  if [[ -n ${PYTHON:-} ]]; then
    new_enough "$PYTHON" || fail "PYTHON=$PYTHON is no Python 3.11 or newer; point it at one."
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

environment() {
  local extra=$1 python stamp begun=$SECONDS
  if [[ -e .venv ]] && ! new_enough .venv/bin/python; then
    fail ".venv does not hold a working Python 3.11 or newer; remove it (rm -r .venv) and run this again."
  fi
  # What was installed: changes with setup.py, so a new dependency is not forgotten.
  stamp=".venv/s1jax-${extra:-base}-$(cksum <setup.py | cut -d ' ' -f 1)"
  if [[ -e $stamp ]]; then
    return
  fi
  if [[ ! -e .venv ]]; then
    python=$(find_python)
    printf 'Making .venv with %s\n' "$("$python" --version)"
    if uv --version >/dev/null 2>&1; then # --seed: with pip, by which other extras are installed
      uv venv --quiet --seed --python "$("$python" -c 'import sys; print(sys.executable)')" .venv
    else
      "$python" -m venv .venv ||
        { rm -rf .venv; fail "$python cannot make virtual environments; install its venv module (Debian: python3-venv)."; }
    fi
  fi
  printf 'Installing s1jax and its libraries into .venv (half a minute to a few minutes, by the network)\n'
  local target=".${extra:+[$extra]}"
  if uv --version >/dev/null 2>&1; then
    # pip compiles by itself. Images often set PYTHONDONTWRITEBYTECODE, and then every process compiled jax anew: 4 s.
    uv pip install --quiet --compile-bytecode --python .venv/bin/python -e "$target" ||
      fail "uv could not install the libraries; see above."
  else
    .venv/bin/python -m pip install --quiet --disable-pip-version-check -e "$target" ||
      fail "pip could not install the libraries; see above."
  fi
  touch "$stamp" "${stamp/-${extra:-base}-/-base-}" # whoever has an extra has the rest as well
  printf 'Installed in %d s\n' $((SECONDS - begun))
}
