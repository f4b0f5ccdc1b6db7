#!/usr/bin/env bash
# Where 1,000 examples come from, on the embedded task and from nothing: `bash launch/curation.sh`. Makes .venv, then runs
# `s1jax curation_story`: a pool of questions with planted defects, a teacher behind our own server, distil, curate, train,
# evaluate. Run again, it goes on where it was stopped. Needs Python 3.11 or newer; $PYTHON names one, $OUT another folder.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source launch/environment.sh

environment ""
exec .venv/bin/python -m launch.curation_story --out="${OUT:-runs/curation}" "$@"
