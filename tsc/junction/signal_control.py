"""Holds and ends the greens of a simulation's junctions, and keeps their clocks.

A stage is held by a long remaining phase time and ended by a remaining time of zero. The program then runs through its
own yellow and all-red to the next stage. We never set a signal state of our own, so the program stays the net's, and a
saved state can be loaded again. A saved state does not say how long a phase has lasted, so the clocks are stored with
it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tsc.errors import ReplayError, ScenarioError, UnknownJunction
from tsc.junction.clock import Clock
from tsc.junction.decision import Decision
from tsc.junction.timing import Timing
from tsc.sumo.running import HOLD_S, RunningSumo
from tsc.sumo.signal_program import SignalProgram


@dataclass
class StageClock:
    """Where a running junction stands: green in `stage` since elapsed_green_s, or clearing on the way to the next
    stage."""

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
        """programs: the programs of the same net if they were read before; else they are read here. Raises
        ScenarioError for a net with nothing to control, and for a step length that is not one second."""
        if simulation.files.step_length_s != 1.0:
            raise ScenarioError(
                f"step length is {simulation.files.step_length_s:g} s: decisions fall on whole seconds, choose 1 s"
            )
        self.simulation = simulation
        self.timing = timing
        self.programs = dict(programs) if programs is not None else controllable_programs(simulation)
        self.clocks: dict[str, StageClock] = {}

    def start(self) -> None:
        """Take over at the begin of a simulation. A junction that starts in a stage is held in it from now on."""
        self.restore({})

    def restore(self, clocks: Mapping[str, Clock]) -> None:
        """Take over a loaded state with the clocks that were stored with it.

        Without a stored clock (a dataset of another generator), a junction is taken as SUMO shows it. If it is in a
        stage, that stage is held, and its green counts from 0 s.

        Raises ReplayError if a clock and the state contradict each other, and UnknownJunction for a clock of a junction
        that the net does not control.
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
                    green=stored.mode == "green", stage=stored.stage, elapsed_green_s=stored.elapsed_green_s
                )
                if clock.green and clock.stage != seen_stage:
                    raise ReplayError(
                        f"junction {junction_id!r}: the sample says green in stage {clock.stage}, but the saved state "
                        f"has phase {phase_index}: state and sample do not belong together"
                    )
                if not clock.green:
                    self.simulation.set_phase_remaining(junction_id, stored.phase_remaining_s)
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
        """End the greens whose decision is NO and those at their maximum."""
        for junction_id, clock in self.clocks.items():
            if clock.green and (
                decisions.get(junction_id) is Decision.NO or self.timing.is_max_out(clock.elapsed_green_s)
            ):
                self.simulation.set_phase_remaining(junction_id, 0.0)
                clock.green = False

    def after_step(self) -> None:
        """Hold the stages that have begun, and count the second that has passed."""
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
        """Hand the junctions back. Each green lasts as long as its program says, at least to its minimum; then the
        program runs on by itself."""
        for junction_id, clock in self.clocks.items():
            if clock.green:
                planned_s = max(self.programs[junction_id].stages[clock.stage].duration_s, self.timing.min_green_s)
                self.simulation.set_phase_remaining(junction_id, max(0.0, planned_s - clock.elapsed_green_s))

    def stored_clocks(self) -> dict[str, Clock]:
        """The clocks of all junctions, to be stored with a saved state."""
        return {
            junction_id: Clock(
                mode="green" if clock.green else "clearing",
                stage=clock.stage,
                elapsed_green_s=clock.elapsed_green_s,
                phase_remaining_s=0.0 if clock.green else max(0.0, self.simulation.phase_remaining_s(junction_id)),
            )
            for junction_id, clock in self.clocks.items()
        }

    def incoming_lanes(self, junction_ids: Sequence[str] | None = None) -> tuple[str, ...]:
        """Lanes on which vehicles approach these junctions (all by default), each once. SignalProgram says how far."""
        chosen = self.programs if junction_ids is None else junction_ids
        return tuple(dict.fromkeys(lane for name in chosen for lane in self.program(name).approach_lanes))


def controllable_programs(simulation: RunningSumo, *, switched_by_sumo: bool = False) -> dict[str, SignalProgram]:
    """The programs with at least two stages, in the net's order. Raises ScenarioError if there is none.

    switched_by_sumo: only SUMO will end their greens, so programs of any type are accepted.
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
