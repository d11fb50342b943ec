"""cluster.yaml is a cluster that Ray's launcher takes, closed to the network, and knows nothing of any job."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "cluster.yaml").read_text()


@pytest.fixture(scope="module")
def cluster() -> dict[str, Any]:
    return yaml.safe_load(TEXT)


@pytest.fixture(scope="module")
def schema() -> dict[str, Any]:
    ray = find_spec("ray")
    assert ray and ray.origin
    return json.loads((Path(ray.origin).parent / "autoscaler" / "ray-schema.json").read_text())


def test_rays_own_schema_takes_it_and_would_refuse_a_misspelt_key(cluster: dict, schema: dict) -> None:
    jsonschema.validate(cluster, schema)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({**cluster, "setup_command": []}, schema)


def test_the_head_is_a_cpu_machine_readers_and_encoders_are_apart(cluster: dict) -> None:
    types = cluster["available_node_types"]
    assert cluster["head_node_type"] == "head" and types["head"]["resources"] == {"CPU": 0}
    assert types["readers"]["resources"].keys() == {"CPU"} and types["encoders"]["resources"]["GPU"] == 1
    assert sum(t["max_workers"] for t in types.values()) <= cluster["max_workers"]
    assert all(types[t]["min_workers"] >= 1 for t in ("readers", "encoders"))
    assert types["encoders"]["docker"]["worker_image"].endswith("-gpu")
    assert cluster["docker"]["image"].endswith("-cpu")


def test_every_ray_starts_with_a_token_and_the_dashboard_listens_to_the_head_alone(cluster: dict) -> None:
    starts = cluster["head_start_ray_commands"] + cluster["worker_start_ray_commands"]
    assert all("RAY_AUTH_MODE=token ray" in command for command in starts)
    assert "--dashboard-host=127.0.0.1" in cluster["head_start_ray_commands"][-1]
    assert "~/.ray/auth_token" in cluster["file_mounts"]


def test_none_of_the_launchers_defaults_is_left(cluster: dict) -> None:
    for key in ("initialization", "setup", "head_setup", "worker_setup", "head_start_ray", "worker_start_ray"):
        assert f"{key}_commands" in cluster
    assert "nightly" not in json.dumps(cluster) and "0.0.0.0" not in json.dumps(cluster)


def test_the_images_are_of_the_ray_that_was_tested(cluster: dict) -> None:
    constraints = (ROOT / "constraints.txt").read_text()
    version = next(line.split("==")[1] for line in constraints.splitlines() if line.startswith("ray=="))
    images = [cluster["docker"]["image"], cluster["available_node_types"]["encoders"]["docker"]["worker_image"]]
    assert all(image.startswith(f"rayproject/ray:{version}-py311-") for image in images)


def test_what_is_sent_to_the_machines_is_this_repository_without_its_history(cluster: dict) -> None:
    assert cluster["file_mounts"]["~/mmstream"] == "."
    assert {"**/.git/**", "**/.venv/**"} <= set(cluster["rsync_exclude"])
    assert all((ROOT / name).exists() for name in [*cluster["rsync_filter"], "constraints.txt", "pyproject.toml"])


def test_it_names_machines_only_and_marks_the_lines_to_edit(cluster: dict) -> None:
    assert not any(word in TEXT for word in ("s3://", "hf:", "--model", ".tar"))
    marked = {line.split(":")[0].strip() for line in TEXT.splitlines() if "# EDIT" in line}
    assert marked >= {"region", "InstanceType", "max_workers", "IamInstanceProfile", "availability_zone"}
