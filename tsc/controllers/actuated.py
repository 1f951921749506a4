"""SUMO's own vehicle-actuated control: detectors end each stage, between the common minimum and maximum green."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

from tsc.junction.timing import Timing
from tsc.sumo.signal_program import SignalPlan

DetectorControl = Literal["actuated", "delay_based"]


def detector_plan(plan: SignalPlan, control: DetectorControl, timing: Timing) -> SignalPlan:
    """A static plan whose stages may end anywhere between min_green_s and max_green_s. The phases between the stages
    keep their duration.

    All parameters are SUMO's defaults. `actuated` ends a green when no vehicle has passed the detectors of its lanes
    for 3 s (max-gap); the detectors lie 2 s of travel before the stop line (detector-gap). `delay_based` continues a
    green while a vehicle that has lost more than 1 s (minTimeLoss) on the last 100 m (detectorRange) can still pass.
    https://sumo.dlr.de/docs/Simulation/Traffic_Lights.html
    """
    phases = tuple(
        replace(phase, min_duration_s=timing.min_green_s, max_duration_s=timing.max_green_s)
        if phase.is_stage
        else replace(phase, min_duration_s=phase.duration_s, max_duration_s=phase.duration_s)
        for phase in plan.phases
    )
    return replace(plan, type=control, program_id=f"tsc_{control}", phases=phases)
