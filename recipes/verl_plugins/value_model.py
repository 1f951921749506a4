"""Loads PPO's critic with the attention that the recipe names, where verl insists on flash-attn.

verl's load_valuehead_model asks for "flash_attention_2" whatever the model's configuration says
(verl/utils/model.py:645). flash-attn is in neither of the pinned sets, and no CPU has its kernels. This module replaces
the loader; PPO's launcher names it in VERL_USE_EXTERNAL_MODULES, so that every process of the run imports it.

The critic trains all its weights: verl makes its LoRA as for a causal model (transformer_impl.py:360), which peft
refuses for a model with a value head.
"""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path

import torch
import verl.utils.model
from transformers import AutoModelForTokenClassification, PretrainedConfig, PreTrainedModel


def load_value_model(
    local_path: str | Path, torch_dtype: torch.dtype, model_config: PretrainedConfig, trust_remote_code: bool
) -> PreTrainedModel:
    """The model of a folder with a new head of one value a token, in the attention of model_config.

    Raises what transformers raises where the architecture has no token classification.
    """
    model: PreTrainedModel = AutoModelForTokenClassification.from_pretrained(
        local_path,
        dtype=torch_dtype,
        config=model_config,
        attn_implementation=model_config._attn_implementation,
        trust_remote_code=trust_remote_code,
    )
    # Where the policy has an adapter and a KL loss, verl asks the critic too to go without its adapter: the reference
    # pass leaves its wish in the batch (trainer_base.py:1704). The critic has none.
    model.disable_adapter = nullcontext
    return model


verl.utils.model.load_valuehead_model = load_value_model
