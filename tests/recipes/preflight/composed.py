"""Configurations of all trainings as the launchers give them, for the tests of compose and validate."""

from __future__ import annotations

from omegaconf import DictConfig

from recipes.preflight.compose import POLICY_GRADIENT, compose
from tsc.files import REPO_ROOT

MODELS = [str(REPO_ROOT / "configs/models" / f"qwen2.5-{size}") for size in ("0.5b", "1.5b", "3b", "7b")]
W = "actor_rollout_ref"
# what the launchers always give
GIVEN = {
    **{algorithm: [f"{W}.model.path=models/mine"] for algorithm in POLICY_GRADIENT},
    "sft": ["model.path=models/mine"],
    "dpo": ["model.path=models/mine", "data.train_files=pairs.parquet", "trainer.default_local_dir=runs/mine"],
}


def composed(algorithm: str, *overrides: str) -> DictConfig:
    return compose(algorithm, [*GIVEN[algorithm], *overrides])


def with_model(config: DictConfig, model: str) -> DictConfig:
    section = config[W].model if W in config else config.model
    section.path = model
    return config
