#!/usr/bin/env bash
# Trains on one Google Cloud VM with GPUs, or on any hosts that answer over ssh:
#   bash launch/gpu_vm.sh --name=s1 --zone=us-central1-a --type=a3-highgpu-8g --mount='sudo mount 10.0.0.2:/share runs' \
#     -- --config=configs/s1_qwen2p5_7b.py --workdir=runs/s1_qwen2p5_7b
#   bash launch/gpu_vm.sh --host=user@10.0.0.5,user@10.0.0.6 --mount='sudo mount 10.0.0.2:/share runs' -- --config=... --workdir=...
# Creates the VM or reuses the one of that name, copies the last commit, installs it, runs launch.train and shows the output of the
# first host, and the end of the output of a host that failed. Exits with the run's exit code; the VM stays until you delete it.
# Restarts: a VM that was preempted or stopped is started again with its disk, and the same command resumes. If a process is lost,
# the command is repeated at most four times in a row.
# Inputs: config.init_from (here runs/qwen2p5_7b), data.source and tokenizer are checked before anything is created or installed.
# They are copied if they are inside this folder and not on the host yet. Otherwise they must be in what --mount mounts, or in
# ~/s1jax/ of an existing host.
# Python: the host's own Python >= 3.11 with its venv module, if there is one. Otherwise a fixed version of uv comes from PyPI, with
# its digest checked, and installs Python 3.12 from GitHub. With --wheelhouse nothing is downloaded.
# Flags of this script come first, those of launch.train after --:
#   --name=         of the VM
#   --zone=         of Google Cloud
#   --type=         machine type; left out: a3-highgpu-8g (8 H100); a3-highgpu-1g has one
#   --image=        image family of ubuntu-os-accelerator-images; left out: Ubuntu 24.04 with NVIDIA's driver 580
#   --project=      of Google Cloud; left out: gcloud's own default
#   --spot          preemptible
#   --host=         hosts with NVIDIA's driver instead of a VM, with commas between them; ssh must need no password, and each
#                   host needs a home folder of its own
#   --coordinator=  ADDRESS:PORT of the first host as the others reach it; left out: its name in --host, port 8476
#   --extra=        of setup.py, what jax needs for the device; left out: cuda; none: the CPU
#   --wheelhouse=   folder of wheels to install from, which is copied to every host: for hosts without a way to PyPI
#   --mount=        run on every host in the repository's folder, mounts a file system at runs/; more than one host needs
#                   a --workdir on storage that they share
#   --dry_run       prints every command and runs none
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source launch/remote.sh

name='' zone='' type='' image='' project='' spot='' host='' coordinator='' extra=cuda
parse_flags "name zone type image project host coordinator extra" "spot" "$@"
if [[ $extra == none ]]; then
  extra=''
elif ! grep -q "^ *\"$extra\": \[" setup.py; then
  fail "--extra=$extra is none of setup.py's; give cuda, another of them, or none."
fi
if [[ -n $host ]]; then
  [[ -z $name$zone$type$image$project$spot ]] || fail "--host takes hosts as they are; leave out what describes a VM."
  IFS=, read -ra hosts <<<"$host"
  name=${hosts[0]#*@}
  coordinator=${coordinator:-$name:8476}
else
  [[ -n $name && -n $zone ]] || fail "--name= or --zone= is missing; give both for a VM, or --host= for hosts that are there."
  [[ -z $coordinator ]] || fail "--coordinator belongs to --host; a single VM needs none."
  hosts=("$name")
  # shellcheck disable=SC2034
  patience=$((${#spot} > 0 ? 5 : 1))
fi
# shellcheck disable=SC2034
machines=("${hosts[@]}") first=${hosts[0]}

compute() {
  run gcloud compute "$@" --zone="$zone" ${project:+--project="$project"} --quiet
}

machine_state() {
  local status=RUNNING
  if [[ -z $host ]]; then
    status=$(run gcloud compute instances list --zones="$zone" --filter="name = $name" --format="value(status)" \
      ${project:+--project="$project"} --quiet) || return
  fi
  case $status in
    '') echo none ;;
    RUNNING) echo ready ;;
    TERMINATED | STOPPED) echo lost ;;
    SUSPENDED) fail "the VM $name is suspended; resume or delete it and run this again." ;;
    *) echo waiting ;;
  esac
}

create() {
  [[ -z $host ]] || return 0
  compute instances create "$name" --machine-type="${type:-a3-highgpu-8g}" --boot-disk-size=1000GB \
    --image-project=ubuntu-os-accelerator-images --image-family="${image:-ubuntu-accelerator-2404-amd64-with-nvidia-580}" \
    --network-interface=nic-type=GVNIC --maintenance-policy=TERMINATE \
    ${spot:+--provisioning-model=SPOT --instance-termination-action=STOP}
}

delete() {
  [[ -n $host ]] || compute instances delete "$name"
}

revive() {
  [[ -z $host ]] || return 0
  compute instances start "$name"
}

# reach HOST LINE
reach() {
  if [[ -n $host ]]; then
    run ssh -oBatchMode=yes -oServerAliveInterval=30 "$1" "$2"
  else
    compute ssh "$1" --ssh-flag=-oServerAliveInterval=30 --command="$2"
  fi
}

# put HOST FROM TO
put() {
  if [[ -n $host ]]; then
    run scp -oBatchMode=yes -q -r "$2" "$1:$3"
  else
    compute scp --recurse "$2" "$1:$3"
  fi
}

on_all() {
  local machine index failed=0 processes=()
  for machine in "${hosts[@]}"; do
    if [[ -n $dry_run ]]; then
      reach "$machine" "$1"
    else
      reach "$machine" "$1" &
      processes+=($!)
    fi
  done
  for index in "${!processes[@]}"; do
    wait "${processes[index]}" || {
      failed=$?
      ((${#hosts[@]} == 1)) || say "${hosts[index]}: exit code $failed"
    }
  done
  return "$failed"
}

start() {
  local index
  for index in "${!hosts[@]}"; do
    if ((${#hosts[@]} > 1)); then
      reach "${hosts[index]}" \
        "$(start_line --coordinator="$coordinator" --num_processes="${#hosts[@]}" --process_id="$index")" || return
    else
      reach "${hosts[index]}" "$(start_line)" || return
    fi
  done
}

drive
