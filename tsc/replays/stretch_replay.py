"""Plays a stretch of decisions (tsc.replays.stretch) from a saved state, in a worker process as tsc.replays.replay.

A policy takes its time to answer, and SUMO runs one simulation a process. So no simulation waits for an answer. Each
question is found by a replay of the state with the decisions so far. This is exact and takes hundredths of a second. A
few worker processes serve any number of stretches, and an abandoned stretch leaves nothing behind.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from tsc.cost.continuation import CostMeter, check_decision_point
from tsc.cost.outcome import OutcomeSettings, import_measures
from tsc.errors import ReplayError
from tsc.junction.decision import Decision
from tsc.junction.observation import observe
from tsc.junction.prompt import OWN_PROMPT, PromptMaker, prompt_maker
from tsc.junction.signal_control import SignalControl
from tsc.replays.replay import continue_state
from tsc.replays.request import ReplayRequest
from tsc.replays.stretch import MAX_DECISIONS, Question, Stretch, StretchProgress
from tsc.rules.static import Static
from tsc.rules.tail import Tail


def play(
    request: ReplayRequest,
    settings: OutcomeSettings,
    *,
    decisions: Sequence[str | None],
    num_decisions: int,
    prompt: str = OWN_PROMPT,
) -> StretchProgress:
    """Continue the saved state with `decisions`: the next question, or after the last decision the whole stretch.

    decisions: "yes", "no", or None for an unreadable answer, in whose place the net's own plan decides.
    num_decisions: decisions of the policy, 1 to MAX_DECISIONS. prompt: the name of what makes the questions' prompts
    (tsc.junction.prompt). The same arguments give the same result, in any process
    and any order.

    Raises what tsc.replays.replay.continue_state raises, and ReplayError for more decisions than the stretch has.
    """
    if not 1 <= num_decisions <= MAX_DECISIONS:
        raise ReplayError(f"num_decisions is {num_decisions}: choose 1–{MAX_DECISIONS}")
    import_measures(settings)
    made = [Decision(decision) if decision is not None else None for decision in decisions]
    policy = partial(_policy_decides, request.junction_id, made, num_decisions, settings, prompt_maker(prompt))
    (reached,) = continue_state(request, [policy], length_s=num_decisions * settings.horizon_s)
    if isinstance(reached, Question):
        return StretchProgress(question=reached)
    num_made, length_s, costs, end = reached
    tail = partial(_tail_decides, request.junction_id, length_s, settings)
    (tail_costs,) = continue_state(request, [tail], length_s=length_s)
    return StretchProgress(
        stretch=Stretch(num_decisions=num_made, length_s=length_s, costs=costs, tail_costs=tail_costs, end=end)
    )


def _policy_decides(
    junction_id: str,
    decisions: Sequence[Decision | None],
    num_decisions: int,
    settings: OutcomeSettings,
    messages: PromptMaker,
    control: SignalControl,
) -> Question | tuple[int, int, tuple[float, ...], str]:
    """The next question, or after the last decision: number of decisions, seconds, costs and end of the stretch."""
    check_decision_point(control, junction_id)
    tail, plan = Tail(control, settings.tail, settings.tail_step_s), Static()
    meter = CostMeter(control, junction_id, settings)
    num_made = second = end_s = 0
    while second < end_s or num_made == 0:
        # datasets of other generators may begin between our decision points
        is_due = second == 0 or junction_id in control.due_junctions()
        if is_due and num_made < num_decisions:
            if num_made == len(decisions):
                prompt = tuple(messages(observe(control, junction_id)))
                return Question(prompt=prompt, time_s=control.simulation.time_s)
            decision = decisions[num_made] or plan.decide(control, [junction_id])[junction_id]
            num_made += 1
            end_s = second + settings.horizon_s
            now = {**tail.decide(decided=junction_id), junction_id: decision}
        else:
            now = tail.decide()
        control.advance(now)
        meter.read()
        second += 1
    if num_made < len(decisions):
        raise ReplayError(
            f"{len(decisions)} decisions for junction {junction_id!r}, but the stretch has {num_made}: no further "
            f"decision point comes within {settings.horizon_s} s"
        )
    return num_made, second, meter.costs, control.simulation.traffic_digest()


def _tail_decides(
    junction_id: str, length_s: int, settings: OutcomeSettings, control: SignalControl
) -> tuple[float, ...]:
    """The costs of length_s seconds in which the tail controller decides everything."""
    tail = Tail(control, settings.tail, settings.tail_step_s)
    meter = CostMeter(control, junction_id, settings)
    for second in range(length_s):
        control.advance(tail.decide(also=() if second else [junction_id]))
        meter.read()
    return meter.costs
