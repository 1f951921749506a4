from pathlib import Path

import pytest

from recipes.models.quantisation import check_quantize, quantised_base
from tsc.errors import ConfigError


def test_full_weights_go_with_every_algorithm() -> None:
    for algorithm in ("grpo", "gspo", "ppo", "sft", "dpo"):
        check_quantize(algorithm, "", 0)


@pytest.mark.parametrize("algorithm", ["grpo", "gspo", "ppo", "sft"])
def test_verls_trainings_say_that_they_have_no_4_bit_weights_and_what_to_do(algorithm: str) -> None:
    with pytest.raises(ConfigError, match=f"with {algorithm.upper()}: verl 0.9.1 cannot .* LORA_RANK .*train_dpo.sh"):
        check_quantize(algorithm, "4bit", 32)


def test_dpo_takes_4_bit_weights_under_an_adapter_only() -> None:
    check_quantize("dpo", "4bit", 32)
    with pytest.raises(ConfigError, match="leave LORA_RANK empty"):
        check_quantize("dpo", "4bit", 0)
    with pytest.raises(ConfigError, match="QUANTIZE=8bit is unknown: choose 4bit"):
        check_quantize("dpo", "8bit", 32)


def test_a_run_on_full_weights_leaves_its_base_as_it_is(tmp_path: Path) -> None:
    assert quantised_base(tmp_path, tmp_path) is None
