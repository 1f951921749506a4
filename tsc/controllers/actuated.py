"""SUMO's own vehicle-actuated control: detectors end each stage, between its minimum and maximum green."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

from tsc.sumo.signal_program import SignalPlan

DetectorControl = Literal["actuated", "delay_based"]


def detector_plan(plan: SignalPlan, control: DetectorControl) -> SignalPlan:
    """The plan, whose stages may end anywhere within their green_bounds. The phases between the stages keep their
    duration.

    All parameters are SUMO's defaults. `actuated` ends a green when no vehicle has passed the detectors of its lanes
    for 3 s (max-gap); the detectors lie 2 s of travel before the stop line (detector-gap). `delay_based` continues a
    green while a vehicle that has lost more than 1 s (minTimeLoss) on the last 100 m (detectorRange) can still pass.
    https://sumo.dlr.de/docs/Simulation/Traffic_Lights.html
    """
    bounds = {held[0]: of_stage for held, of_stage in zip(plan.held_phases, plan.green_bounds, strict=True)}
    phases = []
    for index, phase in enumerate(plan.phases):
        shortest_s, longest_s = bounds.get(index, (phase.duration_s, phase.duration_s))
        phases.append(replace(phase, min_duration_s=shortest_s, max_duration_s=longest_s))
    return replace(plan, type=control, program_id=f"tsc_{control}", phases=tuple(phases))
