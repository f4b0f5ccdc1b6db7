#!/usr/bin/env bash
# The main job on the embedded task, from nothing: `bash launch/quickstart.sh`. Makes .venv, then runs `s1jax quickstart`:
# it fine-tunes the small base model that ships in the package on 1,000 Countdown examples, and draws accuracy against
# thinking tokens on held-out problems. Run again, it goes on where it was stopped. Needs Python 3.11 or newer; $PYTHON
# names one, $OUT another folder.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source launch/environment.sh

environment ""
exec .venv/bin/python -m launch.quickstart --out="${OUT:-runs/quickstart}"
