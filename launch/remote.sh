# Sourced by tpu_vm.sh and gpu_vm.sh: from flags to the end of a run on machines reached over ssh. `drive` is the whole of it.
# The script that sources it sets `name`, `extra` (of setup.py) and `patience` (how often, 30 s apart, it is asked after a failure
# whether the machine is lost: a preemption may show late) and defines what differs:
#   machine_state          prints none, waiting, ready or lost; fails where that cannot be told
#   create                 where it is none
#   revive                 where it is lost; what follows is waiting, ready or none again
#   delete                 for good; nothing where the machine was there before. It is only shown, never run from here
#   on_all, on_first LINE  run a line of shell on all machines or on the first one
#   copy FILE              puts a file into the home folder of all machines
#   start                  starts the run on all machines, by worker.sh
# shellcheck shell=bash
source launch/environment.sh

exec 3>&1 # where --dry_run prints, from inside $(...) as well
dry_run='' mount='' train=() # flags of both scripts; `train` is what comes after --
patience=0
peer_lost=75 # launch.train's exit code where a process of another host has gone

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
  local values=" $1 mount " switches=" $2 dry_run " argument flag
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
      fail "$argument is no flag of ${0##*/}; its first lines list them, and those of launch.train come after --."
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
      --dry_run) fail "--dry_run is no flag of launch.train; put it before the --." ;;
    esac
  done
  [[ -n $config && -n $workdir ]] || fail "--config=FILE or --workdir=FOLDER is missing after --; launch.train needs both."
  [[ -f $config ]] || fail "--config=$config is no file of this repository; give one of configs/."
  [[ $workdir != *://* ]] || fail "--workdir=$workdir is a URL; mount the storage with --mount and give a folder in runs/."
  if [[ -n $mount && $workdir != runs/?* ]]; then
    fail "--workdir=$workdir is not in runs/, which --mount mounts; name a folder in it, for example runs/NAME."
  fi
  run git cat-file -e "HEAD:$config" 2>/dev/null ||
    fail "--config=$config is not in the last commit, which is all that the machine gets; commit it and give its path from here."
}

archive() {
  printf 'build/s1jax-%s.tar.gz\n' "$name"
}

pack() {
  run mkdir -p build
  run git archive --format=tar.gz --output="$(archive)" HEAD
  [[ -n $dry_run || -z $(git status --porcelain) ]] || say "note: changes that are not committed stay here"
}

prepare() {
  copy "$(archive)" &&
    on_all "mkdir -p s1jax && tar -xzf $(basename "$(archive)") -C s1jax" &&
    on_all "$(quoted bash s1jax/launch/worker.sh install "$extra" ${mount:+"$mount"})"
}

# The lines that `start` runs on a machine; arguments are flags of launch.train besides the user's.
start_line() {
  quoted bash s1jax/launch/worker.sh start "${train[@]}" "$@"
}

# `running`, an exit code, `none` (never started, or the machine has restarted) or `unreachable`.
run_state() {
  local answer
  answer=$(on_first "bash s1jax/launch/worker.sh state 2>/dev/null || echo none") || answer=unreachable
  printf '%s\n' "${answer##*$'\n'}"
}

follow() {
  on_first "bash s1jax/launch/worker.sh follow" || true # how the run ended is asked for afterwards
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
  local code gone=0
  check_train
  pack
  if [[ -n $dry_run ]]; then
    plan
    return
  fi
  while true; do
    make_ready
    code=$(run_state)
    if [[ $code == running ]]; then
      say "$name: attaching to the run that is going on there"
    elif prepare && start; then
      code=running
    else
      code=unprepared
    fi
    if [[ $code == running ]]; then
      say "the run goes on without this terminal; the same command attaches to it again, and this stops it:"
      shown on_all "bash s1jax/launch/worker.sh stop" 3>&2
      follow
      code=$(run_state)
    fi
    case $code in
      running) sleep 10 ;; # only the connection broke
      0)
        say "done"
        return
        ;;
      2) exit 2 ;; # bad input stays bad
      *)
        if is_lost; then
          say "$name was preempted or stopped; going on from the newest checkpoint"
          gone=0
        elif [[ $code == none || $code == unreachable || $code == "$peer_lost" ]] && ((++gone < 5)); then
          say "$name has lost the run ($code); going on from the newest checkpoint"
        elif [[ $code =~ ^[0-9]+$ ]]; then
          on_all "tail --lines=20 s1jax/build/run.log" || true
          say "the run ended with exit code $code; the same command goes on from its newest checkpoint"
          exit "$code"
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
