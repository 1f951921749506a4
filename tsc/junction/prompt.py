"""The prompt: the one place where an observation becomes text, unless a user's own function makes it.

A prompt's version stands in every sample; change it with any change of the text, since a model is trained on one text.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from tsc.errors import ConfigError
from tsc.junction.decision import Decision
from tsc.junction.observation import Observation, StageObservation
from tsc.user_code import is_user_function, source_sha256, user_function

Messages = list[dict[str, str]]
PromptMaker = Callable[[Observation], Messages]

PROMPT_VERSION = "1"
CHINESE_PROMPT_VERSION = "tsc_zh 1"

# more room than this downstream decides nothing, and a third digit would cost every prompt a token a stage
MAX_SPACE_VEH = 99


@dataclass(frozen=True, kw_only=True)
class Wording:
    """The texts of a prompt in one language.

    question: of the observation `seen`. stage: of one of its stages, with its name and the space downstream.
    """

    version: str
    system: str
    question: str
    stage: str
    green: str
    next: str
    red: str


ENGLISH = Wording(
    version=PROMPT_VERSION,
    system=(
        "You run the traffic signal of one junction and keep its queues short. "
        "Shall the current green be extended? "
        f"Answer only {Decision.YES.answer} or {Decision.NO.answer}."
    ),
    question=(
        "Green for {seen.elapsed_green_s} s ({seen.min_green_s} to {seen.max_green_s} s). "
        "Extend by {seen.green_extension_s} s? Vehicles:"
    ),
    stage=(
        "{name}: queue {stage.queue_veh} moving near {stage.moving_near_veh} mid {stage.moving_mid_veh} "
        "far {stage.moving_far_veh} wait {stage.longest_wait_s} s space {space_veh}"
    ),
    green="green",
    next="next",
    red="red",
)
CHINESE = Wording(
    version=CHINESE_PROMPT_VERSION,
    system=(
        "你控制一个路口的交通信号灯，让排队尽量短。是否延长当前绿灯？"
        f"只回答 {Decision.YES.answer} 或 {Decision.NO.answer}。"
    ),
    question=(
        "绿灯已亮 {seen.elapsed_green_s} 秒（{seen.min_green_s} 至 {seen.max_green_s} 秒）。"
        "是否延长 {seen.green_extension_s} 秒？车辆数："
    ),
    stage=(
        "{name}：排队 {stage.queue_veh} 行驶 近 {stage.moving_near_veh} 中 {stage.moving_mid_veh} "
        "远 {stage.moving_far_veh} 等待 {stage.longest_wait_s} 秒 空位 {space_veh}"
    ),
    green="绿灯",
    next="下一个",
    red="红灯",
)
SYSTEM_MESSAGE = ENGLISH.system


def _stage_line(wording: Wording, name: str, stage: StageObservation) -> str:
    return wording.stage.format(name=name, stage=stage, space_veh=min(stage.downstream_space_veh, MAX_SPACE_VEH))


def user_message(observation: Observation, wording: Wording = ENGLISH) -> str:
    """Counts are vehicles, space at most MAX_SPACE_VEH; the current stage first, then the red ones in the order they
    will be served."""
    current, *red = observation.stages
    lines = [wording.question.format(seen=observation), _stage_line(wording, wording.green, current)]
    lines += [_stage_line(wording, wording.red if number else wording.next, stage) for number, stage in enumerate(red)]
    return "\n".join(lines)


def messages(observation: Observation, wording: Wording = ENGLISH) -> Messages:
    """System and user message, as chat templates take them."""
    return [
        {"role": "system", "content": wording.system},
        {"role": "user", "content": user_message(observation, wording)},
    ]


OWN_PROMPT = "tsc"
WORDINGS = {OWN_PROMPT: ENGLISH, "tsc_zh": CHINESE}
PROMPT_HELP = "tsc, tsc_zh (the same in Chinese), or a function of your own as pkg://module:function (docs/networks.md)"


def prompt_maker(name: str) -> PromptMaker:
    """What makes the prompts: `messages` in one of WORDINGS, or the function of pkg://module:function.

    A user's function gets the Observation and returns the user's message, or a list of messages with role and content.
    Raises ConfigError for an unknown name, and when the function returns anything else.
    """
    if name in WORDINGS:
        return partial(messages, wording=WORDINGS[name])
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
    if name in WORDINGS:
        return WORDINGS[name].version
    return f"{name} {source_sha256(name, 'prompt')[:12]}"
