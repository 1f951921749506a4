"""The prompt: the one place where an observation becomes text, unless a user's own function makes it.

A prompt's version stands in every sample; change it with any change of the text, since a model is trained on one text.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from tsc.errors import ConfigError
from tsc.junction.decision import Decision
from tsc.junction.observation import ApproachObservation, Observation
from tsc.user_code import is_user_function, source_sha256, user_function

Messages = list[dict[str, str]]
PromptMaker = Callable[[Observation], Messages]

PROMPT_VERSION = "2"
CHINESE_PROMPT_VERSION = "tsc_zh 2"

# more room than this downstream decides nothing, and a third digit would cost every prompt a token a stage
MAX_SPACE_VEH = 99


@dataclass(frozen=True, kw_only=True)
class Wording:
    """The texts of a prompt in one language.

    question: of the observation `seen`, up to the vehicles. of_stages, of_lanes: what the lines stand for, stages or
    lane groups. line: of one of these, with its name and the space downstream. green, next, red, later: the names of
    stages; later has the place in the order. joint: stands between the stages of a lane group.
    """

    version: str
    system: str
    question: str
    of_stages: str
    of_lanes: str
    line: str
    green: str
    next: str
    red: str
    later: str
    joint: str


ENGLISH = Wording(
    version=PROMPT_VERSION,
    system=(
        "You run the traffic signal of one junction and keep its queues short. "
        "Shall the current green be extended? "
        f"Answer only {Decision.YES.answer} or {Decision.NO.answer}."
    ),
    question=(
        "Green for {seen.elapsed_green_s} s ({seen.min_green_s} to {seen.max_green_s} s). "
        "Extend by {seen.green_extension_s} s? "
    ),
    of_stages="Vehicles:",
    of_lanes="Vehicles by the stages that serve their lanes:",
    line=(
        "{name}: queue {lanes.queue_veh} moving near {lanes.moving_near_veh} mid {lanes.moving_mid_veh} "
        "far {lanes.moving_far_veh} wait {lanes.longest_wait_s} s space {space_veh}"
    ),
    green="green",
    next="next",
    red="red",
    later="stage {place}",
    joint=", ",
)
CHINESE = Wording(
    version=CHINESE_PROMPT_VERSION,
    system=(
        "你控制一个路口的交通信号灯，让排队尽量短。是否延长当前绿灯？"
        f"只回答 {Decision.YES.answer} 或 {Decision.NO.answer}。"
    ),
    question=(
        "绿灯已亮 {seen.elapsed_green_s} 秒（{seen.min_green_s} 至 {seen.max_green_s} 秒）。"
        "是否延长 {seen.green_extension_s} 秒？"
    ),
    of_stages="车辆数：",
    of_lanes="车辆数，按服务其车道的相位：",
    line=(
        "{name}：排队 {lanes.queue_veh} 行驶 近 {lanes.moving_near_veh} 中 {lanes.moving_mid_veh} "
        "远 {lanes.moving_far_veh} 等待 {lanes.longest_wait_s} 秒 空位 {space_veh}"
    ),
    green="绿灯",
    next="下一个",
    red="红灯",
    later="相位 {place}",
    joint="、",
)
SYSTEM_MESSAGE = ENGLISH.system


def user_message(observation: Observation, wording: Wording = ENGLISH) -> str:
    """Counts are vehicles, space at most MAX_SPACE_VEH. Where each stage has lanes of its own, there is a line for each
    stage: the current one first, then the red ones in the order they will be served. Else there is a line for each lane
    group, named by the stages that serve it."""
    question = wording.question.format(seen=observation)
    if observation.lane_groups:
        later = [wording.later.format(place=turn + 1) for turn in range(2, len(observation.stages))]
        names = [wording.green, wording.next, *later]
        lines = [question + wording.of_lanes]
        for group in observation.lane_groups:
            lines.append(_line(wording, wording.joint.join(names[turn] for turn in group.turns), group))
        return "\n".join(lines)
    names = [wording.green, wording.next, *[wording.red] * len(observation.stages)]
    lines = [_line(wording, name, stage) for name, stage in zip(names, observation.stages, strict=False)]
    return "\n".join([question + wording.of_stages, *lines])


def _line(wording: Wording, name: str, lanes: ApproachObservation) -> str:
    return wording.line.format(name=name, lanes=lanes, space_veh=min(lanes.downstream_space_veh, MAX_SPACE_VEH))


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
