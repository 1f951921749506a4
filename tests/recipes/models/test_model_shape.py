"""Sizes of models from their configs, against the models themselves, PEFT's own count, and the published figures."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from accelerate import init_empty_weights
from peft import LoraConfig, get_peft_model
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForTokenClassification,
    LlamaConfig,
    Qwen2MoeConfig,
    Qwen3Config,
)

from recipes.models.model_shape import MODEL_CONFIGS, known_models, model_shape, shape_of_config
from recipes.models.tiny_config import TinyModelSize, tiny_config
from tsc.errors import ConfigError
from tsc.files import REPO_ROOT

MODELS = ("tiny", "smollm2", "qwen2.5-0.5b", "qwen2.5-1.5b", "qwen2.5-3b", "qwen2.5-7b")


def config_of(name: str):
    if name == "tiny":
        return Qwen3Config(**tiny_config(TinyModelSize(), TinyModelSize.vocab_size))
    return AutoConfig.from_pretrained(MODEL_CONFIGS / name)


@pytest.mark.parametrize(
    ("name", "billions"),
    # Qwen2.5 technical report (arXiv:2412.15115) and the model cards; SmolLM2's card
    [
        ("qwen2.5-0.5b", "0.494"),
        ("qwen2.5-1.5b", "1.54"),
        ("qwen2.5-3b", "3.09"),
        ("qwen2.5-7b", "7.62"),
        ("smollm2", "0.135"),
    ],
)
def test_the_parameters_in_all_are_the_published_ones(name: str, billions: str) -> None:
    digits = len(billions.split(".")[1])
    assert f"{model_shape(name).num_parameters / 1e9:.{digits}f}" == billions


@pytest.mark.parametrize("name", MODELS)
def test_the_sizes_from_the_architecture_are_those_of_the_built_model(name: str) -> None:
    assert model_shape(name) == shape_of_config(config_of(name), name=name)


def test_a_config_that_leaves_sizes_to_transformers_is_counted_as_transformers_builds_it(tmp_path: Path) -> None:
    small = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4}
    for values in (
        small | {"model_type": "llama", "vocab_size": 99},
        small | {"model_type": "qwen3", "num_key_value_heads": 2, "vocab_size": 99},
        small | {"model_type": "llama", "num_key_value_heads": 2, "vocab_size": 99, "mlp_bias": True},
        small | {"model_type": "mistral", "num_key_value_heads": 2, "vocab_size": 99},
    ):
        folder = tmp_path / f"{len(list(tmp_path.iterdir()))}"
        folder.mkdir()
        (folder / "config.json").write_text(json.dumps(values))
        built = shape_of_config(AutoConfig.from_pretrained(folder), name=folder.name)
        assert model_shape(str(folder)) == built


def test_planning_for_a_usual_model_imports_neither_torch_nor_transformers() -> None:
    program = (
        "import sys; from recipes.preflight.compose import compose; from recipes.preflight.plan import print_plan;"
        "print_plan('grpo', compose('grpo', ['hardware=cpu', 'start=tiny']), model='tiny');"
        "print(sorted({'torch', 'transformers', 'verl'} & set(sys.modules)))"
    )
    found = subprocess.run([sys.executable, "-c", program], cwd=REPO_ROOT, capture_output=True, text=True, check=True)
    assert found.stdout.endswith("\n[]\n")


@pytest.mark.parametrize("name", ["tiny", "smollm2"])
def test_the_count_equals_that_of_the_model_with_memory(name: str) -> None:
    shape = model_shape(name)
    model = AutoModelForCausalLM.from_config(config_of(name), dtype=torch.float32)
    assert shape.num_parameters == sum(parameter.numel() for parameter in model.parameters())
    assert shape.tied_embedding == (model.lm_head.weight is model.model.embed_tokens.weight)
    assert shape.num_embedding == model.model.embed_tokens.weight.numel()
    assert shape.num_layer == sum(parameter.numel() for parameter in model.model.layers[0].parameters())


@pytest.mark.parametrize("name", MODELS)
def test_one_layer_times_their_number_is_the_whole_model(name: str) -> None:
    config = config_of(name)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    shape = model_shape(name)
    assert shape.layers == len(model.model.layers) == config.num_hidden_layers
    assert shape.num_parameters == sum(parameter.numel() for parameter in model.parameters())
    assert shape.tied_embedding == (model.lm_head.weight is model.model.embed_tokens.weight)
    found: dict[tuple[str, int, int], int] = {}
    for path, module in model.model.layers.named_modules():
        if isinstance(module, torch.nn.Linear):
            key = (path.rpartition(".")[2], module.in_features, module.out_features)
            found[key] = found.get(key, 0) + 1
    assert {(linear.name, linear.num_in, linear.num_out): linear.count for linear in shape.linears} == found


def test_a_model_whose_layers_may_differ_is_counted_as_a_whole() -> None:
    config = Qwen2MoeConfig(
        hidden_size=32, intermediate_size=64, moe_intermediate_size=16, shared_expert_intermediate_size=16,
        num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2, num_experts=4, vocab_size=99,
        mlp_only_layers=[0],
    )  # fmt: skip
    model = AutoModelForCausalLM.from_config(config)
    shape = shape_of_config(config, name="moe")
    assert shape.num_parameters == sum(parameter.numel() for parameter in model.parameters())
    assert shape.layers == config.num_hidden_layers == 3


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("targets", ["all-linear", ("q_proj", "v_proj"), ("down_proj",)])
def test_lora_parameters_are_those_that_peft_trains(name: str, targets: str | tuple[str, ...]) -> None:
    with init_empty_weights():
        model = AutoModelForCausalLM.from_config(config_of(name))
        model = get_peft_model(
            model,
            LoraConfig(
                r=8, target_modules=targets if isinstance(targets, str) else list(targets), task_type="CAUSAL_LM"
            ),
        )
    assert model_shape(name).lora_parameters(8, targets) == model.get_nb_trainable_parameters()[0]


@pytest.mark.parametrize("name", MODELS)
def test_the_critic_is_the_model_with_a_head_of_one_output(name: str) -> None:
    config = config_of(name)
    config.num_labels = 1
    with init_empty_weights():
        critic = AutoModelForTokenClassification.from_config(config)
    expected = sum(parameter.numel() for parameter in critic.parameters())
    assert model_shape(name).num_value_head_model == expected


def test_lora_targets_that_a_model_lacks_are_named_with_those_it_has() -> None:
    with pytest.raises(ConfigError, match=r"LORA_TARGETS names wqkv, which tiny does not have: choose .*q_proj"):
        model_shape("tiny").lora_parameters(8, ["q_proj", "wqkv"])


def test_models_without_grouped_heads_have_as_many_kv_heads_as_heads() -> None:
    config = LlamaConfig(
        hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4, vocab_size=99
    )
    shape = shape_of_config(config, name="llama")
    assert (shape.kv_heads, shape.head_dim) == (4, 16)


def test_a_folder_with_a_config_is_a_model(tmp_path: Path) -> None:
    config = json.loads((MODEL_CONFIGS / "qwen2.5-0.5b/config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 2}))
    assert model_shape(str(tmp_path)).layers == 2


def test_an_unknown_model_is_answered_with_those_there_are() -> None:
    with pytest.raises(ConfigError, match=r"no model 'qwen3'.*tiny, smollm2, qwen2.5-0.5b, qwen2.5-1.5b"):
        model_shape("qwen3")


def test_an_adapter_in_a_models_place_is_told_apart(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(ConfigError, match="is a LoRA adapter: give the folder of its base model"):
        model_shape(str(tmp_path))


def test_the_known_models_come_by_size() -> None:
    assert known_models() == ["smollm2", "qwen2.5-0.5b", "qwen2.5-1.5b", "qwen2.5-3b", "qwen2.5-7b"]
