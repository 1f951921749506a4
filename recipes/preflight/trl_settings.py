"""Checks of recipes/dpo.yaml that need none of TRL's trainers: a run makes them before anything starts."""

from __future__ import annotations

import dataclasses

from omegaconf import DictConfig

from recipes.preflight.hardware import largest_micro_batch, sequences_per_device
from tsc.errors import ConfigError, did_you_mean


def passes(config: DictConfig, num_workers: int) -> tuple[int, int]:
    """Pairs in one forward and backward pass, and passes a step, of each worker. Raises ConfigError.

    hardware.micro_batch_size counts sequences, of which a pair has two. A pass has at most so many sequences.
    """
    of_worker = sequences_per_device(int(config.data.train_batch_size), num_workers, unit="pairs")
    pairs = largest_micro_batch(of_worker, max(1, int(config.hardware.micro_batch_size) // 2))
    return pairs, of_worker // pairs


def check_trl_fields(config: DictConfig) -> None:
    """Raise ConfigError if the section `trl` has a key that trl.DPOConfig does not have."""
    from trl import DPOConfig

    known = [field.name for field in dataclasses.fields(DPOConfig) if field.init]
    for key in config.trl:
        if key not in known:
            meant = did_you_mean(str(key), known)
            raise ConfigError(f"trl.{key} is unknown: {meant}TRL's documentation of DPOConfig lists its fields")
