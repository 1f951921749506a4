"""How vLLM's server is started on a GPU, as far as that shows without one: its options and its environment."""

from __future__ import annotations

from pathlib import Path

import pytest

from recipes.serving import vllm_server
from recipes.serving.vllm_server import VllmServer, engine_environment


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(vllm_server, "is_cpu_build", lambda: False)
    monkeypatch.setattr(vllm_server, "check_servable", lambda model, adapter: None)  # it has no weights
    (tmp_path / "config.json").write_text('{"max_position_embeddings": 2048}')
    return tmp_path


@pytest.mark.parametrize(("capability", "is_eager"), [(7.5, True), (8.0, False), (9.0, False)])
def test_gpus_before_ampere_compile_nothing(
    capability: float, is_eager: bool, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vllm_server, "compute_capability", lambda: capability)
    command = VllmServer(model, name="mine", log_file=model / "vllm.log")._command(8000)
    assert ("--enforce-eager" in command) is is_eager
    # what only the CPU build needs
    assert "--dtype" not in command and "--kv-cache-memory-bytes" not in command


def test_the_sampler_that_is_compiled_at_the_first_request_is_off(model: Path) -> None:
    found = engine_environment(model)
    assert found["VLLM_USE_FLASHINFER_SAMPLER"] == "0"
    assert "VLLM_CPU_OMP_THREADS_BIND" not in found
