from tsc.sumo.signal_program import Phase, build_program

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


def test_stages_are_the_long_greens_without_yellow() -> None:
    program = build_program("J", "0", PHASES, LINKS, {})
    assert [stage.phase_index for stage in program.stages] == [0, 4]


def test_a_stage_has_the_lanes_of_its_green_links_each_once_in_link_order() -> None:
    program = build_program("J", "0", PHASES, LINKS, {})
    assert program.stages[0].incoming_lanes == ("n_0", "s_0")
    assert program.stages[0].outgoing_lanes == ("s_out", "n_out", "e_out")
    assert program.stages[1].incoming_lanes == ("e_0",)
    assert program.incoming_lanes == ("n_0", "e_0", "s_0")


def test_phases_between_stages_belong_to_no_stage() -> None:
    program = build_program("J", "0", PHASES, LINKS, {})
    assert [program.stage_of_phase(index) for index in range(7)] == [0, None, None, None, 1, None, None]
    assert program.next_stage(1) == 0


def test_a_junction_with_one_stage_has_nothing_to_decide() -> None:
    assert not build_program("J", "0", PHASES[:2], LINKS, {}).is_controllable
    assert build_program("J", "0", PHASES, LINKS, {}).is_controllable
