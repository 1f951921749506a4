"""What a model's config.json says about its size: counted on the meta device, where a model has shapes but no memory.

No weights are needed: the configs of the models in configs/models hold the published architecture values, so that a run
can be planned on a machine that has neither the model nor a GPU.
"""

from __future__ import annotations

import copy
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from recipes.models.tiny_config import TinyModelSize, tiny_config
from tsc.errors import ConfigError, did_you_mean
from tsc.files import REPO_ROOT

if TYPE_CHECKING:
    from torch import nn
    from transformers import PretrainedConfig

MODEL_CONFIGS = REPO_ROOT / "configs" / "models"
# transformers' names of models whose decoder layers all have the same tensors
ALIKE_LAYERS = ("llama", "qwen2")
ALL_LINEAR = "all-linear"


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
        names. Raises ConfigError for a name that the model does not have, with the names that it has. Neither verl's
        vLLM nor TRL trains an adapter on the head.
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
    """The shape of `model`: `tiny`, `smollm2`, a name in configs/models, or a folder with a config.json. Raises
    ConfigError for anything else."""
    return shape_of_config(_config(model), name=Path(model).name or model)


def known_models() -> list[str]:
    """The names in configs/models, smallest model first."""
    folders = [file.parent for file in MODEL_CONFIGS.glob("*/config.json")]

    def size(folder: Path) -> int:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        return int(config["hidden_size"] * config["num_hidden_layers"])

    return [folder.name for folder in sorted(folders, key=size)]


def shape_of_config(config: PretrainedConfig, *, name: str) -> ModelShape:
    """Count the parameters of the model that `config` describes. Where all layers are alike, one of them is built."""
    from torch import nn

    alike = config.model_type in ALIKE_LAYERS
    model = _on_meta_device(config, one_layer=alike)
    embedding = model.get_input_embeddings()
    head = model.get_output_embeddings()
    lists = [module for module in model.modules() if isinstance(module, nn.ModuleList) and len(module)]
    if not lists:
        raise ConfigError(f"{type(model).__name__} does not have a list of layers: the plan cannot count such a model")
    built = max(lists, key=_count)
    layers = config.num_hidden_layers if alike else len(built)
    linears = Counter(
        (path.rsplit(".", 1)[-1], module.in_features, module.out_features)
        for path, module in built.named_modules()
        if isinstance(module, nn.Linear)
    )
    tied = head is not None and head.weight is embedding.weight
    num_layer = _count(built[0])
    num_parameters = _count(model) + (layers - len(built)) * num_layer
    hidden = int(config.hidden_size)
    heads = int(config.num_attention_heads)
    return ModelShape(
        name=name,
        num_parameters=num_parameters,
        num_embedding=embedding.weight.numel(),
        tied_embedding=tied,
        num_layer=num_layer,
        # The head with a row per token goes (a tied one stays as the embedding); a head with one row and a bias comes.
        num_value_head_model=num_parameters - (0 if tied else embedding.weight.numel()) + hidden + 1,
        hidden=hidden,
        intermediate=int(getattr(config, "intermediate_size", 4 * hidden)),
        layers=layers,
        heads=heads,
        kv_heads=int(getattr(config, "num_key_value_heads", None) or heads),
        head_dim=int(getattr(config, "head_dim", None) or hidden // heads),
        vocab=int(config.vocab_size),
        linears=tuple(
            LinearShape(name=layer, num_in=num_in, num_out=num_out, count=count * layers // len(built))
            for (layer, num_in, num_out), count in linears.items()
        ),
    )


def _on_meta_device(config: PretrainedConfig, *, one_layer: bool) -> Any:
    import torch
    from transformers import AutoModelForCausalLM

    if one_layer:
        config = copy.deepcopy(config)
        config.num_hidden_layers = min(1, config.num_hidden_layers)
    try:
        with torch.device("meta"):
            return AutoModelForCausalLM.from_config(config)
    except ValueError as error:
        raise ConfigError(f"transformers does not know a causal language model with this config: {error}") from error


def _count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _config(model: str) -> PretrainedConfig:
    from transformers import AutoConfig

    if model == "tiny":
        return tiny_config(TinyModelSize(), TinyModelSize.vocab_size)
    folder = Path(model)
    if not (folder / "config.json").is_file():
        if (folder / "adapter_config.json").is_file():
            raise ConfigError(f"{model} is a LoRA adapter: give the folder of its base model")
        folder = MODEL_CONFIGS / model
    if not (folder / "config.json").is_file():
        raise ConfigError(
            f"there is no model {model!r}: give a folder with a config.json, or one of tiny, "
            f"{', '.join(known_models())}"
        )
    try:
        return AutoConfig.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, KeyError, json.JSONDecodeError) as error:
        raise ConfigError(f"cannot read {folder / 'config.json'}: {error}") from error
