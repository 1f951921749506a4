"""The launch files in docs/examples, as far as they can be checked without Slurm and Kubernetes."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

REPO_ROOT = Path(__file__).resolve().parents[1]
EXAMPLES = REPO_ROOT / "docs" / "examples"
SLURM = sorted(EXAMPLES.glob("slurm/*.sbatch"))
KUBERAY = sorted(EXAMPLES.glob("kuberay/*.yaml"))
# The fields of KubeRay 1.7's RayCluster and RayJob. The files were once compared with its CRDs by hand.
CLUSTER_FIELDS = {"rayVersion", "authOptions", "headGroupSpec", "workerGroupSpecs"}
JOB_FIELDS = {
    "entrypoint", "runtimeEnvYAML", "backoffLimit", "shutdownAfterJobFinishes", "ttlSecondsAfterFinished",
    "rayClusterSpec",
}  # fmt: skip
HEAD_FIELDS = {"rayStartParams", "template"}
WORKER_FIELDS = HEAD_FIELDS | {"groupName", "replicas", "minReplicas", "maxReplicas"}


def launcher_knobs() -> set[str]:
    return set(re.findall(r"^(\w+)=\$\{\1:-", (REPO_ROOT / "scripts/train_grpo.sh").read_text(), re.MULTILINE))


def documents(kind: str) -> list[dict[str, Any]]:
    found = [document for path in KUBERAY for document in yaml.safe_load_all(path.read_text())]
    return [document for document in found if document["kind"] == kind]


def cluster_specs() -> list[dict[str, Any]]:
    return [one["spec"] for one in documents("RayCluster")] + [
        one["spec"]["rayClusterSpec"] for one in documents("RayJob")
    ]


@pytest.mark.parametrize("path", SLURM, ids=lambda path: path.name)
def test_a_slurm_file_is_sound_shell_with_its_options_before_the_first_command(path: Path) -> None:
    subprocess.run(["bash", "-n", path], check=True)
    lines = path.read_text().splitlines()
    first_command = next(i for i, line in enumerate(lines) if line and not line.startswith("#"))
    options = [i for i, line in enumerate(lines) if line.startswith("#SBATCH")]
    assert options and max(options) < first_command
    assert all(re.fullmatch(r"#SBATCH --[a-z-]+(=\S+)?", lines[i]) for i in options)
    for script in re.findall(r"scripts/\w+\.sh", path.read_text()):
        assert (REPO_ROOT / script).is_file()


def test_plain_kubernetes_objects_and_pods_fit_their_schemas() -> None:
    import kubernetes_validate

    objects = documents("PersistentVolumeClaim")
    for spec in cluster_specs():
        for group in (spec["headGroupSpec"], *spec["workerGroupSpecs"]):
            objects.append({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "pod"}, **group["template"]})
    assert len(objects) == 5
    for one in objects:
        kubernetes_validate.validate(one, "1.34", strict=True)


def test_a_misspelt_field_of_a_pod_would_be_found() -> None:
    import kubernetes_validate

    pod = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "pod"},
        **cluster_specs()[0]["headGroupSpec"]["template"],
    }
    pod["spec"] = pod["spec"] | {"containerz": []}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(pod, "1.34", strict=True)


def test_kuberay_objects_use_its_fields_and_the_pinned_ray() -> None:
    (ray,) = re.findall(r"^ray==(\S+)", (REPO_ROOT / "requirements/gpu.txt").read_text(), re.MULTILINE)
    specs = cluster_specs()
    assert len(specs) == 2
    for spec in specs:
        assert spec.keys() <= CLUSTER_FIELDS
        assert spec["rayVersion"] == ray
        assert spec["headGroupSpec"].keys() == HEAD_FIELDS
        assert all(group.keys() == WORKER_FIELDS for group in spec["workerGroupSpecs"])


def test_the_job_runs_the_launcher_with_knobs_that_it_has_on_the_nodes_that_it_starts() -> None:
    (job,) = documents("RayJob")
    spec = job["spec"]
    assert spec.keys() == JOB_FIELDS
    assert (REPO_ROOT / spec["entrypoint"].split()[1]).is_file()
    variables = yaml.safe_load(spec["runtimeEnvYAML"])["env_vars"]
    assert variables.keys() <= launcher_knobs()
    cluster = spec["rayClusterSpec"]
    assert int(variables["NNODES"]) == 1 + sum(group["replicas"] for group in cluster["workerGroupSpecs"])
    (container,) = cluster["headGroupSpec"]["template"]["spec"]["containers"]
    assert variables["N_GPUS"] == container["resources"]["limits"]["nvidia.com/gpu"]
