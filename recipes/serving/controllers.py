"""The controllers that --controllers names, and their episodes: a language model is served while it is asked."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

from recipes.running.run_record import reported_training
from recipes.serving.model_choice import LocalModelChoice, ModelChoice, answering, checked, parse_model_choice
from tsc.controllers.registry import CONTROLLERS, LANGUAGE_MODEL, NAME, PROGRAM, STUDENT
from tsc.episodes.runner import EpisodeJob, run_jobs
from tsc.errors import ConfigError, did_you_mean
from tsc.evaluation.reference import BEST_CLASSICAL
from tsc.evaluation.reported import ReportedController
from tsc.evaluation.settings import LanguageModelSettings
from tsc.programs.tl_logic import check_program_file
from tsc.rules.student import StudentFile, load_student

# What a controller is given: a language model, a student, the file of a signal program, or nothing.
Chosen: TypeAlias = ModelChoice | StudentFile | Path | None


def chosen_controllers(words: Sequence[str], base_url: str | None) -> dict[str, Chosen]:
    """What each controller is given, in the order of the words.

    Raises ConfigError for an unknown controller, and for a model, a student or a program that cannot be found.
    """
    chosen: dict[str, Chosen] = {}
    for word in words:
        kind, _, given = word.partition(":")
        model: Chosen = None
        name = word
        if kind == LANGUAGE_MODEL:
            model = parse_model_choice(word, base_url)
            name = model.name
        elif kind in (STUDENT, PROGRAM):
            name, _, file = given.partition("=")
            if not NAME.fullmatch(name) or not file:
                raise ConfigError(
                    f"controller {word!r}: write {kind}:NAME=FILE, with a name of letters, digits and . _ -"
                )
            model = load_student(Path(file)) if kind == STUDENT else check_program_file(Path(file).resolve())
        elif word not in CONTROLLERS:
            meant = did_you_mean(word, CONTROLLERS)
            raise ConfigError(
                f"controller {word!r} is unknown: {meant}choose from {', '.join(CONTROLLERS)}, llm:NAME=FOLDER, "
                "student:NAME=FILE, program:NAME=FILE"
            )
        if model is not None and name in (*CONTROLLERS, BEST_CLASSICAL):
            raise ConfigError(f"controller {word!r}: {name} stands for a controller without a model")
        if name in chosen:
            raise ConfigError(f"two controllers are named {name!r}: {' '.join(words)}")
        chosen[name] = model
    return {name: checked(model) if isinstance(model, ModelChoice) else model for name, model in chosen.items()}


def reported_controller(name: str, model: Chosen) -> ReportedController:
    """What the report says about a controller."""
    training = None
    if model is None:
        kind, description, bounds = name, CONTROLLERS[name].description, CONTROLLERS[name].bounds
    else:
        bounds = CONTROLLERS["max_pressure"].bounds
        if isinstance(model, Path):
            kind, bounds = PROGRAM, CONTROLLERS["actuated"].bounds
            description = f"The signal program {model.name}, which SUMO runs by itself with its detectors."
        elif isinstance(model, StudentFile):
            kind = STUDENT
            description = (
                f"A small network (student) that copies {model.teacher}. On held-out episodes, it gives "
                f"{model.agreement:.1%} of its teacher's answers."
            )
        else:
            kind = LANGUAGE_MODEL
            if isinstance(model, LocalModelChoice):
                training = reported_training(model.adapter or model.model)
            description = (
                f"The language model {model.where}, at temperature 0. If its answer cannot be read or comes too late, "
                "the green times of the net's own plan decide."
            )
    return ReportedController(name=name, kind=kind, description=description, bounds=bounds, training=training)


def run_with_models(
    jobs: Sequence[EpisodeJob],
    models: Mapping[str, ModelChoice],
    settings: LanguageModelSettings,
    *,
    workers: int,
    log_file: Path,
) -> Iterator[dict[str, Any]]:
    """Yield the record of each episode when it ends. Controllers without a language model come first, then one model
    after the other. A model is served only while it is asked.

    models: by the name of the controller. log_file: of vLLM. Raises what run_jobs raises.
    """
    # lookahead takes longest: if it began last, one worker would still run when the others are done
    rules = sorted((job for job in jobs if job.controller not in models), key=lambda job: job.kind != "lookahead")
    yield from run_jobs(rules, workers)
    for name, model in models.items():
        asking = [job for job in jobs if job.controller == name]
        if not asking:
            continue
        with answering(
            model,
            max_answer_tokens=settings.max_answer_tokens,
            time_limit_s=settings.decision_time_limit_s,
            log_file=log_file,
        ) as endpoint:
            yield from run_jobs(asking, settings.concurrent_episodes, endpoint.ask)
