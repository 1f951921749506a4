"""The continuations of all decisions of a running simulation, where none is simulated twice."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

from tsc.cost.continuation import Continuation, CostMeter, check_decision_point, continue_with
from tsc.cost.outcome import OutcomeSettings, import_measures
from tsc.junction.decision import Decision
from tsc.junction.signal_control import SignalControl
from tsc.rules.tail import Tail
from tsc.sumo.fork import ForkedCall
from tsc.sumo.simulation import detach_outputs_of_fork

Result = TypeVar("Result")

# How many of the following decisions a fork also serves. Episodes more often follow the answers that the tail gives.
NEXT_WITH_TAILS_ANSWER = 4
NEXT_WITH_OTHER_ANSWER = 1


@dataclass(frozen=True, kw_only=True)
class _Next:
    """The continuation of a later decision, at time_s, with the answer that the tail gives there."""

    time_s: float
    answer: Decision
    continuation: Continuation


class SharedContinuations:
    """Continues a running simulation with both answers of its due junctions, in forked copies. The simulation itself
    does not move. The results are those of tsc.cost.continuation.continuations_by_fork, to the last bit.

    Continuations are the same as long as only the tail decides:

    - Several junctions are due in one second. A fork in which the tail decides for all of them is the continuation of
      each with the answer that the tail gives.
    - The net has one junction. A fork simulates further, until the horizon of the next decisions has passed. If the
      episode gives the same answers (`chose` says so), these decisions are known with the tail's answer. This needs a
      tail that remembers nothing, because each tested decision has a new tail.

    The tail leaves a tested junction alone until its next decision point. Where it would have ended such a green, the
    continuation is not shared. Use this only in processes without other threads.
    """

    def __init__(self, control: SignalControl, settings: OutcomeSettings) -> None:
        """Raises ConfigError for a measure that cannot be imported, or a tail_step_s that does not fit."""
        import_measures(settings)
        self._control = control
        self._settings = settings
        self._goes_on = len(control.programs) == 1 and not _new_tail(control, settings).remembers
        # of the way that the episode is on; and of the ways from the present decision, by its answer
        self._ahead: tuple[_Next, ...] = ()
        self._ahead_by_answer: dict[Decision, tuple[_Next, ...]] = {}

    def of(self, junction_ids: Sequence[str]) -> dict[str, dict[Decision, Continuation]]:
        """The continuations of each of these due junctions, by the answer. Raises ReplayError."""
        for name in junction_ids:
            check_decision_point(self._control, name)
        self._ahead_by_answer = self._known_ahead()
        if len(junction_ids) == 1:
            return {name: self._of_one(name) for name in junction_ids}
        return self._of_several(junction_ids) if junction_ids else {}

    def chose(self, answers: Mapping[str, Decision]) -> None:
        """Say which answers the episode takes now. Call it for every second in which a junction is due."""
        if self._goes_on and answers:
            (answer,) = answers.values()
            self._ahead = (self._ahead_by_answer or self._known_ahead()).get(answer, ())
            self._ahead_by_answer = {}

    def _known_ahead(self) -> dict[Decision, tuple[_Next, ...]]:
        """What is known of the present decision's way with the tail's answer."""
        if not self._ahead or self._ahead[0].time_s != self._control.simulation.time_s:
            return {}
        return {self._ahead[0].answer: self._ahead[1:]}

    def _of_one(self, junction_id: str) -> dict[Decision, Continuation]:
        known = {answer: self._ahead[0].continuation for answer in self._ahead_by_answer}  # noqa: C420
        tails_answer = _new_tail(self._control, self._settings).decide()[junction_id]
        calls: dict[Decision, ForkedCall[tuple[Continuation, tuple[_Next, ...]]]] = {}
        for answer in Decision:
            if answer not in known:
                count = NEXT_WITH_TAILS_ANSWER if answer is tails_answer else NEXT_WITH_OTHER_ANSWER
                count = count if self._goes_on else 0
                calls[answer] = _forked(
                    partial(_and_next, self._control, junction_id, answer, self._settings, count=count)
                )
        for answer, call in calls.items():
            known[answer], self._ahead_by_answer[answer] = call.result()
        return {answer: known[answer] for answer in Decision}

    def _of_several(self, junction_ids: Sequence[str]) -> dict[str, dict[Decision, Continuation]]:
        control, settings = self._control, self._settings
        tails_answers = _new_tail(control, settings).decide()
        by_tail = _forked(partial(_by_tail_alone, control, tuple(junction_ids), settings))
        known = self._each((name, tails_answers[name].other) for name in junction_ids)
        known |= {(name, tails_answers[name]): each for name, each in by_tail.result().items()}
        wanted = [(name, tails_answers[name]) for name in junction_ids]
        known |= self._each(key for key in wanted if key not in known)
        return {name: {answer: known[name, answer] for answer in Decision} for name in junction_ids}

    def _each(self, tested: Iterable[tuple[str, Decision]]) -> dict[tuple[str, Decision], Continuation]:
        """Each in a fork of its own, two at a time: hundreds of junctions may be due together."""
        known: dict[tuple[str, Decision], Continuation] = {}
        before: tuple[tuple[str, Decision], ForkedCall[Continuation]] | None = None
        for key in tested:
            call = _forked(partial(continue_with, self._control, *key, self._settings))
            if before is not None:
                known[before[0]] = before[1].result()
            before = (key, call)
        if before is not None:
            known[before[0]] = before[1].result()
        return known


def _forked(function: partial[Result]) -> ForkedCall[Result]:
    def call() -> Result:
        detach_outputs_of_fork()
        return function()

    return ForkedCall(call)


def _new_tail(control: SignalControl, settings: OutcomeSettings) -> Tail:
    return Tail(control, settings.tail, settings.tail_step_s)


class _FreeTail:
    """The continuation of a junction's decision with the answer of the tail, while the tail decides as if nobody had
    tested the junction.

    is_tested_one: whether it is also the continuation of the tested decision. It is not if the tail ended a green that
    it would have had to leave alone.
    """

    def __init__(self, control: SignalControl, junction_id: str, settings: OutcomeSettings, answer: Decision) -> None:
        self.junction_id = junction_id
        self.is_tested_one = True
        self._control = control
        self._answer = answer
        self._time_s = control.simulation.time_s
        self._meter = CostMeter(control, junction_id, settings)
        self._seconds_left = settings.horizon_s
        self._left_alone = answer is Decision.YES
        self._end: str | None = None

    def after_second(self, answers: Mapping[str, Decision]) -> None:
        """answers: what the tail decides next."""
        if self.is_over:
            return
        self._meter.read()
        self._seconds_left -= 1
        if self._seconds_left == 0:
            self._end = self._control.simulation.traffic_digest()
        if self._left_alone:
            # as Tail does
            green = self._control.clocks[self.junction_id].green
            if not green or self.junction_id in self._control.due_junctions():
                self._left_alone = False
            elif answers.get(self.junction_id) is Decision.NO:
                self.is_tested_one = False

    @property
    def is_over(self) -> bool:
        return self._end is not None

    @property
    def continuation(self) -> Continuation:
        assert self._end is not None
        return Continuation(costs=self._meter.costs, end=self._end)

    @property
    def next(self) -> _Next:
        return _Next(time_s=self._time_s, answer=self._answer, continuation=self.continuation)


def _by_tail_alone(
    control: SignalControl, junction_ids: Sequence[str], settings: OutcomeSettings
) -> dict[str, Continuation]:
    """Of those junctions of which it is the continuation."""
    tail = _new_tail(control, settings)
    answers = tail.decide()
    found = [_FreeTail(control, name, settings, answers[name]) for name in junction_ids]
    for _ in range(settings.horizon_s):
        control.advance(answers)
        answers = tail.decide()
        for each in found:
            each.after_second(answers)
    return {each.junction_id: each.continuation for each in found if each.is_tested_one}


def _and_next(
    control: SignalControl, junction_id: str, answer: Decision, settings: OutcomeSettings, count: int
) -> tuple[Continuation, tuple[_Next, ...]]:
    """The continuation of a decision, and those of the next `count` decisions on its way."""
    found: list[_FreeTail] = []
    answers: Mapping[str, Decision] = {}

    def on_second() -> None:
        nonlocal answers
        if count == 0:
            return
        answers = _new_tail(control, settings).decide()
        for each in found:
            each.after_second(answers)
        if len(found) < count and junction_id in control.due_junctions():
            found.append(_FreeTail(control, junction_id, settings, answers[junction_id]))

    continuation = continue_with(control, junction_id, answer, settings, on_second=on_second)
    while not all(each.is_over for each in found):
        control.advance(answers)
        on_second()
    return continuation, tuple(each.next for each in itertools.takewhile(lambda each: each.is_tested_one, found))
