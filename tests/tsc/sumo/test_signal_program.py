from tsc.sumo.signal_program import Phase, SignalPlan, SignalProgram, build_program, held_phases

# a hand-written four-armed junction: link 0 from the north, 1 from the east, 2 from the south, 3 a left turn from the
# north that has the lane of link 0
LINKS = [[("n_0", "s_out")], [("e_0", "w_out")], [("s_0", "n_out")], [("n_0", "e_out")]]
PHASES = [
    Phase(state="GrGg", duration_s=31),
    Phase(state="yryy", duration_s=4),
    Phase(state="rrrG", duration_s=3),  # a turn-clearance sliver
    Phase(state="rrry", duration_s=3),
    Phase(state="rGrr", duration_s=20),
    Phase(state="ryrr", duration_s=4),
    Phase(state="rrrr", duration_s=2),
]


def _program(phases: list[Phase]) -> SignalProgram:
    plan = SignalPlan(
        junction_id="J",
        program_id="0",
        type="static",
        offset_s=0,
        phases=tuple(phases),
        is_for_vehicles=(True,) * len(LINKS),
    )
    return build_program(plan, LINKS, {})


def test_stages_are_the_long_greens_without_yellow() -> None:
    program = _program(PHASES)
    assert [stage.phase_indices for stage in program.stages] == [(0,), (4,)]


def test_a_stage_has_the_lanes_of_its_green_links_each_once_in_link_order() -> None:
    program = _program(PHASES)
    assert program.stages[0].incoming_lanes == ("n_0", "s_0")
    assert program.stages[0].outgoing_lanes == ("s_out", "n_out", "e_out")
    assert program.stages[1].incoming_lanes == ("e_0",)
    assert program.incoming_lanes == ("n_0", "e_0", "s_0")


def test_phases_between_stages_belong_to_no_stage() -> None:
    program = _program(PHASES)
    assert [program.stage_of_phase(index) for index in range(7)] == [0, None, None, None, 1, None, None]
    assert program.next_stage(1) == 0


def _phases(*states_and_durations: tuple[str, float]) -> list[Phase]:
    return [Phase(state=state, duration_s=duration_s) for state, duration_s in states_and_durations]


def _held(*states_and_durations: tuple[str, float], pedestrians: int = 0) -> list[tuple[int, ...]]:
    """The last `pedestrians` letters of each state are crossings."""
    num_links = len(states_and_durations[0][0])
    vehicles = [index < num_links - pedestrians for index in range(num_links)]
    return held_phases(_phases(*states_and_durations), vehicles)


def test_phases_with_the_same_signals_are_one_stage() -> None:
    """As in Bologna: a green in three phases. To end it in the first would lead to the same green again."""
    assert _held(("Gr", 20), ("Gr", 6), ("Gr", 4), ("yr", 4), ("rG", 30), ("ry", 4)) == [(0, 1, 2), (4,)]


def test_the_last_and_the_first_phase_can_be_one_stage() -> None:
    assert _held(("Gr", 20), ("yr", 4), ("rG", 30), ("ry", 4), ("Gr", 6)) == [(2,), (4, 0)]


def test_a_pedestrian_clearance_in_which_the_cars_stay_green_is_part_of_the_transition() -> None:
    states = (("GrG", 30), ("Grr", 5), ("yrr", 3), ("rGr", 30), ("ryr", 3))
    assert _held(*states, pedestrians=1) == [(0,), (3,)]
    # the third link is a turn: its green ends, so what follows is another stage
    assert _held(*states) == [(0,), (1,), (3,)]


def test_a_stage_is_held_where_its_signals_show_longest() -> None:
    """The cars start before the pedestrians, who would otherwise wait for as long as the green is held."""
    assert _held(("Grr", 6), ("GrG", 20), ("Grr", 5), ("yrr", 3), ("rGr", 30), ("ryr", 3), pedestrians=1) == [
        (1,),
        (4,),
    ]


def test_a_green_of_pedestrians_alone_is_no_stage() -> None:
    assert _held(("GrG", 30), ("yrr", 3), ("rrG", 15), ("rGr", 30), ("ryr", 3), pedestrians=1) == [(0,), (3,)]


def test_a_turn_that_becomes_protected_while_others_end_is_a_stage() -> None:
    assert _held(("GGg", 30), ("Gyg", 3), ("GrG", 8), ("yry", 3)) == [(0,), (2,)]


def test_permission_alone_begins_no_stage() -> None:
    """Only the third movement's priority changes: no green begins or ends."""
    assert _held(("GGgr", 30), ("GGGr", 8), ("yyyr", 3), ("rrrG", 20), ("rrry", 3)) == [(0,), (3,)]


def test_a_program_that_always_shows_the_same_movements_has_one_stage() -> None:
    assert _held(("GG", 30), ("Gg", 30)) == [(0,)]


def test_a_copy_without_repetitions_shows_the_same_signals() -> None:
    plan = SignalPlan(
        junction_id="J",
        program_id="0",
        type="actuated",
        offset_s=0,
        phases=(
            Phase(state="Gr", duration_s=20, min_duration_s=5, max_duration_s=40),
            Phase(state="Gr", duration_s=6, min_duration_s=6, max_duration_s=6),
            Phase(state="rG", duration_s=30, min_duration_s=30, max_duration_s=30),
            Phase(state="Gr", duration_s=4, min_duration_s=4, max_duration_s=9),
        ),
        is_for_vehicles=(True, True),
    )
    first, second = plan.without_repetitions().phases
    assert (first.state, first.duration_s, first.min_duration_s, first.max_duration_s) == ("Gr", 30, 15, 55)
    assert (second.state, second.duration_s) == ("rG", 30)
