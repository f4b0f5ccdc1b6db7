# Sourced by tpu_vm.sh and gpu_vm.sh: runs training on machines that are reached over ssh, from the flags to the end (`drive`).
# The script that sources it sets `name`, `extra` (of setup.py), `patience` (number of checks, every 30 s, whether the machine is lost
# after a failure: a preemption may show late), `machines` (their names for `reach` and `put`), `first` (the name of the first one),
# and defines these functions:
#   machine_state          prints none, waiting, ready or lost; fails where that cannot be known
#   create                 where it is none
#   revive                 where it is lost; what follows is waiting, ready or none again
#   delete                 for good; nothing where the machine was there before. It is only shown, never run from here
#   reach WHERE LINE       runs a line of shell on a machine
#   put WHERE FROM TO      copies a file or folder into the home folder of a machine, as TO
#   on_all LINE            runs a line of shell on all machines at a time
#   start                  starts the run on all machines, by worker.sh
# shellcheck shell=bash
source launch/environment.sh

exec 3>&1 # where --dry_run prints, from inside $(...) as well
dry_run='' mount='' wheelhouse='' train=() # flags of both scripts; `train` is what comes after --
inputs=()                                 # what the run starts from, as lines of launch.inputs
patience=0

say() {
  printf '== %s\n' "$*" >&2
}

give_up() {
  printf 'error: %s\n' "$*" >&2
  exit 1
}

# The words as one line that a shell reads as the same words.
quoted() {
  local word line=
  for word in "$@"; do
    [[ $word =~ ^[A-Za-z0-9_./:=@,+%~-]+$ ]] || word=${word@Q}
    line+=" $word"
  done
  printf '%s\n' "${line# }"
}

# Everything that acts or asks outside of this script goes through here.
run() {
  if [[ -n $dry_run ]]; then
    quoted "$@" >&3
  else
    "$@"
  fi
}

shown() {
  local dry_run=1
  "$@"
}

# parse_flags "VALUE..." "SWITCH..." ARGUMENT...: sets the variable of each flag, 1 for a switch, and `train`.
parse_flags() {
  local values=" $1 mount wheelhouse " switches=" $2 dry_run " argument flag
  shift 2
  while (($# > 0)); do
    argument=$1 flag=${1%%=*}
    flag=${flag#--}
    shift
    if [[ $argument == -- ]]; then
      train=("$@")
      return
    elif [[ $argument == --?*=* && $values == *" $flag "* ]]; then
      [[ -n ${argument#*=} ]] || fail "--$flag has no value; give it one or leave it out."
      printf -v "$flag" '%s' "${argument#*=}"
    elif [[ $argument == --?* && $argument != *=* && $switches == *" $flag "* ]]; then
      printf -v "$flag" 1
    else
      fail "$argument is not a flag of ${0##*/}; its first lines list them, and those of launch.train come after --."
    fi
  done
}

# What launch.train would only notice on a machine that is already paid for, or never.
check_train() {
  local argument config='' workdir=''
  for argument in "${train[@]}"; do
    case $argument in
      --config=*) config=${argument#*=} ;;
      --workdir=*) workdir=${argument#*=} ;;
      --dry_run) fail "--dry_run is not a flag of launch.train; put it before the --." ;;
    esac
  done
  [[ -n $config && -n $workdir ]] || fail "--config=FILE or --workdir=FOLDER is missing after --; launch.train needs both."
  if [[ $config =~ ^[A-Za-z0-9_]+$ && -f configs/$config.py ]]; then
    config=configs/$config.py # the name of an experiment of s1jax
  fi
  [[ -f $config ]] || fail "--config=$config is not a file of this repository; give one of configs/."
  [[ $workdir != *://* ]] || fail "--workdir=$workdir is a URL; mount the storage with --mount and give a folder in runs/."
  if [[ -n $mount && $workdir != runs/?* ]]; then
    fail "--workdir=$workdir is not in runs/, which --mount mounts; name a folder in it, for example runs/NAME."
  fi
  run git cat-file -e "HEAD:$config" 2>/dev/null ||
    fail "--config=$config is not in the last commit, which is all that the machine gets; commit it and give its path from here."
  if [[ -n $wheelhouse ]]; then
    [[ -d $wheelhouse ]] || fail "--wheelhouse=$wheelhouse is not a folder; give one with wheels of s1jax's libraries."
    [[ -n $(find -L "$wheelhouse" -maxdepth 1 -name 'setuptools-*.whl' -print -quit) ]] ||
      fail "--wheelhouse=$wheelhouse has no wheel of setuptools, which installs s1jax; this makes all that it takes, on a machine" \
        "like the one that trains: python3 -m pip wheel --wheel-dir=$wheelhouse '.[all${extra:+,$extra}]' setuptools"
  fi
  find_inputs
}

# Sets `inputs`; ends where the config does not load. A machine that is to be created has what is copied and what it mounts.
find_inputs() {
  local python=.venv/bin/python lines code=0
  if ! new_enough "$python" && ! python=$(find_python 2>/dev/null); then
    say "note: no Python 3.11 or newer here, so that the data and the checkpoint to start from are looked for on the machine," \
      "when the run starts, and not copied from here"
    return
  fi
  lines=$("$python" -m launch.inputs list "${train[@]}") || code=$?
  case $code in
    0) ;;
    3) say "note: without ml_collections here, what $config names to start from is looked for when the run starts" ;;
    *) exit "$code" ;;
  esac
  [[ -z $lines ]] || mapfile -t inputs <<<"$lines"
}

# Whether a path can be copied from here under the same name.
copyable() {
  [[ $1 != /* && $1 != '~'* && /$1/ != */../* ]]
}

# Ends where what the run starts from is not here and cannot be on a machine that is made from nothing either.
refuse_missing() {
  local input setting path stamp
  for input in "${inputs[@]}"; do
    IFS=$'\t' read -r setting path stamp _ <<<"$input"
    if [[ -n $mount && $path == runs/* ]]; then
      continue # checked when it is mounted
    elif [[ $stamp == - ]]; then
      fail "$setting $path does not exist here, and a new machine has only what is copied from here or mounted at runs/" \
        "by --mount; mend the path, or put it into that storage."
    elif ! copyable "$path"; then
      fail "$setting $path is not copied, because it is not a path inside this folder; put it into this folder and give its" \
        "relative path, or put it into the storage that --mount mounts at runs/."
    fi
  done
}

# Gets what the run starts from to the machines, before anything is installed there; 2 where it is neither here nor there.
provide() {
  local input setting path stamp bytes where have places
  for input in "${inputs[@]}"; do
    IFS=$'\t' read -r setting path stamp bytes <<<"$input"
    # shellcheck disable=SC2154 # set by the script that sources this one
    places=("${machines[@]}")
    if [[ -n $mount && $path == runs/* ]]; then
      places=("$first") # all see it
    fi
    if [[ $stamp != - ]] && copyable "$path"; then
      if git cat-file -e "HEAD:$path" 2>/dev/null; then
        continue # it has come with the repository
      fi
      for where in "${places[@]}"; do # one after the other: they may share the storage
        have=$(reach "$where" "$(quoted bash s1jax/launch/worker.sh expect "$path" "$stamp")") || return
        if [[ -n $dry_run || $have == *absent* ]]; then
          say "$where: copying $path ($((bytes / 1000000)) MB)"
          put "$where" "./$path" s1jax/build/incoming/.s1jax-copy || return
          reach "$where" "$(quoted bash s1jax/launch/worker.sh receive "$path" "$stamp")" || return
        elif [[ $have == *other* ]]; then
          say "note: $where has a $path of its own, which is used; the one here is not copied"
        fi
      done
    else
      for where in "${places[@]}"; do
        reach "$where" "$(quoted bash s1jax/launch/worker.sh need "$setting" "$path")" || return
      done
    fi
  done
}

archive() {
  printf 'build/s1jax-%s.tar.gz\n' "$name"
}

pack() {
  run mkdir -p build
  run git archive --format=tar.gz --output="$(archive)" HEAD
  [[ -n $dry_run || -z $(git status --porcelain) ]] || say "note: changes that are not committed stay here"
}

# Sets `step`, which the message names where it fails.
prepare() {
  local where
  step="copying the repository"
  for where in "${machines[@]}"; do
    put "$where" "$(archive)" "$(basename "$(archive)")" || return
  done
  on_all "mkdir -p s1jax && tar -xzf $(basename "$(archive)") -C s1jax" || return
  ((${#machines[@]} == 1)) || check_place || return
  if [[ -n $mount ]]; then
    step="mounting runs/"
    on_all "$(quoted bash s1jax/launch/worker.sh attach "$mount")" || return
  fi
  step="getting what the run starts from"
  provide || return
  if [[ -n $wheelhouse ]]; then
    step="copying the wheels"
    send_wheels || return
  fi
  step="the installation"
  on_all "$(quoted bash s1jax/launch/worker.sh install "${extra:-none}" ${wheelhouse:+build/wheels})"
}

# A checkpoint of several hosts is written to one path, so a relative --workdir needs the folder at one path.
check_place() {
  local argument where place before=''
  for argument in "${train[@]}"; do
    [[ $argument != --workdir=/* ]] || return 0
  done
  for where in "${machines[@]}"; do
    place=$(reach "$where" "cd s1jax && pwd -P") || return
    [[ -z $before || $place == "$before" ]] ||
      fail "$name has this folder at $before and $where at $place, and a checkpoint is written to one path; use users with the" \
        "same home folder, or give an absolute --workdir that all hosts have."
    before=$place
  done
}

send_wheels() {
  local where stamp have
  stamp=$(cd "$wheelhouse" && cksum -- *.whl | cksum | cut -d ' ' -f 1)
  for where in "${machines[@]}"; do
    have=$(reach "$where" "$(quoted bash s1jax/launch/worker.sh expect build/wheels "$stamp")") || return
    if [[ -n $dry_run || $have == *absent* ]]; then
      put "$where" "$wheelhouse" s1jax/build/incoming/.s1jax-copy || return
      reach "$where" "$(quoted bash s1jax/launch/worker.sh receive build/wheels "$stamp")" || return
    fi
  done
}

# The lines that `start` runs on a machine; arguments are flags of launch.train besides the user's.
start_line() {
  quoted bash s1jax/launch/worker.sh start "${train[@]}" "$@"
}

# A line for each machine: `running`, an exit code and when the run ended, `none` (never started, or the machine has restarted)
# or `unreachable`.
states() {
  local where
  for where in "${machines[@]}"; do
    reach "$where" "bash s1jax/launch/worker.sh state 2>/dev/null || echo none" || echo unreachable
  done
}

# The state that decides, see `decisive`. One machine may have failed while the others have not noticed: they get ten minutes.
run_state() {
  local try answers decided
  for ((try = 0; try < 60; try++)); do
    answers=$(states)
    decided=$(decisive <<<"$answers")
    if [[ -n $dry_run || $decided != running* || -z $(grep -v running <<<"$answers" | decisive) ]]; then
      printf '%s\n' "${decided:-unreachable}"
      return
    fi
    sleep 10
  done
  printf '%s\n' "$LOST"
}

# Shows the end of the output of the machine that decided.
report() {
  [[ ! $1 =~ ^[0-9]+$ ]] || on_all "$(quoted bash s1jax/launch/worker.sh report "$1" "$2")" >&2 || true
}

follow() {
  reach "$first" "bash s1jax/launch/worker.sh follow" || true # how the run ended is asked for afterwards
}

# Said however this script ends, Ctrl-C included.
still_there() {
  local command
  command=$(shown delete 3>&1)
  [[ -z $command ]] || say "$name is still there and still costs money; this deletes it:"$'\n'"$command"
}

make_ready() {
  local state='' before='' try
  while [[ $state != ready ]]; do
    state=$(machine_state) || exit
    [[ $state == "$before" ]] || say "$name: $state"
    before=$state
    case $state in
      none)
        trap - EXIT
        refuse_missing
        create || give_up "$name could not be created; see above."
        ;;
      lost)
        revive || {
          say "$name: no success; trying again in 5 minutes"
          sleep 300
        }
        ;;
      waiting) sleep 30 ;;
    esac
    trap still_there EXIT
  done
  # A machine answers some time after it is ready.
  for ((try = 0; try < 20; try++)); do
    if on_all true; then
      return
    fi
    sleep 15
  done
  give_up "$name is ready but does not answer over ssh; see above."
}

is_lost() {
  local state try
  for ((try = 0; try < patience; try++)); do
    if state=$(machine_state) && [[ $state != ready ]]; then
      return 0
    fi
    sleep 30
  done
  return 1
}

# Exits with the run's code; where the machine was lost instead, gets another one and runs the same command, which resumes.
drive() {
  local code when failed gone=0 step=''
  check_train
  pack
  if [[ -n $dry_run ]]; then
    plan
    return
  fi
  while true; do
    make_ready
    failed=0
    read -r code when _ < <(run_state)
    if [[ $code == running ]]; then
      say "$name: attaching to the run that is going on there"
    else
      code=running
      prepare || failed=$?
      if ((failed == 0)); then
        step="starting the run"
        start || failed=$?
        ((failed == 0)) || on_all "bash s1jax/launch/worker.sh stop" || true # where it has started, it would wait
      fi
      ((failed == 0)) || code=unprepared
    fi
    if [[ $code == running ]]; then
      say "the run goes on without this terminal; the same command attaches to it again, and this stops it:"
      shown on_all "bash s1jax/launch/worker.sh stop" 3>&2
      follow
      read -r code when _ < <(run_state)
    fi
    case $code in
      running) sleep 10 ;; # only the connection broke
      0)
        say "done"
        return
        ;;
      "$BAD_INPUT") # stays bad
        report "$code" "$when"
        exit "$BAD_INPUT"
        ;;
      *)
        if [[ $code == unprepared && $step == "getting what"* ]] && ((failed == BAD_INPUT)); then
          exit "$BAD_INPUT"
        elif is_lost; then
          say "$name was preempted or stopped; going on from the newest checkpoint"
          gone=0
        elif [[ $code == none || $code == unreachable || $code == "$LOST" || $code == "$KILLED" ]] && ((++gone < 5)); then
          report "$code" "$when"
          say "$name has lost the run ($code); going on from the newest checkpoint (try ${gone} of 4)"
        elif [[ $code =~ ^[0-9]+$ ]]; then
          report "$code" "$when"
          say "the run ended with exit code $code; the same command goes on from its newest checkpoint"
          exit "$code"
        elif [[ $code == unprepared ]]; then
          give_up "$name: $step failed; see above."
        else
          give_up "$name: $code; see above."
        fi
        ;;
    esac
  done
}

# --dry_run: every command in the order of a run that is preempted once.
plan() {
  machine_state >/dev/null
  create
  on_all true
  run_state >/dev/null
  prepare
  start
  follow
  run_state >/dev/null
  printf '# after a preemption, and then again from the second command on:\n'
  revive
}
