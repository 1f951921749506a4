"""The prompt: the one place where an observation becomes text.

PROMPT_VERSION stands in every sample; change it with any change of the text, since a model is trained on one text.
"""

from __future__ import annotations

from tsc.junction.decision import Decision
from tsc.junction.observation import Observation, StageObservation

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


def messages(observation: Observation) -> list[dict[str, str]]:
    """System and user message, as chat templates take them."""
    return [
        {"role": "system", "content": SYSTEM_MESSAGE},
        {"role": "user", "content": user_message(observation)},
    ]
