"""The GRPO run that a user of a profile starts: the launcher's defaults on one GPU, the largest model that fits."""

from __future__ import annotations

from omegaconf import DictConfig, OmegaConf

from recipes.preflight.compose import compose
from recipes.preflight.memory_plan import memory_plan
from recipes.preflight.placement import most_moved
from recipes.preflight.plan import chosen_placement, family
from recipes.preflight.run_settings import RunSettings, run_settings
from tsc.files import REPO_ROOT


def largest_model(profile: str) -> str:
    """The largest Qwen2.5 of configs/models that the plan lets onto one GPU of the profile."""
    settings = most_moved(settings_of(compose("grpo", [f"hardware={profile}"]), profile))
    return [shape.name for shape in family() if memory_plan(shape, settings).fits][-1]


def launch_config(profile: str, model: str) -> DictConfig:
    """The configuration as verl gets it, resolved."""
    overrides = [
        f"hardware={profile}",
        "data.train_files=train.parquet",
        "data.val_files=val.parquet",
        f"actor_rollout_ref.model.path={REPO_ROOT}/configs/models/{model}",
        "trainer.default_local_dir=out",
    ]
    placed = chosen_placement("grpo", overrides, model=model, asked=[])
    config = compose("grpo", [overrides[0], *placed, *overrides[1:]])
    resolved = OmegaConf.create(OmegaConf.to_container(config, resolve=True))
    assert isinstance(resolved, DictConfig)
    return resolved


def settings_of(config: DictConfig, profile: str) -> RunSettings:
    return run_settings("grpo", config, hardware=profile)
