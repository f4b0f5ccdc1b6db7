"""What Kubernetes and SkyPilot are given to serve: it keeps to their schemas, and to what the server has."""

import re
import shlex
import subprocess

import kubernetes_validate
import pytest
import yaml
from absl import flags

from s1jax.cli import serve
from s1jax.serve import guards
from tests.launch.stand_ins import LAUNCH, Place

GKE = [document for document in yaml.safe_load_all((LAUNCH / "gke_serve.yaml").read_text()) if document]
SKY = yaml.safe_load((LAUNCH / "sky_serve.yaml").read_text())
KINDS = {document["kind"]: document for document in GKE}
POD = KINDS["Deployment"]["spec"]["template"]["spec"]
(CONTAINER,) = POD["containers"]
SCRIPTS = {"gke": CONTAINER["command"][-1], "sky": SKY["run"]}


def given(script):
    """The flags of launch.serve in a script."""
    line = re.search(r"exec \S+ -m launch\.serve (.*)", script.replace("\\\n", " "))[1]
    return dict(word.removeprefix("--").partition("=")[::2] for word in shlex.split(line))


def test_kinds_keep_to_the_schemas_of_kubernetes():
    release = kubernetes_validate.latest_version()
    for document in GKE:
        if document["kind"] != "PodMonitoring":  # of Google Cloud
            kubernetes_validate.validate(document, release, strict=True)
    assert list(KINDS) == ["Deployment", "Service", "PodDisruptionBudget", "PodMonitoring", "HorizontalPodAutoscaler"]


@pytest.mark.parametrize("script", SCRIPTS)
def test_the_server_has_the_flags(script):
    subprocess.run(["bash", "-n", "-c", SCRIPTS[script]], check=True)
    wanted = given(SCRIPTS[script])
    assert {"host", "port", "slots", "cache_tokens", "api_key_file", "drain_seconds"} <= set(wanted)
    for name, value in wanted.items():
        assert name in flags.FLAGS, name
        if not value.startswith("$"):
            flags.FLAGS[name].parser.parse(value)
    assert serve.FLAGS is flags.FLAGS and wanted["host"] == "0.0.0.0"


def test_a_pod_is_asked_where_the_server_answers():
    (port,) = CONTAINER["ports"]
    assert str(port["containerPort"]) == given(SCRIPTS["gke"])["port"]
    probes = [CONTAINER[f"{name}Probe"] for name in ("startup", "readiness", "liveness")]
    assert {(probe["httpGet"]["path"], probe["httpGet"]["port"]) for probe in probes} == {("/health", port["name"])}
    assert "/health" in guards._OPEN  # a probe has no key
    (service,) = KINDS["Service"]["spec"]["ports"]
    (metrics,) = KINDS["PodMonitoring"]["spec"]["endpoints"]
    assert service["targetPort"] == metrics["port"] == port["name"]
    labels = KINDS["Deployment"]["spec"]["template"]["metadata"]["labels"]
    assert KINDS["Service"]["spec"]["selector"] == labels
    for kind in ("Deployment", "PodDisruptionBudget", "PodMonitoring"):
        assert KINDS[kind]["spec"]["selector"] == {"matchLabels": labels}, kind
    hosts = given(SCRIPTS["gke"])["allowed_hosts"].split(",")
    assert all(host.split(".")[0] == KINDS["Service"]["metadata"]["name"] for host in hosts)


def test_a_pod_has_the_time_that_its_requests_need():
    """Kubernetes counts the time of preStop as well."""
    wait = int(CONTAINER["lifecycle"]["preStop"]["exec"]["command"][-1])
    readiness = CONTAINER["readinessProbe"]
    assert wait >= readiness["periodSeconds"] * readiness["failureThreshold"]
    drain = float(given(SCRIPTS["gke"])["drain_seconds"])
    assert POD["terminationGracePeriodSeconds"] >= wait + drain + serve._FLUSH_SECONDS + 10
    assert KINDS["Deployment"]["spec"]["strategy"]["rollingUpdate"]["maxUnavailable"] == 0


def test_the_keys_are_a_file_that_only_the_server_reads():
    mounts = {mount["name"]: mount["mountPath"] for mount in CONTAINER["volumeMounts"]}
    volumes = {volume["name"]: volume for volume in POD["volumes"]}
    assert set(mounts) == set(volumes) and volumes["secret"]["secret"]["defaultMode"] == 0o400
    (metrics,) = KINDS["PodMonitoring"]["spec"]["endpoints"]
    secret = metrics["authorization"]["credentials"]["secret"]
    assert volumes["secret"]["secret"]["secretName"] == secret["name"]
    assert given(SCRIPTS["gke"])["api_key_file"] == f"{mounts['secret']}/{secret['key']}"


def test_the_autoscaler_reads_a_metric_of_the_server():
    from s1jax.serve.metrics import Metrics

    scaler = KINDS["HorizontalPodAutoscaler"]["spec"]
    assert scaler["scaleTargetRef"]["name"] == KINDS["Deployment"]["metadata"]["name"]
    assert "replicas" not in KINDS["Deployment"]["spec"]  # they are the autoscaler's
    (metric,) = scaler["metrics"]
    _, name, kind = metric["pods"]["metric"]["name"].split("|")
    described = {found.name: found.type for found in Metrics(_Idle()).registry.collect()}
    assert described[name] == kind == "gauge" and name.endswith("num_requests_waiting")


class _Idle:
    """A worker without an engine."""

    scheduler_stats = None

    def stats(self):
        return type("Stats", (), {"running": 0, "waiting": 0})


@pytest.mark.parametrize("failing", ["tar", "pip", ""])
def test_a_pod_serves_as_its_last_process(tmp_path, failing):
    """The process that gets SIGTERM is the server itself."""
    place = Place(tmp_path, commands=("tar", "ln", "pip", "python"))
    if failing:
        place.program(place.path / failing, "#!/bin/bash\nexit 2\n")
    outcome = subprocess.run(CONTAINER["command"], env={"PATH": str(place.path)}, cwd=tmp_path, capture_output=True)
    assert (outcome.returncode == 0) == (not failing)
    log = place.log.read_text().splitlines() if place.log.exists() else []
    assert any(line.startswith("python -m launch.serve --checkpoint=") for line in log) == (not failing)


def test_skypilot_serves_behind_a_key_that_only_it_reads(tmp_path):
    assert SKY["service"]["readiness_probe"]["path"] == "/health"
    assert str(SKY["resources"]["ports"]) == given(SKY["run"])["port"]
    assert SKY["envs"]["CHECKPOINT"] and SKY["secrets"] == {"API_KEY": None}
    script = SKY["run"].replace("exec .venv/bin/python", "printf '%s\\n'")
    environment = {"PATH": "/usr/bin:/bin", "API_KEY": "k 1", "CHECKPOINT": "runs/a b"}
    done = subprocess.run(
        ["bash", "-euc", script], env=environment, cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert "--checkpoint=runs/a b" in done.stdout.splitlines()
    assert serve.read_keys(str(tmp_path / given(SKY["run"])["api_key_file"])) == ("k 1",)
