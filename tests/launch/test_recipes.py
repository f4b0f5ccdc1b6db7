"""The scripts for machines over ssh: what they ask gcloud and ssh for, and what a worker does."""

import shlex
import shutil
import sys

import pytest

from tests.launch.stand_ins import LAUNCH, ROOT, Place

TPU = ("--name=s1", "--zone=us-east5-a", "--type=v5p-32", "--spot", "--mount=sudo mount 10.0.0.2:/share runs")
TRAIN = ("--config=configs/countdown_s1.py", "--workdir=runs/a b")


def steps(lines):
    """What the lines do, in order, without the waiting and asking."""
    names = {
        "archive": "git archive", "create": " create ", "restart": " instances start ", "copy": "scp ",
        "unpack": "tar -xzf", "install": "worker.sh install", "start": "worker.sh start", "follow": "worker.sh follow",
        "logs": "worker.sh report", "delete": " delete ",
    }  # fmt: skip
    found = [name for line in lines for name, words in names.items() if words in f"{line} "]
    return " ".join(found)


SETUP = "copy unpack install start follow"


def test_dry_run_of_a_slice_prints_every_command_and_runs_none(tmp_path):
    place = Place(tmp_path)
    outcome, log = place.run("tpu_vm.sh", *TPU, "--project=mine", "--dry_run", "--", *TRAIN)
    assert outcome.returncode == 0, outcome.stderr
    assert log == [] and not (place.folder / "build").exists()
    printed, _, after = outcome.stdout.partition("# after a preemption")
    lines = [line for line in printed.splitlines() if line]
    assert steps(lines) == f"archive create {SETUP}"
    assert steps(after.splitlines()) == "delete"
    words = [shlex.split(line) for line in lines]
    assert all({"--zone=us-east5-a", "--project=mine"} <= set(line) for line in words if line[0] == "gcloud")
    (create,) = [line for line in words if "create" in line]
    assert create[:6] == ["gcloud", "compute", "tpus", "queued-resources", "create", "s1"]
    assert {"--node-id=s1", "--accelerator-type=v5p-32", "--runtime-version=v2-alpha-tpuv5", "--spot"} <= set(create)
    (install,) = [line for line in words if "worker.sh install" in " ".join(line)]
    (start,) = [line for line in words if "worker.sh start" in " ".join(line)]
    assert "--worker=all" in install and "--worker=all" in start
    (attach,) = [line for line in words if "worker.sh attach" in " ".join(line)]
    assert on_machine(attach) == ["bash", "s1jax/launch/worker.sh", "attach", TPU[-1].removeprefix("--mount=")]
    assert on_machine(install) == ["bash", "s1jax/launch/worker.sh", "install", "tpu"]
    assert on_machine(start) == ["bash", "s1jax/launch/worker.sh", "start", *TRAIN]
    (follow,) = [line for line in words if "worker.sh follow" in " ".join(line)]
    assert "--worker=0" in follow

    (place.path / "gcloud").unlink()
    assert place.run("tpu_vm.sh", *TPU, "--project=mine", "--dry_run", "--", *TRAIN)[0].stdout == outcome.stdout


def on_machine(words):
    """The words that the shell on the machine reads."""
    (line,) = [word.removeprefix("--command=") for word in words if word.startswith("--command=")]
    return shlex.split(line)


def test_the_first_run_creates_installs_starts_and_ends_with_0(tmp_path):
    place = Place(tmp_path)
    place.answer(requests=["", "WAITING_FOR_RESOURCES", "ACTIVE"], machines=["", "", "CREATING", "READY"])
    place.answer(states=["none", "0"])
    outcome, log = place.run("tpu_vm.sh", *TPU, "--", *TRAIN)
    assert outcome.returncode == 0, outcome.stderr
    assert steps(log) == f"archive create {SETUP}"
    assert log.index("sleep 30") < next(i for i, line in enumerate(log) if "scp" in line)


def test_a_preempted_slice_is_made_again_and_the_same_command_runs_on_it(tmp_path):
    place = Place(tmp_path)
    place.answer(requests=["ACTIVE", "ACTIVE", "ACTIVE", "SUSPENDED", "", "ACTIVE"])
    place.answer(
        machines=["READY", "READY", "PREEMPTED", "PREEMPTED", "", "READY"], states=["none", "unheard", "none", "0"]
    )
    outcome, log = place.run("tpu_vm.sh", *TPU, "--", *TRAIN)
    assert outcome.returncode == 0, outcome.stderr
    assert steps(log) == f"archive {SETUP} delete create {SETUP}"  # and the first time it was there and was reused
    starts = [line for line in log if "worker.sh start" in line]
    assert starts[0] == starts[1]
    assert "s1 was preempted" in outcome.stderr


COSTS = "== s1 is still there and still costs money; this deletes it:\ngcloud compute "


@pytest.mark.parametrize("code", [0, 1, 2, 143])
def test_a_run_that_ends_by_itself_is_not_tried_again_and_its_slice_is_named(tmp_path, code):
    place = Place(tmp_path)
    place.answer(requests=["ACTIVE"], machines=["READY"], states=["none", code])
    outcome, log = place.run("tpu_vm.sh", *TPU, "--", *TRAIN)
    assert outcome.returncode == code
    assert steps(log) == f"archive {SETUP}" + (" logs" if code else "")
    delete = "tpus queued-resources delete s1 --force --zone=us-east5-a --quiet\n"
    assert outcome.stderr.endswith(COSTS + delete) and " delete " not in "".join(log)


def test_a_lost_worker_is_tried_again_but_not_for_ever(tmp_path):
    place = Place(tmp_path)
    place.answer(requests=["ACTIVE"], machines=["READY"], states=["none", "75"])
    outcome, log = place.run("tpu_vm.sh", *TPU, "--", *TRAIN)
    assert outcome.returncode == 75 and steps(log).count("start") == 5


def test_a_broken_connection_leaves_the_run_alone(tmp_path):
    place = Place(tmp_path)
    place.answer(requests=["ACTIVE"], machines=["READY"], states=["running", "running", "running", "0"])
    outcome, log = place.run("tpu_vm.sh", *TPU, "--", *TRAIN)
    assert outcome.returncode == 0, outcome.stderr
    assert steps(log) == "archive follow follow"
    assert "worker.sh stop" in outcome.stderr  # how to end it


def test_an_installation_that_fails_is_not_followed_by_a_run(tmp_path):
    place = Place(tmp_path)
    place.answer(requests=["ACTIVE"], machines=["READY"], states=["none"], starts=["!7"])
    outcome, log = place.run("tpu_vm.sh", *TPU, "--", *TRAIN)
    assert outcome.returncode == 1 and steps(log) == "archive copy unpack install start"
    assert COSTS in outcome.stderr


def test_a_slice_that_cannot_be_had_ends_the_script(tmp_path):
    place = Place(tmp_path)
    place.answer(changes=["!1"])
    outcome, log = place.run("tpu_vm.sh", *TPU, "--", *TRAIN)
    assert outcome.returncode == 1 and "could not be created" in outcome.stderr and steps(log) == "archive create"
    assert "costs money" not in outcome.stderr
    place.answer(requests=["FAILED"])
    outcome, log = place.run("tpu_vm.sh", *TPU, "--", *TRAIN)
    assert outcome.returncode == 2 and "has failed" in outcome.stderr and steps(log) == "archive"
    place.answer(requests=["!1"])  # not knowing is not the same as there being none
    outcome, log = place.run("tpu_vm.sh", *TPU, "--", *TRAIN)
    assert outcome.returncode == 1 and steps(log) == "archive"


@pytest.mark.parametrize(
    ("script", "arguments", "words"),
    [
        ("tpu_vm.sh", ["--name=s1", "--zon=z"], "--zon=z is not a flag"),
        ("tpu_vm.sh", ["--spot=yes", *TPU], "--spot=yes is not a flag"),
        ("tpu_vm.sh", ["--name", *TPU], "--name is not a flag"),
        ("tpu_vm.sh", ["s1"], "s1 is not a flag"),
        ("tpu_vm.sh", ["--name=", *TPU[1:]], "--name has no value"),
        ("tpu_vm.sh", ["--name=s1", "--zone=z"], "--type= is missing"),
        ("tpu_vm.sh", [*TPU[:4], "--", *TRAIN], "--spot needs --mount"),
        ("tpu_vm.sh", [*TPU[:3], "--", *TRAIN], "--type=v5p-32 has several hosts and needs --mount"),
        ("tpu_vm.sh", [*TPU[:2], "--type=v6e-16", "--", *TRAIN], "--type=v6e-16 has several hosts"),
        ("tpu_vm.sh", ["--name=s1", "--zone=z", "--type=v9-8", "--", *TRAIN], "--type=v9-8 has no runtime"),
        ("tpu_vm.sh", TPU, "--workdir=FOLDER is missing"),
        ("tpu_vm.sh", [*TPU, "--", TRAIN[0]], "--workdir=FOLDER is missing"),
        ("tpu_vm.sh", [*TPU, "--", TRAIN[0], "--workdir=gs://bucket/x"], "is a URL"),
        ("tpu_vm.sh", [*TPU, "--", TRAIN[0], "--workdir=elsewhere"], "is not in runs/"),
        ("tpu_vm.sh", [*TPU, "--", "--config=configs/none.py", TRAIN[1]], "is not a file"),
        ("tpu_vm.sh", [*TPU, "--", *TRAIN, "--dry_run"], "put it before the --"),
        ("gpu_vm.sh", ["--name=s1", "--", *TRAIN], "--zone= is missing"),
        ("gpu_vm.sh", ["--host=a", "--name=s1", "--", *TRAIN], "leave out what describes a VM"),
        ("gpu_vm.sh", ["--name=s1", "--zone=z", "--coordinator=a:1", "--", *TRAIN], "--coordinator belongs to --host"),
        ("worker.sh", ["begin"], "'begin' is nothing"),
        ("slurm.sbatch", TRAIN, "this is not a SLURM job"),
    ],
)  # fmt: skip
def test_bad_flags_are_one_sentence(tmp_path, script, arguments, words):
    outcome, log = Place(tmp_path).run(script, *arguments)
    assert outcome.returncode == 2 and log == []
    assert outcome.stderr.startswith("error: ") and words in outcome.stderr and outcome.stderr.count("\n") == 1


@pytest.mark.parametrize("kind", ["v4-8", "v5p-8", "v5litepod-8", "v6e-8"])
def test_a_slice_of_one_host_needs_no_mount(tmp_path, kind):
    outcome, _ = Place(tmp_path).run("tpu_vm.sh", *TPU[:2], f"--type={kind}", "--dry_run", "--", *TRAIN)
    assert outcome.returncode == 0, outcome.stderr


def test_a_config_that_the_machine_would_lack_is_refused(tmp_path):
    place = Place(tmp_path)
    place.answer(committed=["!128"])
    new = place.folder / "configs/new.py"
    new.touch()
    for config in ("configs/new.py", str(new)):
        outcome, log = place.run("tpu_vm.sh", *TPU, "--", f"--config={config}", TRAIN[1])
        assert outcome.returncode == 2 and log == [f"git cat-file -e HEAD:{config}"]
        assert outcome.stderr.startswith(f"error: --config={config} is not in the last commit")
        assert outcome.stderr.count("\n") == 1
    outcome, log = place.run("tpu_vm.sh", *TPU, "--", "--config=new", TRAIN[1])
    assert outcome.returncode == 2 and log == ["git cat-file -e HEAD:configs/new.py"]  # by the name of an experiment


def test_files_that_stay_here_are_told(tmp_path):
    place = Place(tmp_path)
    place.answer(requests=["ACTIVE"], machines=["READY"], states=["0"], uncommitted=["?? configs/own.py"])
    assert "not committed stay here" in place.run("tpu_vm.sh", *TPU, "--", *TRAIN)[0].stderr
    place.answer(uncommitted=[""])
    assert "not committed" not in place.run("tpu_vm.sh", *TPU, "--", *TRAIN)[0].stderr


def test_a_stopped_vm_is_started_again_with_its_disk(tmp_path):
    place = Place(tmp_path)
    place.answer(
        machines=["", "RUNNING", "STOPPING", "TERMINATED", "STAGING", "RUNNING"], states=["none", "143", "143", "0"]
    )
    flags = ("--name=s1", "--zone=z", "--type=a3-highgpu-1g", "--spot")
    outcome, log = place.run("gpu_vm.sh", *flags, "--", *TRAIN)
    assert outcome.returncode == 0, outcome.stderr
    assert steps(log) == f"archive create {SETUP} restart {SETUP}"
    create = next(line for line in log if " create " in line)
    assert "--machine-type=a3-highgpu-1g" in create and "--provisioning-model=SPOT" in create
    assert "worker.sh install cuda" in " ".join(log) and "--coordinator" not in " ".join(log)
    assert outcome.stderr.endswith(COSTS + "instances delete s1 --zone=z --quiet\n")


HOSTS = ("--host=me@10.0.0.5,me@10.0.0.6",)


@pytest.mark.parametrize(
    ("states", "code", "reported", "starts"),
    [  # answers of the first and the second host, in turn: before the start, after the first host's run ended, ...
        (["none", "none", "75 2000", "2 1000"], 2, ["2 1000"], 1),
        (["none", "none", "75 2000", "1 3000"], 1, ["1 3000"], 1),
        (["none", "none", "2 2000", "2 1000"], 2, ["2 1000"], 1),  # the first to fail
        (["none", "none", "75 2000", "running", "75 2000", "2 1000"], 2, ["2 1000"], 1),
        (["none", "none", "0 1000", "running", "0 1000", "0 2000"], 0, [], 1),
        (["none", "none", "75 3000", "137 2000", "none", "none", "0 4000", "0 5000"], 0, ["137 2000"], 2),
        (["none", "none", "75 3000", "!255", "none", "none", "143 4000", "143 5000"], 143, ["75 3000", "143 4000"], 2),
    ],
)
def test_the_host_that_failed_decides_and_its_output_is_shown(tmp_path, states, code, reported, starts):
    place = Place(tmp_path)
    place.answer(states=states)
    outcome, log = place.run("gpu_vm.sh", *HOSTS, "--", *TRAIN)
    assert outcome.returncode == code, outcome.stderr
    reports = [line.partition("worker.sh report ")[2] for line in log if "worker.sh report" in line]
    assert reports == [words for words in reported for _ in range(2)]  # both hosts are asked; one has it
    assert sum("worker.sh start" in line for line in log) == 2 * starts


def test_hosts_need_one_path_for_a_relative_workdir(tmp_path):
    place = Place(tmp_path)
    place.answer(states=["none"], places=["/a/s1jax", "/b/s1jax"])
    outcome, log = place.run("gpu_vm.sh", *HOSTS, "--", *TRAIN)
    assert outcome.returncode == 2 and "install" not in steps(log)
    assert "has this folder at /a/s1jax and me@10.0.0.6 at /b/s1jax" in outcome.stderr
    place.answer(states=["none", "none", "0"], places=["/a/s1jax", "/b/s1jax"])
    outcome, log = place.run("gpu_vm.sh", *HOSTS, "--", TRAIN[0], "--workdir=/shared/a b")
    assert outcome.returncode == 0 and "install" in steps(log)


def test_a_killed_process_is_tried_again_but_not_for_ever(tmp_path):
    place = Place(tmp_path)
    place.answer(states=["none", "none"] + ["75 2", "137 1"] * 20)
    outcome, log = place.run("gpu_vm.sh", *HOSTS, "--", *TRAIN)
    assert outcome.returncode == 137 and sum("worker.sh start" in line for line in log) == 2 * 5


def test_a_host_that_cannot_be_prepared_is_named_with_what_failed(tmp_path):
    place = Place(tmp_path)
    place.answer(states=["none"], installs=["", "!2"])
    outcome, log = place.run("gpu_vm.sh", *HOSTS, "--", *TRAIN)
    assert outcome.returncode == 1 and "start" not in steps(log)
    assert outcome.stderr.endswith("error: 10.0.0.5: the installation failed; see above.\n")
    assert "== me@10.0.0." in outcome.stderr and ": exit code 2" in outcome.stderr
    place.answer(states=["none"], installs=[""], starts=["", "!1"])
    outcome, log = place.run("gpu_vm.sh", *HOSTS, "--", *TRAIN)
    assert outcome.returncode == 1 and sum("worker.sh stop" in line for line in log) == 2  # the first would wait
    assert outcome.stderr.endswith("error: 10.0.0.5: starting the run failed; see above.\n")


def test_an_extra_and_wheels_go_to_the_hosts(tmp_path):
    place = Place(tmp_path)
    wheels = place.folder / "wheels"
    wheels.mkdir()
    outcome, _ = place.run("gpu_vm.sh", *HOSTS, "--wheelhouse=wheels", "--extra=none", "--dry_run", "--", *TRAIN)
    assert (
        outcome.returncode == 2
        and "has no wheel of setuptools" in outcome.stderr
        and "wheels '.[all]' setuptools" in outcome.stderr
    )
    (wheels / "setuptools-80.0.0-py3-none-any.whl").touch()
    place.answer(states=["none", "none", "0"], expected=["absent", "there"])
    outcome, log = place.run("gpu_vm.sh", *HOSTS, "--wheelhouse=wheels", "--extra=none", "--", *TRAIN)
    assert outcome.returncode == 0, outcome.stderr
    assert [line for line in log if line.startswith("scp") and "wheels" in line] == [
        "scp -oBatchMode=yes -q -r wheels me@10.0.0.5:s1jax/build/incoming/.s1jax-copy"
    ]  # the second has them
    assert sum("worker.sh install none build/wheels" in line for line in log) == 2
    outcome, log = place.run("gpu_vm.sh", *HOSTS, "--extra=cuda13", "--", *TRAIN)
    assert outcome.returncode == 2 and "--extra=cuda13 is none of setup.py's" in outcome.stderr and log == []
    outcome, _ = place.run("gpu_vm.sh", *HOSTS, "--wheelhouse=none", "--", *TRAIN)

    assert outcome.returncode == 2 and outcome.stderr.startswith("error: --wheelhouse=none is not a folder; give one")


@pytest.fixture
def reading(tmp_path):
    """A place whose Python reads config files."""
    place = Place(tmp_path)
    place.link("python3", sys.executable)
    for name in ("inputs.py", "__init__.py"):
        shutil.copy(LAUNCH / name, place.folder / "launch")
    (place.folder / "s1jax").symlink_to(ROOT / "s1jax")
    place.answer(committed=["", "!128"])  # the config is
    return place


SMOLLM = ("--config=configs/smollm2_gsm8k.py", "--workdir=runs/smollm2_gsm8k")
VM = ("--name=s1", "--zone=z")


@pytest.mark.parametrize(
    ("flags", "extra", "words"),
    [
        (VM, ["--config.data.source=rows.jsonl"], "config.data.source rows.jsonl does not exist here"),
        (VM, ["--config.data.source", "rows.jsonl"], "config.data.source rows.jsonl does not exist here"),
        (VM, ["--config.init_from=runs/none"], "config.init_from runs/none does not exist here"),
        (VM, ["--config.data.source=../rows.jsonl"], "config.data.source ../rows.jsonl does not exist here"),
        (VM, ["--config.data.source=OUTSIDE"], "OUTSIDE is not copied, because it is not a path inside this folder"),
        ((*VM, "--mount=m"), ["--config.data.source=rows.jsonl"], "config.data.source rows.jsonl does not exist here"),
        (VM, ["--config.tokenizer=none.json", "--config.init_from="], "config.tokenizer none.json does not exist here"),
    ],
)  # fmt: skip
def test_what_is_missing_is_noticed_before_a_machine_is_made(reading, flags, extra, words):
    outside = reading.folder.parent / "outside.jsonl"
    outside.touch()
    extra, words = [text.replace("OUTSIDE", str(outside)) for text in extra], words.replace("OUTSIDE", str(outside))
    outcome, log = reading.run("gpu_vm.sh", *flags, "--", "--config=configs/countdown_s1.py", TRAIN[1], *extra)
    assert outcome.returncode == 2 and steps(log) == "archive"
    said = outcome.stderr.splitlines()[-1]
    assert said.startswith("error: ") and words in said and "costs money" not in outcome.stderr


def test_what_a_config_file_names_is_looked_for_too(reading):
    outcome, log = reading.run("gpu_vm.sh", *VM, "--", *SMOLLM)
    assert outcome.returncode == 2 and steps(log) == "archive"
    assert "config.data.source runs/gsm8k_rows.jsonl does not exist here" in outcome.stderr
    (reading.folder / "configs/broken.py").write_text("import ml_collections\nraise RuntimeError('broken')\n")
    reading.answer(committed=[""])
    outcome, log = reading.run("gpu_vm.sh", *VM, "--", "--config=configs/broken.py", TRAIN[1])
    assert outcome.returncode == 2 and steps(log) == ""
    assert "the file of --config does not load: RuntimeError: broken" in outcome.stderr


def test_own_rows_and_checkpoints_are_copied_before_the_installation(reading):
    (reading.folder / "runs/smollm2").mkdir(parents=True)
    (reading.folder / "runs/smollm2/s1jax.json").write_text("{}")
    (reading.folder / "runs/gsm8k_rows.jsonl").write_text("{}\n")
    reading.answer(states=["none", "none", "0"], expected=["absent", "there", "absent", "other"])
    outcome, log = reading.run("gpu_vm.sh", *HOSTS, "--", *SMOLLM)
    assert outcome.returncode == 0, outcome.stderr
    copies = [line for line in log if line.startswith("scp") and "runs/" in line]
    assert copies == [
        f"scp -oBatchMode=yes -q -r ./runs/{name} me@10.0.0.5:s1jax/build/incoming/.s1jax-copy"
        for name in ("gsm8k_rows.jsonl", "smollm2")
    ]
    assert "note: me@10.0.0.6 has a runs/smollm2 of its own, which is used" in outcome.stderr
    parts = (
        "tar -xzf",
        *(f"worker.sh {do}" for do in ("expect runs/gsm", "receive runs/gsm", "receive runs/smo", "install")),
    )
    order = [next(i for i, line in enumerate(log) if part in line) for part in parts]
    assert order == sorted(order)
    # Storage that all see gets one copy.
    reading.answer(states=["none", "none", "0"], expected=["absent"], committed=["", "!128"])
    outcome, log = reading.run("gpu_vm.sh", *HOSTS, "--mount=m", "--", *SMOLLM)
    assert outcome.returncode == 0 and sum("worker.sh expect" in line for line in log) == 2
    # What has come with the repository is not copied.
    reading.answer(states=["none", "none", "0"], committed=[""])
    outcome, log = reading.run("gpu_vm.sh", *HOSTS, "--", *SMOLLM)
    assert outcome.returncode == 0 and not any("worker.sh expect" in line for line in log)


def test_a_dry_run_prints_the_copies(reading):
    (reading.folder / "rows.jsonl").write_text("{}\n")
    flags = ("--config=configs/countdown_s1.py", TRAIN[1], "--config.data.source=./rows.jsonl")
    reading.answer(committed=["!128"])
    outcome, log = reading.run("gpu_vm.sh", *VM, "--mount=m", "--dry_run", "--", *flags)
    assert outcome.returncode == 0 and not any(line.startswith(("gcloud", "scp", "ssh")) for line in log)
    lines = [line for line in outcome.stdout.splitlines() if "rows.jsonl" in line and "worker.sh start" not in line]
    assert ["worker.sh expect" in line for line in lines] == [True, False, False]
    assert "scp --recurse ././rows.jsonl s1:s1jax/build/incoming/.s1jax-copy" in lines[1]
    assert "worker.sh receive" in lines[2]


def test_what_is_only_on_a_host_is_looked_for_there_before_the_installation(reading):
    reading.answer(states=["none", "none", "0"], needs=["!2"])
    outcome, log = reading.run("gpu_vm.sh", *HOSTS, "--", *SMOLLM)
    assert outcome.returncode == 2 and "install" not in steps(log)
    assert any("worker.sh need config.data.source runs/gsm8k_rows.jsonl" in line for line in log)
    reading.answer(states=["none", "none", "0"], needs=[""], committed=["", "!128"])
    outcome, log = reading.run("gpu_vm.sh", *HOSTS, "--", *SMOLLM)
    assert outcome.returncode == 0 and "install" in steps(log)


def test_without_a_python_here_it_is_said_that_nothing_was_looked_for(tmp_path):
    place = Place(tmp_path)
    place.answer(states=["none", "0"])
    outcome, _ = place.run("gpu_vm.sh", "--host=a", "--", *TRAIN)
    assert outcome.returncode == 0 and "note: no Python 3.11 or newer here" in outcome.stderr


def test_hosts_get_the_addresses_of_each_other(tmp_path):
    place = Place(tmp_path)
    place.answer(states=["none", "0"])
    outcome, log = place.run("gpu_vm.sh", "--host=me@10.0.0.5,me@10.0.0.6", "--", *TRAIN)
    assert outcome.returncode == 0, outcome.stderr
    assert not any(line.startswith("gcloud") for line in log)
    assert "costs money" not in outcome.stderr  # nothing was made here
    starts = [line for line in log if "worker.sh start" in line]
    for index, line in enumerate(starts):
        assert f"me@10.0.0.{5 + index} bash s1jax" in line
        assert line.endswith(f"--coordinator=10.0.0.5:8476 --num_processes=2 --process_id={index}")
    assert len(starts) == 2 and sum("scp" in line for line in log) == 2 and sum("install" in line for line in log) == 2
    outcome, _ = place.run("gpu_vm.sh", "--host=a,b", "--coordinator=10.0.0.9:1", "--dry_run", "--", *TRAIN)
    assert outcome.stdout.count("--coordinator=10.0.0.9:1") == 2
