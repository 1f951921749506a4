"""What a model's config.json says about its size. No weights are needed.

The parameters of the usual models follow from their published architecture; that needs neither torch nor transformers,
which take seconds to import. Any other model is counted on the meta device. The configs in configs/models hold the
published values, so that a run can be planned on a machine that has neither the model nor a GPU.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from recipes.models.model_folder import read_json_object
from recipes.models.tiny_config import TinyModelSize, tiny_config
from tsc.errors import ConfigError, did_you_mean
from tsc.files import REPO_ROOT

if TYPE_CHECKING:
    from torch import nn
    from transformers import PretrainedConfig

MODEL_CONFIGS = REPO_ROOT / "configs" / "models"
ALL_LINEAR = "all-linear"
# The models that _dense_shape counts, and what their config.json must say for that.
DENSE = ("llama", "qwen2", "qwen3")
DENSE_KEYS = {
    "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "vocab_size",
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class LinearShape:
    """The linear layers of one name: `count` of them, each with num_out × num_in weights."""

    name: str
    num_in: int
    num_out: int
    count: int


@dataclass(frozen=True, kw_only=True)
class ModelShape:
    """Sizes of a causal language model. Counts are parameters, not bytes.

    num_parameters counts a head that is tied to the embedding once. num_embedding counts one vocabulary × hidden
    matrix, num_layer one decoder layer. num_value_head_model counts the model with a head of one output in place of the
    vocabulary's, as PPO's critic has it. linears are the linear layers of all decoder layers, without the head.
    """

    name: str
    num_parameters: int
    num_embedding: int
    tied_embedding: bool
    num_layer: int
    num_value_head_model: int
    hidden: int
    intermediate: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab: int
    linears: tuple[LinearShape, ...]

    @property
    def num_matmul_parameters(self) -> int:
        """Parameters that every token is multiplied with: the layers and the head, without the embedding's table."""
        return self.layers * self.num_layer + self.num_embedding

    def lora_parameters(self, rank: int, targets: str | Sequence[str] = ALL_LINEAR) -> int:
        """Parameters of a LoRA adapter: r · (in + out) for each matching linear layer (Hu et al. 2021, section 4.1).

        targets: "all-linear" (every linear layer but the head, as PEFT takes it), or the last parts of the layers'
        names. Raises ConfigError for a name that the model does not have, with the names that it has.
        """
        return sum(rank * linear.count * (linear.num_in + linear.num_out) for linear in self.lora_linears(targets))

    def lora_linears(self, targets: str | Sequence[str] = ALL_LINEAR) -> tuple[LinearShape, ...]:
        if targets == ALL_LINEAR:
            return self.linears
        wanted = [targets] if isinstance(targets, str) else list(targets)
        known = list(dict.fromkeys(linear.name for linear in self.linears))
        unknown = [name for name in wanted if name not in known]
        if unknown or not wanted:
            meant = did_you_mean(unknown[0], [*known, ALL_LINEAR]) if unknown else ""
            raise ConfigError(
                f"LORA_TARGETS names {', '.join(unknown) or 'nothing'}, which {self.name} does not have: {meant}"
                f"choose {ALL_LINEAR} or some of {', '.join(known)}, with commas between"
            )
        return tuple(linear for linear in self.linears if linear.name in wanted)


@cache
def model_shape(model: str) -> ModelShape:
    """The shape of `model`: `tiny`, `smollm2`, a name in configs/models, or a folder with a config.json.

    Raises ConfigError for anything else.
    """
    name = Path(model).name or model
    if model == "tiny":
        return _dense_shape({"model_type": "qwen3", **tiny_config(TinyModelSize(), TinyModelSize.vocab_size)}, name)
    file = _config_file(model)
    values = read_json_object(file)
    # head_dim has a default of its own in Qwen3
    needed = DENSE_KEYS | ({"head_dim"} if values.get("model_type") == "qwen3" else set())
    has_biases = values.get("attention_bias") or values.get("mlp_bias")
    if values.get("model_type") in DENSE and needed <= values.keys() and not has_biases:
        return _dense_shape(values, name)
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(file.parent, local_files_only=True)
    except (OSError, ValueError, KeyError) as error:
        raise ConfigError(f"cannot read {file}: {error}") from error
    return shape_of_config(config, name=name)


def known_models() -> list[str]:
    """The names in configs/models, smallest model first."""
    names = (file.parent.name for file in MODEL_CONFIGS.glob("*/config.json"))
    return sorted(names, key=lambda name: model_shape(name).num_parameters)


def _config_file(model: str) -> Path:
    for folder in (Path(model), MODEL_CONFIGS / model):
        if (folder / "config.json").is_file():
            return folder / "config.json"
    if Path(model, "adapter_config.json").is_file():
        raise ConfigError(f"{model} is a LoRA adapter: give the folder of its base model")
    raise ConfigError(
        f"there is no model {model!r}: give a folder with a config.json, or a name: tiny, {', '.join(known_models())}"
    )


def _dense_shape(values: dict[str, Any], name: str) -> ModelShape:
    """The shape of a Llama, Qwen2 or Qwen3 without optional biases, from the values of its config.json."""
    sizes, layers = _sizes(SimpleNamespace(**values)), int(values["num_hidden_layers"])
    hidden, intermediate, head_dim = sizes["hidden"], sizes["intermediate"], sizes["head_dim"]
    query, key = sizes["heads"] * head_dim, sizes["kv_heads"] * head_dim
    inputs_and_outputs = {
        "q_proj": (hidden, query),
        "k_proj": (hidden, key),
        "v_proj": (hidden, key),
        "o_proj": (query, hidden),
        "gate_proj": (hidden, intermediate),
        "up_proj": (hidden, intermediate),
        "down_proj": (intermediate, hidden),
    }
    # two norms; Qwen2 has biases of queries, keys and values, Qwen3 has norms of queries and keys
    beside = 2 * hidden + {"llama": 0, "qwen2": query + 2 * key, "qwen3": 2 * head_dim}[values["model_type"]]
    num_layer = sum(num_in * num_out for num_in, num_out in inputs_and_outputs.values()) + beside
    tied = bool(values.get("tie_word_embeddings", False))
    num_embedding = sizes["vocab"] * hidden
    return _shape(
        name=name,
        num_parameters=layers * num_layer + hidden + (1 if tied else 2) * num_embedding,
        num_embedding=num_embedding,
        tied_embedding=tied,
        num_layer=num_layer,
        layers=layers,
        linears={(layer, *shape): layers for layer, shape in inputs_and_outputs.items()},
        sizes=sizes,
    )


def shape_of_config(config: PretrainedConfig, *, name: str) -> ModelShape:
    """Count the parameters of the model that `config` describes on the meta device, where a model has shapes but no
    memory. Takes about a second for the first model. Raises ConfigError."""
    import torch
    from torch import nn
    from transformers import AutoModelForCausalLM

    try:
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config)
    except ValueError as error:
        raise ConfigError(f"transformers does not know a causal language model with this config: {error}") from error
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    lists = [module for module in model.modules() if isinstance(module, nn.ModuleList) and len(module)]
    if not lists:
        raise ConfigError(f"{type(model).__name__} does not have a list of layers: the plan cannot count such a model")
    layers = max(lists, key=_num_parameters)
    linears: Counter[tuple[str, int, int]] = Counter(
        (path.rsplit(".", 1)[-1], module.in_features, module.out_features)
        for path, module in layers.named_modules()
        if isinstance(module, nn.Linear)
    )
    return _shape(
        name=name,
        num_parameters=_num_parameters(model),
        num_embedding=embedding.weight.numel(),
        tied_embedding=head is not None and head.weight is embedding.weight,
        num_layer=_num_parameters(layers[0]),
        layers=len(layers),
        linears=linears,
        sizes=_sizes(config),
    )


def _num_parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _sizes(config: Any) -> dict[str, int]:
    hidden, heads = int(config.hidden_size), int(config.num_attention_heads)
    return {
        "hidden": hidden,
        "intermediate": int(getattr(config, "intermediate_size", 4 * hidden)),
        "heads": heads,
        "kv_heads": int(getattr(config, "num_key_value_heads", None) or heads),
        "head_dim": int(getattr(config, "head_dim", None) or hidden // heads),
        "vocab": int(config.vocab_size),
    }


def _shape(*, linears: Mapping[tuple[str, int, int], int], sizes: dict[str, int], **counts: Any) -> ModelShape:
    # The head with a row per token goes (a tied one stays as the embedding); a head with one row and a bias comes.
    lost = 0 if counts["tied_embedding"] else counts["num_embedding"]
    return ModelShape(
        **counts,
        **sizes,
        num_value_head_model=counts["num_parameters"] - lost + sizes["hidden"] + 1,
        linears=tuple(
            LinearShape(name=layer, num_in=num_in, num_out=num_out, count=count)
            for (layer, num_in, num_out), count in linears.items()
        ),
    )
