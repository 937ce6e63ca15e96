"""The compose file is valid, closed to the network, and says what the native test runs."""

import re
import subprocess

import pytest
import yaml

import evoselect_pipeline
from evoselect_pipeline_tests.deployment.compose import BIN, REPOSITORY, SUBSTITUTIONS, read_compose

DOCKER = REPOSITORY / "docker"
COMPOSE = (DOCKER / "compose.yaml").read_text(encoding="utf-8")
SERVICES = read_compose()["services"]
DAGSTER = (REPOSITORY / "dagster.yaml").read_text(encoding="utf-8")
STORAGE = (DOCKER / "storage.yaml").read_text(encoding="utf-8")

every_service = pytest.mark.parametrize("service", SERVICES.values(), ids=list(SERVICES))


def test_the_compose_files_keep_to_the_specification():
    files = [DOCKER / "compose.yaml", DOCKER / "gpu.yaml"]
    command = [BIN / "check-jsonschema", "--builtin-schema", "vendor.compose-spec", *files]
    checked = subprocess.run(command, capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stdout


@every_service
def test_a_service_is_pinned_unprivileged_and_watched(service):
    name, _, tag = service["image"].partition(":")
    assert re.match(r"v?\d+\.\d+", tag), f"{name} is not pinned"
    assert service["user"].split(":")[0] not in ("", "root", "0")
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    # One that ends is watched by those that wait for its success.
    waits = [other.get("depends_on", {}).get("init") for other in SERVICES.values()]
    if service is SERVICES["init"]:
        assert {"condition": "service_completed_successfully"} in waits
        assert service["restart"] == "no"
    else:
        assert service["healthcheck"]["test"][0] == "CMD"
        assert service["restart"] == "unless-stopped"


@every_service
def test_a_service_is_reached_from_this_machine_alone_and_keeps_no_secret(service):
    for port in service.get("ports", ()):
        assert port.startswith("127.0.0.1:"), port
    for name, value in service["environment"].items():
        if re.search("PASSWORD|SECRET|TOKEN|KEY", name):
            assert re.fullmatch(r"\$\{\w+(:[?-][^}]*)?\}", value), f"{name} is written down"
        else:
            assert not re.search(r"//[^/]*@|PASSWORD|KEY", value), f"{name} holds a secret"
    words = [*service.get("command", ()), *service.get("entrypoint", ())]
    assert not [word for word in words if re.search("PASSWORD|KEY|//[^/]*@", word)]


def test_volumes_keep_all_state():
    state = [name for name, service in SERVICES.items() if service["image"].startswith("evoselect")]
    for name in state:
        assert "state:/home/evoselect/state" in SERVICES[name]["volumes"], name
    assert {"postgres", "state", "models"} == set(read_compose()["volumes"])


def test_every_variable_is_documented():
    page = (REPOSITORY / "docs/deployment.md").read_text(encoding="utf-8")
    used = set(re.findall(r"\$\{(\w+)", COMPOSE))
    assert used >= {"POSTGRES_PASSWORD"}
    assert not [name for name in used if f"`{name}`" not in page]


def test_the_image_has_the_versions_of_the_project():
    image = f"evoselect-pipeline:{evoselect_pipeline.__version__}"
    assert {s["image"] for s in SERVICES.values() if "build" in s} == {image}
    dockerfile = (DOCKER / "Dockerfile").read_text(encoding="utf-8")
    assert "--constraint constraints.txt" in dockerfile
    # What it copies must not be ignored.
    ignored = (REPOSITORY / ".dockerignore").read_text(encoding="utf-8").splitlines()
    copied = re.findall(r"^COPY (?!--)(.*) \S+$", dockerfile, re.MULTILINE)
    for path in " ".join(copied).split():
        assert (REPOSITORY / path).exists(), path
        assert f"!{path.split('/')[0]}" in ignored, path


def test_the_deployment_adds_storage_alone_to_the_instance():
    plain, ours = yaml.safe_load(DAGSTER), yaml.safe_load(DAGSTER + STORAGE)
    assert list(yaml.safe_load(STORAGE)) == ["storage"]
    assert {key: value for key, value in ours.items() if key != "storage"} == plain
    assert "cat dagster.yaml docker/storage.yaml >" in " ".join(SERVICES["init"]["command"])


@pytest.mark.parametrize("pattern", [pattern for pattern, _ in SUBSTITUTIONS])
def test_every_substitution_of_the_native_test_is_needed(pattern):
    texts = [STORAGE, (DOCKER / "workspace.yaml").read_text(encoding="utf-8")]
    for service in SERVICES.values():
        texts += [*service.get("command", ()), *service["environment"].values()]
        texts += service.get("healthcheck", {}).get("test", ())
    assert any(re.search(pattern, text) for text in texts)
