"""The map of a junction against its net."""

import math
from pathlib import Path

from tsc.player.junction_map import RECORDED_MARGIN_M, junction_map
from tsc.sumo.binaries import write_net
from tsc.sumo.running import SumoFiles
from tsc.sumo.signal_links import read_net, signal_links


def test_each_link_has_its_part_of_the_stop_line_at_the_end_of_its_lane(files: SumoFiles) -> None:
    found = junction_map(files.net_file, "A0")
    links = signal_links(read_net(files.net_file))["A0"]
    assert sorted(index for index, _ in found.stop_lines) == [link.index for link in links]
    middles = {index: [sum(axis) / 2 for axis in zip(*line, strict=True)] for index, line in found.stop_lines}
    for link in links:
        (before_x, before_y), end = (point[:2] for point in link.from_lane.getShape()[-2:])
        x, y = middles[link.index][0] + found.box[0], middles[link.index][1] + found.box[1]
        assert math.hypot(x - end[0], y - end[1]) < link.from_lane.getWidth() / 2
        if link.direction == "s":
            continue
        # beside the link straight on of the same lane, a left turn lies on the left
        straight = [each for each in links if each.from_lane == link.from_lane and each.direction == "s"]
        for each in straight:
            across = [middles[link.index][axis] - middles[each.index][axis] for axis in (0, 1)]
            to_the_left = (end[0] - before_x) * across[1] - (end[1] - before_y) * across[0]
            assert (to_the_left > 0) == (link.direction == "l")


def test_the_box_reaches_as_far_as_is_recorded_and_holds_the_first_view(files: SumoFiles) -> None:
    found = junction_map(files.net_file, "A0")
    width_m, height_m = found.box[2] - found.box[0], found.box[3] - found.box[1]
    assert min(width_m, height_m) > 2 * RECORDED_MARGIN_M
    west, south, east, north = found.shown
    assert 0 < west < east < width_m and 0 < south < north < height_m
    assert len([kind for *_, kind in found.lanes if kind == "road"]) == 24  # 4 roads, 2 directions, 3 lanes


def test_crossings_for_pedestrians_have_their_letter(tmp_path: Path) -> None:
    net_file = tmp_path / "net.xml"
    options = ["--grid", "--grid.number", "1", "--grid.attach-length", "150", "--sidewalks.guess", "--crossings.guess"]
    write_net("netgenerate", [*options, "--default.junctions.type", "traffic_light"], net_file, what="the test")
    links = signal_links(read_net(net_file))["A0"]
    found = junction_map(net_file, "A0")
    assert {index for index, *_ in found.crossings} == {link.index for link in links if link.crossing}
    assert len({str(line) for _, line, _ in found.crossings}) == 4
    assert {kind for *_, kind in found.lanes} == {"road", "path"}
