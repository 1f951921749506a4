"""Loads PPO's critic with the attention that the recipe names. verl itself insists on flash-attn.

verl's load_valuehead_model asks for "flash_attention_2" whatever the model's configuration says
(verl/utils/model.py:645). Neither of the pinned sets has flash-attn, and it has no kernels for CPUs. This module
replaces the loader. PPO's launcher names it in VERL_USE_EXTERNAL_MODULES, so that every process of the run imports it.

The critic trains all its weights: verl makes its LoRA as for a causal model (transformer_impl.py:360), and peft refuses
that for a model with a value head.
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
    """The model of a folder with a new head of one value a token, and with the attention of model_config.

    Raises what transformers raises for an architecture without token classification.
    """
    model: PreTrainedModel = AutoModelForTokenClassification.from_pretrained(
        local_path,
        dtype=torch_dtype,
        config=model_config,
        attn_implementation=model_config._attn_implementation,
        trust_remote_code=trust_remote_code,
    )
    # If the policy has an adapter and a KL loss, verl tells the critic, too, to disable its adapter: the reference pass
    # leaves the flag in the batch (trainer_base.py:1704). The critic does not have an adapter.
    model.disable_adapter = nullcontext
    return model


verl.utils.model.load_valuehead_model = load_value_model
