#!/usr/bin/env bash
# All checks: `bash launch/test.sh`. Makes .venv with the test tools, then runs ruff, mypy and pytest; exits with 1 if any of
# them finds something. Arguments go to pytest and leave the other checks out: `bash launch/test.sh tests/engine -k budget`.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source launch/environment.sh

environment test
export TF_CPP_MIN_LOG_LEVEL=${TF_CPP_MIN_LOG_LEVEL:-2}
if (($# > 0)); then
  exec .venv/bin/python -m pytest "$@"
fi

failed=()
check() {
  local begun=$SECONDS
  printf '\n== %s\n' "$*"
  "$@" || failed+=("${*##*/}")
  printf '== %d s\n' $((SECONDS - begun))
}

check .venv/bin/python -m ruff check .
check .venv/bin/python -m ruff format --check .
# mypy takes one core for half a minute, so it runs beside the tests.
.venv/bin/python -m mypy >.venv/mypy.log 2>&1 &
types=$!
# Files of one module stay together, because their tests share compiled programs.
distribution=(-n "$(nproc)" --maxprocesses=8 --dist=loadfile --no-loadscope-reorder)
check .venv/bin/python -m pytest "${distribution[@]}" --durations=10
printf '\n== .venv/bin/python -m mypy\n'
wait "$types" || failed+=("python -m mypy")
printf '%s\n' "$(<.venv/mypy.log)"

if ((${#failed[@]} > 0)); then
  printf '\nFAILED after %d s:\n' "$SECONDS"
  printf '  %s\n' "${failed[@]}"
  exit 1
fi
printf '\nAll checks passed in %d s.\n' "$SECONDS"
