import pytest

from tsc.errors import ScenarioError
from tsc.sumo.options import check_replayable_options, shapes_traffic, sumo_options


def test_options_that_shape_traffic_are_told_from_the_others() -> None:
    shaping = ("lateral-resolution", "scale", "ignore-route-errors", "device.rerouting.probability")
    others = ("tripinfo-output", "net-file", "end", "verbose", "remote-port", "save-state.times", "fcd-output")
    section = sumo_options()
    assert all(shapes_traffic(name, section[name][1]) for name in shaping)
    assert not any(shapes_traffic(name, section[name][1]) for name in others)


def test_a_dataset_may_shape_the_traffic() -> None:
    check_replayable_options(("--lateral-resolution", "0.8", "--ignore-route-errors", "true"))
    check_replayable_options(())


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--tripinfo-output", "/etc/passwd"), "does not shape the traffic"),
        (("--scale", "2"), "copies vehicles"),
        (("--load-state", "x.xml"), "reads a file"),
        (("--weight-files", "x.xml"), "reads a file"),
        (("--net-file", "other.net.xml"), "does not shape the traffic"),
        (("--nonsense", "1"), "does not shape the traffic"),
        (("scale", "1"), "does not shape the traffic"),
        (("--scale",), "not pairs"),
    ],
)
def test_a_dataset_may_choose_no_other_option(words: tuple[str, ...], message: str) -> None:
    with pytest.raises(ScenarioError, match=message):
        check_replayable_options(words)
