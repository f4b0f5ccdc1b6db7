#!/usr/bin/env bash
# Trains on a Cloud TPU slice, of one host or many:
#   bash launch/tpu_vm.sh --name=s1 --zone=us-east5-a --type=v5p-32 --spot --mount='sudo mount 10.0.0.2:/share runs' \
#     -- --config=configs/s1_qwen2p5_7b.py --config.mesh.sequence=2 --workdir=runs/s1_qwen2p5_7b
# Creates the slice as a queued resource or reuses the one of that name, copies the last commit, installs it, runs launch.train on all
# workers and shows the output of the first worker, and the end of the output of a worker that failed. Exits with the run's exit
# code; the slice stays until you delete it.
# Restarts: a preempted slice is deleted and created again, and the same command resumes. If a process is lost, the command is
# repeated at most four times in a row.
# Inputs: config.init_from (here runs/qwen2p5_7b), data.source and tokenizer are checked before anything is created or installed.
# They are copied if they are inside this folder and not on the slice yet. Otherwise they must be in what --mount mounts.
# Flags of this script come first, those of launch.train after --:
#   --name=     of the slice and its queued resource
#   --zone=     of Google Cloud
#   --type=     accelerator type, for example v5p-32 (16 chips) or v6e-16
#   --runtime=  software version; left out: the one for that type
#   --project=  of Google Cloud; left out: gcloud's own default
#   --spot      preemptible; needs --mount
#   --mount=    run on every worker in the repository's folder, mounts a file system that all share (NFS, Filestore, gcsfuse) at
#               runs/; without it --workdir is on the worker's own disk: single-host slices only, and gone with the slice
#   --wheelhouse=  folder of wheels to install from, which is copied to every worker: for slices without a way to PyPI
#   --dry_run   prints every command and runs none
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source launch/remote.sh

name='' zone='' type='' runtime='' project='' spot='' extra=tpu
parse_flags "name zone type runtime project" "spot" "$@"
[[ -n $name && -n $zone && -n $type ]] || fail "--name=, --zone= or --type= is missing; a slice needs all three."
[[ -z $spot || -n $mount ]] || fail "--spot needs --mount; without shared storage a preemption takes the checkpoints with it."
# The number is of cores (v4, v5p), of which a host has 8, or of chips, of which a slice of one host has at most 8.
if [[ -z $mount && $type =~ -([0-9]+)$ ]] && ((10#${BASH_REMATCH[1]} > 8)); then
  fail "--type=$type has several hosts and needs --mount; a checkpoint needs storage that all of them see."
fi
# shellcheck disable=SC2034
patience=$((${#spot} > 0 ? 5 : 1)) machines=(all) first=0
case $type in
  v4-*) runtime=${runtime:-tpu-ubuntu2204-base} ;;
  v5litepod-*) runtime=${runtime:-v2-alpha-tpuv5-lite} ;;
  v5p-*) runtime=${runtime:-v2-alpha-tpuv5} ;;
  v6e-*) runtime=${runtime:-v2-alpha-tpuv6e} ;;
  *) [[ -n $runtime ]] || fail "--type=$type has no runtime known here; give --runtime." ;;
esac

tpus() {
  run gcloud compute tpus "$@" --zone="$zone" ${project:+--project="$project"} --quiet
}

machine_state() {
  local node request
  node=$(tpus tpu-vm list --filter="name ~ /$name\$" --format="value(state)") || return
  request=$(tpus queued-resources list --filter="name ~ /$name\$" --format="value(state.state)") || return
  case $request/$node in
    /) echo none ;;
    FAILED/*) fail "the queued resource $name has failed; look at it with gcloud, delete it and run this again." ;;
    */STOPPED) fail "the slice $name is stopped; start or delete it and run this again." ;;
    DELETING/* | */DELETING) echo waiting ;;
    SUSPEND*/* | */PREEMPTED | */TERMINATED) echo lost ;;
    /READY | ACTIVE/READY) echo ready ;;
    *) echo waiting ;;
  esac
}

create() {
  tpus queued-resources create "$name" --node-id="$name" --accelerator-type="$type" --runtime-version="$runtime" \
    ${spot:+--spot}
}

delete() {
  tpus queued-resources delete "$name" --force
}

revive() {
  delete || tpus tpu-vm delete "$name" # a slice that was made without a request
}

reach() {
  tpus tpu-vm ssh "$name" --worker="$1" --ssh-flag=-oServerAliveInterval=30 --command="$2"
}

put() {
  tpus tpu-vm scp --recurse "$2" "$name:$3" --worker="$1"
}

on_all() {
  reach all "$1"
}

start() {
  # shellcheck disable=SC2119 # no flags besides: jax finds the other workers by itself
  on_all "$(start_line)"
}

drive
