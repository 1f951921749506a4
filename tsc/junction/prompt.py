"""The prompt: the one place where an observation becomes text, unless a user's own function makes it.

PROMPT_VERSION stands in every sample; change it with any change of the text, since a model is trained on one text.
"""

from __future__ import annotations

from collections.abc import Callable

from tsc.errors import ConfigError
from tsc.junction.decision import Decision
from tsc.junction.observation import Observation, StageObservation
from tsc.user_code import is_user_function, source_sha256, user_function

Messages = list[dict[str, str]]
PromptMaker = Callable[[Observation], Messages]

PROMPT_VERSION = "1"

# more room than this downstream decides nothing, and a third digit would cost every prompt a token a stage
MAX_SPACE_VEH = 99

SYSTEM_MESSAGE = (
    "You run the traffic signal of one junction and keep its queues short. "
    "Shall the current green be extended? "
    f"Answer only {Decision.YES.answer} or {Decision.NO.answer}."
)


def _stage_line(label: str, stage: StageObservation) -> str:
    space = min(stage.downstream_space_veh, MAX_SPACE_VEH)
    return (
        f"{label}: queue {stage.queue_veh} moving near {stage.moving_near_veh} mid {stage.moving_mid_veh} "
        f"far {stage.moving_far_veh} wait {stage.longest_wait_s} s space {space}"
    )


def user_message(observation: Observation) -> str:
    """Counts are vehicles, space at most MAX_SPACE_VEH; the current stage first, then the red ones in the order they
    will be served."""
    current, *red = observation.stages
    lines = [
        f"Green for {observation.elapsed_green_s} s ({observation.min_green_s} to {observation.max_green_s} s). "
        f"Extend by {observation.green_extension_s} s? Vehicles:",
        _stage_line("green", current),
    ]
    lines += [_stage_line("next" if number == 0 else "red", stage) for number, stage in enumerate(red)]
    return "\n".join(lines)


def messages(observation: Observation) -> Messages:
    """System and user message, as chat templates take them."""
    return [
        {"role": "system", "content": SYSTEM_MESSAGE},
        {"role": "user", "content": user_message(observation)},
    ]


OWN_PROMPT = "tsc"
PROMPT_HELP = f"{OWN_PROMPT}, or a function of your own as pkg://module:function (docs/networks.md)"


def prompt_maker(name: str) -> PromptMaker:
    """What makes the prompts: `messages` for OWN_PROMPT, else the function of pkg://module:function.

    A user's function gets the Observation and returns the user's message, or a list of messages with role and content.
    Raises ConfigError for an unknown name, and when the function returns anything else.
    """
    if name == OWN_PROMPT:
        return messages
    if not is_user_function(name):
        raise ConfigError(f"prompt {name!r} is unknown: choose {PROMPT_HELP}")
    function = user_function(name, "prompt")

    def made(observation: Observation) -> Messages:
        value = function(observation)
        if isinstance(value, str):
            return [{"role": "user", "content": value}]
        if not isinstance(value, list) or not value or not all(map(_is_message, value)):
            raise ConfigError(f"prompt {name!r} returned {value!r}: must be a text, or messages with role and content")
        chat: Messages = value
        return chat

    return made


def _is_message(value: object) -> bool:
    return (
        isinstance(value, dict)
        and set(value) == {"role", "content"}
        and all(isinstance(text, str) for text in value.values())
    )


def prompt_version(name: str) -> str:
    """What a sample or a record says of the prompt. It changes with the text that the maker writes. Raises ConfigError
    if a user's function cannot be found."""
    return PROMPT_VERSION if name == OWN_PROMPT else f"{name} {source_sha256(name, 'prompt')[:12]}"
