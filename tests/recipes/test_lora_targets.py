import subprocess
import sys
from pathlib import Path

import pytest

from recipes.lora_targets import lora_targets
from tsc.errors import ConfigError

pytest.importorskip("transformers")


def test_targets_that_the_model_has_are_taken_in_their_order() -> None:
    assert lora_targets("tiny", "v_proj, q_proj,v_proj") == ["v_proj", "q_proj"]


def test_all_linear_is_taken_as_it_is() -> None:
    assert lora_targets("tiny", "all-linear") == "all-linear"


def test_a_misspelt_target_is_an_error_with_the_nearest_and_with_all_modules_of_the_model() -> None:
    with pytest.raises(ConfigError) as raised:
        lora_targets("tiny", "q_proj,v_prj")
    text = str(raised.value)
    assert "v_prj, which tiny does not have: did you mean 'v_proj'?" in text
    for name in ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj", "all-linear"):
        assert name in text


def test_another_architectures_name_and_no_name_are_errors() -> None:
    with pytest.raises(ConfigError, match="names c_attn, which tiny does not have"):
        lora_targets("tiny", "c_attn")
    with pytest.raises(ConfigError, match="LORA_TARGETS is empty"):
        lora_targets("tiny", " , ")


def test_peft_finds_every_target_that_passes() -> None:
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    from recipes.models.tiny_config import TinyModelSize, tiny_config

    names = lora_targets("tiny", "q_proj,gate_proj")
    model = AutoModelForCausalLM.from_config(tiny_config(TinyModelSize(), vocab_size=300))
    adapted = get_peft_model(model, LoraConfig(r=2, target_modules=names, task_type="CAUSAL_LM"))
    assert set(adapted.targeted_module_names) == {
        f"model.layers.{layer}.{module}" for layer in range(4) for module in ("self_attn.q_proj", "mlp.gate_proj")
    }


def test_the_command_prints_hydras_value_or_ends_with_status_2(repo_root: Path) -> None:
    command = [sys.executable, "recipes/lora_targets.py", "--model", "tiny", "--targets"]

    def call(targets: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([*command, targets], cwd=repo_root, capture_output=True, text=True, timeout=60)

    assert call("q_proj,v_proj").stdout == "[q_proj,v_proj]\n"
    wrong = call("q_prj")
    assert (wrong.returncode, wrong.stdout) == (2, "")
    assert "did you mean 'q_proj'" in wrong.stderr
