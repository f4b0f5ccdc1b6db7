#!/usr/bin/env bash
# The main job on the embedded task, from nothing: `bash launch/quickstart.sh`. Makes .venv, fine-tunes the small base model
# that ships in the package on 1,000 Countdown examples, and draws accuracy against thinking tokens on held-out problems.
# Run again, it goes on where it was stopped. Needs Python 3.11 or newer; $PYTHON names one, $OUT another folder.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source launch/environment.sh

out=${OUT:-runs/quickstart}
environment ""
export TF_CPP_MIN_LOG_LEVEL=${TF_CPP_MIN_LOG_LEVEL:-2}

begun=$SECONDS
printf '\n1/2  Fine-tuning package:countdown_base on 1,000 examples, 5 epochs (2 to 3 minutes on 2 cores)\n'
.venv/bin/python -m launch.train --config=configs/countdown_s1.py --workdir="$out"

printf '\n2/2  Answering 400 held-out problems with thinking cut short and with thinking extended (2 to 3 minutes)\n'
.venv/bin/python -m launch.evaluate --checkpoint="$out" --task=countdown --out="$out" \
  --num_problems=400 --batch_size=50 --budgets=0,16,32,64,none --waits=0,1,2,4,6,8

printf '\nDone in %d s. The curve: %s/scaling.png; the numbers: %s/results.json; every answer: %s/samples.jsonl\n' \
  $((SECONDS - begun)) "$out" "$out" "$out"
