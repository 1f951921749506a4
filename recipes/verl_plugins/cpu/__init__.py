"""Runs the released verl's own trainers (main_ppo, sft_trainer) on plain CPUs. It was written for verl 0.9.1.

Two environment variables switch it on in every process of a run::

    VERL_USE_EXTERNAL_MODULES=recipes.verl_plugins.cpu    # verl/__init__.py ends by importing this package
    VERL_PLATFORM=cpu

Without VERL_PLATFORM=cpu the import only registers the platform's name and changes nothing.
"""

from __future__ import annotations

import os

from recipes.verl_plugins.cpu import platform

if platform.is_selected():
    from recipes.verl_plugins.cpu import fsdp_offload, process_group, vllm_metadata

    # The FSDP engine is registered for cuda and npu only (verl/workers/engine/fsdp/transformer_impl.py:1143);
    # this variable is verl's own override of the lookup (verl/workers/engine/base.py:405).
    os.environ.setdefault("VERL_ENGINE_DEVICE", "cuda")
    vllm_metadata.install()
    process_group.install()
    fsdp_offload.install()
