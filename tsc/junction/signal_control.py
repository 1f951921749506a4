"""Holds and ends the greens of a simulation's junctions, and keeps their clocks.

A stage is held by a long remaining phase time and ended by a remaining time of zero; the program then runs through its
own yellow and all-red to the next stage. No signal state of ours is ever set, so the program stays the net's own and a
saved state loads again. SUMO forgets in a state how long a phase has lasted; the clocks here are what is stored.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tsc.errors import ReplayError, ScenarioError, UnknownJunction
from tsc.junction.decision import Decision
from tsc.junction.timing import Timing
from tsc.sumo.running import HOLD_S, RunningSumo
from tsc.sumo.signal_program import SignalProgram


@dataclass
class StageClock:
    """Where a junction stands: `green` for elapsed_green_s in `stage`, or clearing on the way to the next stage."""

    green: bool
    stage: int
    elapsed_green_s: float


class SignalControl:
    """Controls every junction of a simulation that has at least two stages. One cycle, each second:

        control.apply(decisions for control.due_junctions()); simulation.step(); control.after_step()

    or `advance(decisions)` for all three.
    """

    def __init__(
        self, simulation: RunningSumo, timing: Timing, programs: Mapping[str, SignalProgram] | None = None
    ) -> None:
        """programs: as read before from the same net, to save reading them again. Raises ScenarioError for a net with
        nothing to control or a step length that is not one second."""
        if simulation.files.step_length_s != 1.0:
            raise ScenarioError(
                f"step length is {simulation.files.step_length_s:g} s: decisions fall on whole seconds, choose 1 s"
            )
        self.simulation = simulation
        self.timing = timing
        self.programs = dict(programs) if programs is not None else controllable_programs(simulation)
        self.clocks: dict[str, StageClock] = {}

    def start(self) -> None:
        """Take over at the begin of a simulation: a junction that starts in a stage has it held from now."""
        for junction_id, program in self.programs.items():
            stage = program.stage_of_phase(self.simulation.phase_index(junction_id))
            self.clocks[junction_id] = StageClock(green=stage is not None, stage=stage or 0, elapsed_green_s=0.0)
            if stage is not None:
                self.simulation.set_phase_remaining(junction_id, HOLD_S)

    def restore(self, clocks: Mapping[str, Mapping[str, Any]]) -> None:
        """Take over a loaded state with the clocks stored beside it.

        A junction without a stored clock (a dataset of another generator) is taken as SUMO shows it: in a stage, held,
        with the green time that SUMO remembers. Raises ReplayError where clock and state contradict each other, and
        UnknownJunction for a clock of a junction that the net does not control.
        """
        for junction_id in clocks:
            self.program(junction_id)
        for junction_id, program in self.programs.items():
            phase_index = self.simulation.phase_index(junction_id)
            seen_stage = program.stage_of_phase(phase_index)
            stored = clocks.get(junction_id)
            if stored is None:
                green = seen_stage is not None
                clock = StageClock(green=green, stage=seen_stage or 0, elapsed_green_s=0.0)
            else:
                clock = StageClock(
                    green=stored["mode"] == "green",
                    stage=int(stored["stage"]),
                    elapsed_green_s=float(stored["elapsed_green_s"]),
                )
                if clock.green and clock.stage != seen_stage:
                    raise ReplayError(
                        f"junction {junction_id!r}: the sample says green in stage {clock.stage}, but the saved state "
                        f"has phase {phase_index}: state and sample do not belong together"
                    )
                if not clock.green:
                    self.simulation.set_phase_remaining(junction_id, float(stored["phase_remaining_s"]))
            if clock.green:
                self.simulation.set_phase_remaining(junction_id, HOLD_S)
            self.clocks[junction_id] = clock

    def program(self, junction_id: str) -> SignalProgram:
        """Raises UnknownJunction."""
        try:
            return self.programs[junction_id]
        except KeyError:
            raise UnknownJunction(
                f"junction {junction_id!r} is not controlled in {self.simulation.files.net_file}: "
                f"choose one of {', '.join(sorted(self.programs))}"
            ) from None

    def due_junctions(self) -> list[str]:
        """Junctions at a decision point this second, in the net's order."""
        return [
            junction_id
            for junction_id, clock in self.clocks.items()
            if clock.green and self.timing.is_decision_point(clock.elapsed_green_s)
        ]

    def apply(self, decisions: Mapping[str, Decision]) -> None:
        """End the greens that are decided against and those at their maximum."""
        for junction_id, clock in self.clocks.items():
            if clock.green and (
                decisions.get(junction_id) is Decision.NO or self.timing.is_max_out(clock.elapsed_green_s)
            ):
                self.simulation.set_phase_remaining(junction_id, 0.0)
                clock.green = False

    def after_step(self) -> None:
        """Read which stages have begun, hold them, and count the second that has passed."""
        for junction_id, clock in self.clocks.items():
            if clock.green:
                clock.elapsed_green_s += 1.0
                continue
            stage = self.programs[junction_id].stage_of_phase(self.simulation.phase_index(junction_id))
            if stage is not None:
                # the phase began at the start of the step that has just ended
                clock.green, clock.stage, clock.elapsed_green_s = True, stage, 1.0
                self.simulation.set_phase_remaining(junction_id, HOLD_S)

    def advance(self, decisions: Mapping[str, Decision]) -> None:
        """One second: apply, step, read."""
        self.apply(decisions)
        self.simulation.step()
        self.after_step()

    def release(self) -> None:
        """Hand the junctions back: each green goes on for as long as its program still gives it, at least to its
        minimum, and the program runs on by itself."""
        for junction_id, clock in self.clocks.items():
            if clock.green:
                planned_s = max(self.programs[junction_id].stages[clock.stage].duration_s, self.timing.min_green_s)
                self.simulation.set_phase_remaining(junction_id, max(0.0, planned_s - clock.elapsed_green_s))

    def stored_clocks(self) -> dict[str, dict[str, Any]]:
        """The clocks as they are written beside a saved state."""
        return {
            junction_id: {
                "mode": "green" if clock.green else "clearing",
                "stage": clock.stage,
                "elapsed_green_s": clock.elapsed_green_s,
                "phase_remaining_s": 0.0 if clock.green else max(0.0, self.simulation.phase_remaining_s(junction_id)),
            }
            for junction_id, clock in self.clocks.items()
        }

    def incoming_lanes(self, junction_ids: Sequence[str] | None = None) -> tuple[str, ...]:
        """Lanes on which some or all controlled junctions are approached (SignalProgram says how far), each once."""
        chosen = self.programs if junction_ids is None else junction_ids
        return tuple(dict.fromkeys(lane for name in chosen for lane in self.program(name).approach_lanes))


def controllable_programs(simulation: RunningSumo, *, switched_by_sumo: bool = False) -> dict[str, SignalProgram]:
    """The programs with at least two stages, in the net's order. Raises ScenarioError where there is none.

    switched_by_sumo: nobody but SUMO will end their greens, so programs of any type will do.
    """
    programs = {
        junction_id: simulation.program(junction_id, switched_by_sumo=switched_by_sumo)
        for junction_id in simulation.junction_ids()
    }
    controllable = {name: program for name, program in programs.items() if program.is_controllable}
    if not controllable:
        raise ScenarioError(
            f"{simulation.files.net_file} has no signal with two stages to choose between "
            f"({len(programs)} signals in all): give its junctions traffic lights (netconvert --tls.guess)"
        )
    return controllable
