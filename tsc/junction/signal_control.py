"""Holds and ends the greens of a simulation's junctions, and keeps their clocks.

A stage is held by a long remaining phase time and ended by a remaining time of zero. The program then runs through its
own phases (pedestrian clearance, yellow, all-red) to the next stage. We never set a signal state of our own, so the
program stays the net's, and a saved state can be loaded again. A saved state does not say how long a stage has lasted,
so the clocks are stored with it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tsc.errors import ReplayError, ScenarioError, UnknownJunction, did_you_mean
from tsc.junction.clock import Clock
from tsc.junction.decision import Decision
from tsc.junction.timing import Timing
from tsc.sumo.running import HOLD_S, RunningSumo
from tsc.sumo.signal_program import MIN_STAGE_DURATION_S, SignalProgram


@dataclass
class StageClock:
    """Where a running junction stands: green in `stage` since elapsed_green_s, or clearing on the way to the next
    stage."""

    green: bool
    stage: int
    elapsed_green_s: float


@dataclass(frozen=True, kw_only=True)
class Signals:
    """The signals of a net. programs: of those that can be controlled, in the net's order. skipped: why not, of each
    other one."""

    programs: Mapping[str, SignalProgram]
    skipped: Mapping[str, str]


def read_signals(
    simulation: RunningSumo, *, switched_by_sumo: bool = False, junction_ids: Sequence[str] = ()
) -> Signals:
    """The programs that have at least two stages, and why the others are skipped.

    switched_by_sumo: only SUMO will end their greens, so programs of any type are accepted. junction_ids: read only
    these; empty means all. Raises UnknownJunction, and ScenarioError if nothing can be controlled.
    """
    signals = simulation.junction_ids()
    for name in junction_ids:
        if name not in signals:
            raise UnknownJunction(
                f"junction {name!r} has no signal in {simulation.files.net_file}: {did_you_mean(name, signals)}"
                f"the signals are {', '.join(signals) or 'none'}"
            )
    programs, skipped = {}, {}
    for name in signals:
        if junction_ids and name not in junction_ids:
            continue
        program = simulation.program(name)
        if reason := _why_not(program, switched_by_sumo=switched_by_sumo):
            skipped[name] = reason
        else:
            programs[name] = program
    if not programs:
        raise nothing_to_control(simulation.files.net_file, skipped)
    return Signals(programs=programs, skipped=skipped)


def _why_not(program: SignalProgram, *, switched_by_sumo: bool) -> str:
    """Why a program cannot be controlled, in words that follow the junction's name; empty if it can be."""
    if not program.incoming_lanes:
        return "does not signal a road"
    if len(program.stages) < 2:
        return (
            "has only one stage: always the same movements have green"
            if program.stages
            else f"has no stage of {MIN_STAGE_DURATION_S:g} s or more (a rail signal, or off)"
        )
    if program.type != "static" and not switched_by_sumo:
        return f"runs a program of type {program.type}, which SUMO itself switches"
    return ""


def skipped_lines(skipped: Mapping[str, str]) -> list[str]:
    """What to tell a user of the signals that are not controlled, one line for each reason."""
    names: dict[str, list[str]] = {}
    for name, reason in skipped.items():
        names.setdefault(reason, []).append(name)
    lines = []
    for reason, alike in names.items():
        more = f" and {len(alike) - 3} more" if len(alike) > 3 else ""
        lines.append(f"not controlled: {', '.join(alike[:3])}{more}: {reason}")
    return lines


def nothing_to_control(net_file: Path, skipped: Mapping[str, str]) -> ScenarioError:
    """The error for a net in which no signal can be controlled. skipped: why not, by junction."""
    if not skipped:
        return ScenarioError(f"{net_file} has no signal: give its junctions traffic lights (netconvert --tls.guess)")
    shown = "; ".join(f"{name} {reason}" for name, reason in list(skipped.items())[:5])
    more = f"; and {len(skipped) - 5} more" if len(skipped) > 5 else ""
    return ScenarioError(f"none of the {len(skipped)} signals of {net_file} can be controlled: {shown}{more}")


class SignalControl:
    """Controls junctions of a simulation. One cycle, each second:

        control.apply(decisions for control.due_junctions()); simulation.step(); control.after_step()

    or `advance(decisions)` for all three.
    """

    def __init__(
        self, simulation: RunningSumo, timing: Timing, programs: Mapping[str, SignalProgram] | None = None
    ) -> None:
        """timing: of stages whose program does not give them bounds of their own. programs: those to control if they
        were read before; else all of the net are read. Raises ScenarioError for a net with nothing to control."""
        self.simulation = simulation
        self.timing = timing
        self.programs = dict(programs if programs is not None else read_signals(simulation).programs)
        self.clocks: dict[str, StageClock] = {}
        self._timings = {
            name: tuple(timing.within(stage.green_bounds) for stage in program.stages)
            for name, program in self.programs.items()
        }

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

    def timing_of(self, junction_id: str) -> Timing:
        """The timing of the junction's present stage."""
        return self._timings[junction_id][self.clocks[junction_id].stage]

    def due_junctions(self, step_s: int | None = None) -> list[str]:
        """Junctions at a decision point this second, in the net's order. step_s: between decision points, instead of
        green_extension_s."""
        return [
            junction_id
            for junction_id, clock in self.clocks.items()
            if clock.green and self._timings[junction_id][clock.stage].is_decision_point(clock.elapsed_green_s, step_s)
        ]

    def apply(self, decisions: Mapping[str, Decision]) -> None:
        """End the greens whose decision is NO and those at their maximum."""
        for junction_id, clock in self.clocks.items():
            if clock.green and (
                decisions.get(junction_id) is Decision.NO
                or self._timings[junction_id][clock.stage].is_max_out(clock.elapsed_green_s)
            ):
                self._leave(junction_id, remaining_s=0.0)
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

    def _leave(self, junction_id: str, *, remaining_s: float) -> None:
        """Let the present stage end after remaining_s."""
        held = self.programs[junction_id].stages[self.clocks[junction_id].stage].phase_indices
        if len(held) > 1:  # the phases that follow would only repeat the stage
            self.simulation.set_phase_index(junction_id, held[-1])
        self.simulation.set_phase_remaining(junction_id, remaining_s)

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
                stage = self.programs[junction_id].stages[clock.stage]
                planned_s = max(stage.duration_s, self.timing_of(junction_id).min_green_s)
                self._leave(junction_id, remaining_s=max(0.0, planned_s - clock.elapsed_green_s))

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
