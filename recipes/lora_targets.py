"""The modules that a LoRA adapter is put on (knob LORA_TARGETS), checked against the model before anything starts.

Example:
    python recipes/lora_targets.py --model models/mine --targets q_proj,v_proj

prints them as a Hydra value ([q_proj,v_proj], or all-linear), else one error with the modules that the model has, and
exits with status 2. The model's config.json is enough; no weights are read.
"""

from __future__ import annotations

import argparse

from recipes.models.model_shape import ALL_LINEAR, model_shape
from tsc.errors import ConfigError, did_you_mean, run_main


def lora_targets(model: str, text: str) -> str | list[str]:
    """What `text` names: "all-linear" (every linear layer but the head, as PEFT takes it), or the names in it.

    model: as recipes.models.model_shape takes it. Names are the last parts of the layers' names, between commas: those
    of the decoder's layers only, for neither verl's vLLM nor TRL trains an adapter on the head. Raises ConfigError.
    """
    if text == ALL_LINEAR:
        return ALL_LINEAR
    names = list(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))
    known = list(dict.fromkeys(shape.name for shape in model_shape(model).linears))
    if not names:
        raise ConfigError(f"LORA_TARGETS is empty: choose {ALL_LINEAR} or some of {', '.join(known)}")
    for name in names:
        if name not in known:
            raise ConfigError(
                f"LORA_TARGETS names {name}, which {model} does not have: {did_you_mean(name, [*known, ALL_LINEAR])}"
                f"choose {ALL_LINEAR} or some of {', '.join(known)}, with commas between"
            )
    return names


def as_hydra_value(targets: str | list[str]) -> str:
    return targets if isinstance(targets, str) else f"[{','.join(targets)}]"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="folder with a config.json, or a name in configs/models")
    parser.add_argument("--targets", required=True, help="all-linear, or names of linear modules with commas between")
    options = parser.parse_args()
    print(as_hydra_value(lora_targets(options.model, options.targets)))


if __name__ == "__main__":
    run_main(main)
