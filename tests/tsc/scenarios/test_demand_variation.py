import gzip
import os
import subprocess
import xml.etree.ElementTree as ElementTree
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree.ElementTree import Element

import pytest
import sumo
from scipy.stats import chi2, poisson

from tsc.errors import ConfigError, ScenarioError
from tsc.scenarios.demand_variation import DemandVariation, write_demand
from tsc.sumo.binaries import sumo_binary, write_net
from tsc.yaml_file import validate_values

BEGIN_S, END_S = 100.0, 700.0
# of a false alarm; the seeds are fixed, so a test that passes once passes always
CHANCE = 1e-6
EAST, SOUTH = "left1A1 A1B1 B1right1", "top0A1 A1A0 A0bottom0"
AS_FILED = DemandVariation(resample=False)

Write = Callable[..., list[Element]]


@pytest.fixture(scope="module")
def net_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("net") / "net.xml"
    options = ["--grid", "--grid.x-number", "2", "--grid.y-number", "2", "--grid.attach-length", "100"]
    write_net("netgenerate", [*options, "--sidewalks.guess", "--default.sidewalk-width", "2"], path, what="the test")
    return path


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Writes the demand of a route file with this body, and returns the elements of the written file."""

    def write_body(body: str, variation: DemandVariation, *, seed: int = 1) -> list[Element]:
        filed = tmp_path / "filed.rou.xml"
        filed.write_text(f"<routes>{body}</routes>")
        write_demand([filed], tmp_path / "out.rou.xml", variation, seed=seed, begin_s=BEGIN_S, end_s=END_S)
        return list(ElementTree.parse(tmp_path / "out.rou.xml").getroot())

    return write_body


def vehicles(num: int, edges: str = EAST, *, name: str = "v", first_s: float = BEGIN_S, gap_s: float = 1.0) -> str:
    return "".join(
        f'<vehicle id="{name}{n}" depart="{first_s + n * gap_s:g}"><route edges="{edges}"/></vehicle>'
        for n in range(num)
    )


def departs_s(elements: list[Element]) -> dict[str, float]:
    return {element.attrib["id"]: float(element.attrib["depart"]) for element in elements if "depart" in element.attrib}


def text_of(elements: list[Element]) -> list[str]:
    return [ElementTree.tostring(element, encoding="unicode").strip() for element in elements]


# the seed


def test_the_same_seed_gives_the_same_bytes_wherever_the_files_are(tmp_path: Path) -> None:
    body = vehicles(50) + f'<flow id="f" begin="0" vehsPerHour="300"><route edges="{SOUTH}"/></flow>'
    written = []
    for name in ("here", "there"):
        (tmp_path / name).mkdir()
        filed = tmp_path / name / "a.rou.xml"
        filed.write_text(f"<routes>{body}</routes>")
        path = tmp_path / name / "new" / "b.rou.xml"
        variation = DemandVariation(scale=[0.5, 1.5], jitter_s=20, shift_s=60)
        write_demand([filed], path, variation, seed=7, begin_s=BEGIN_S, end_s=END_S)
        written.append(path.read_bytes())
        assert [file.name for file in path.parent.iterdir()] == ["b.rou.xml"]
    assert written[0] == written[1]


def test_another_seed_gives_other_vehicles(write: Write) -> None:
    drawn = [frozenset(departs_s(write(vehicles(50), DemandVariation(), seed=seed))) for seed in range(20)]
    assert len(set(drawn)) == 20


def test_a_vehicle_is_drawn_independently_of_the_others(write: Write) -> None:
    variation = DemandVariation(jitter_s=50, shift_s=50)
    alone = departs_s(write(vehicles(20, name="v"), variation))
    together = departs_s(write(vehicles(30, SOUTH, name="w") + vehicles(20, name="v"), variation))
    assert alone == {name: depart_s for name, depart_s in together.items() if name.startswith("v")}


# how many vehicles


@pytest.mark.parametrize("scale", [1.0, 0.6])
def test_counts_by_route_vary_as_poisson_does(write: Write, scale: float) -> None:
    body = vehicles(15, name="east") + vehicles(6, SOUTH, name="south")
    num_seeds = 200
    counts: dict[str, list[int]] = {"east": [], "south": []}
    for seed in range(num_seeds):
        names = departs_s(write(body, DemandVariation(scale=scale), seed=seed))
        for route, of_route in counts.items():
            of_route.append(sum(name.startswith(route) for name in names))
    for route, num in (("east", 15), ("south", 6)):
        mean = sum(counts[route]) / num_seeds
        low, high = poisson.interval(1 - CHANCE, num_seeds * num * scale)
        assert low <= sum(counts[route]) <= high
        # Fisher's index of dispersion
        low, high = chi2.interval(1 - CHANCE, num_seeds - 1)
        assert low <= sum((count - mean) ** 2 for count in counts[route]) / mean <= high


def test_each_seed_draws_its_scale_between_the_two_values(write: Write) -> None:
    num, num_seeds = 80, 60
    variation = DemandVariation(scale=[0.5, 1.5], resample=False)
    factors = [len(write(vehicles(num), variation, seed=seed)) / num for seed in range(num_seeds)]
    # the remainder leaves a standard deviation of at most 0.5 / sqrt(num) = 0.05 in a count
    assert 0.25 < min(factors) < 0.65
    assert 1.35 < max(factors) < 1.75
    # that of a uniform draw is 1 / sqrt(12)
    assert sum(factors) / num_seeds == pytest.approx(1, abs=5 * 12**-0.5 / num_seeds**0.5)


def test_without_resampling_a_whole_scale_repeats_each_vehicle(write: Write) -> None:
    drawn = departs_s(write(vehicles(5, gap_s=100), DemandVariation(scale=3, resample=False)))
    assert set(drawn) == {f"v{n}{copy}" for n in range(5) for copy in ("", ".copy1", ".copy2")}
    for n in range(5):
        assert drawn[f"v{n}"] == BEGIN_S + 100 * n
        for copy in ("copy1", "copy2"):
            moved_s = (drawn[f"v{n}.{copy}"] - drawn[f"v{n}"] + 300) % 600 - 300  # within the period of 600 s
            assert 0 < abs(moved_s) <= 30


def test_without_resampling_the_remainder_is_a_probability(write: Write) -> None:
    counts = Counter(
        name.split(".")[0] for name in departs_s(write(vehicles(500), DemandVariation(scale=1.25, resample=False)))
    )
    assert set(counts.values()) == {1, 2}
    # 500 draws with probability 0.25: standard deviation 9.7
    assert sum(counts.values()) == pytest.approx(625, abs=49)


# when they depart


def test_jitter_moves_each_departure_by_its_own_draw(write: Write) -> None:
    drawn = departs_s(write(vehicles(100, first_s=300), DemandVariation(resample=False, jitter_s=10)))
    moved_s = [drawn[f"v{n}"] - 300 - n for n in range(100)]
    assert all(-10 <= moved <= 10 for moved in moved_s)
    assert min(moved_s) < -5 < 5 < max(moved_s)
    assert len(set(moved_s)) > 90


def test_shift_moves_all_departures_from_one_edge_alike(write: Write) -> None:
    body = (
        f'<route id="r" edges="{EAST}"/>'
        '<routeDistribution id="d"><route id="r2" edges="left1A1 A1A0" probability="1"/></routeDistribution>'
        '<vehicle id="east1" depart="300" route="r"/><vehicle id="east2" depart="310" route="d"/>'
        '<trip id="east3" depart="320" from="left1A1" to="A1A0"/>'
        + vehicles(2, first_s=400, name="east_")
        + vehicles(2, SOUTH, first_s=400, name="south")
    )
    filed_s = departs_s(write(body, AS_FILED))
    shifts = []
    for seed in range(10):
        drawn = departs_s(write(body, DemandVariation(resample=False, shift_s=150), seed=seed))
        moved_s = {name: round(drawn[name] - filed_s[name], 3) for name in drawn}
        assert len({moved for name, moved in moved_s.items() if name.startswith("east")}) == 1
        assert len(set(moved_s.values())) == 2
        assert max(map(abs, moved_s.values())) <= 150
        shifts += moved_s.values()
    assert min(shifts) < -75 < 75 < max(shifts)


def test_departures_stay_in_the_period_and_those_outside_stay_as_they_are(write: Write) -> None:
    outside = vehicles(3, name="early", first_s=0) + vehicles(3, name="late", first_s=END_S)
    body = vehicles(600) + outside + f'<flow id="f" begin="0" end="900" period="1"><route edges="{SOUTH}"/></flow>'
    for variation in (DemandVariation(resample=False, jitter_s=400), DemandVariation(scale=2, shift_s=1000)):
        elements = write(body, variation)
        drawn = departs_s(elements)
        assert list(drawn.values()) == sorted(drawn.values())
        inside = {name: depart_s for name, depart_s in drawn.items() if not name.startswith(("early", "late"))}
        assert all(BEGIN_S <= depart_s < END_S for depart_s in inside.values())
        # wrapped departures fill both ends
        assert min(inside.values()) < BEGIN_S + 20
        assert max(inside.values()) > END_S - 20
        kept = [element for element in elements if element.attrib["id"].startswith(("early", "late"))]
        assert text_of(kept) == text_of(list(ElementTree.fromstring(f"<routes>{outside}</routes>")))


# flows

RATES = {
    'end="500" number="40"': 40,
    'end="500" vehsPerHour="360"': 40,
    'end="0:08:20" perHour="360"': 40,
    'end="500" period="10"': 40,
    'period="0:0:10" number="40"': 40,
    'vehsPerHour="360" number="40"': 40,
    'end="500" period="exp(0.1)"': 40,
    'end="500" probability="0.1"': 40,
    'period="10"': 60,  # to the end of the period
    'number="60"': 60,
    'end="9000" period="10"': 60,
}


@pytest.mark.parametrize("rate", RATES)
def test_a_resampled_flow_has_its_rate_times_the_scale(write: Write, rate: str) -> None:
    body = f'<flow id="f" begin="100" {rate} from="left1A1" to="B1right1"/>'
    num_seeds = 20
    counts = [len(write(body, DemandVariation(scale=1.5), seed=seed)) for seed in range(num_seeds)]
    low, high = poisson.interval(1 - CHANCE, 1.5 * RATES[rate] * num_seeds)
    assert low <= sum(counts) <= high
    low, high = chi2.interval(1 - CHANCE, num_seeds - 1)
    mean = sum(counts) / num_seeds
    assert low <= sum((count - mean) ** 2 for count in counts) / mean <= high


@pytest.mark.parametrize("rate", [rate for rate in RATES if "exp" not in rate and "prob" not in rate])
def test_an_even_flow_stays_even_without_resampling(write: Write, rate: str) -> None:
    body = f'<flow id="f" begin="100" {rate} from="left1A1" to="B1right1"/>'
    drawn = list(departs_s(write(body, DemandVariation(scale=2, resample=False))).values())
    assert drawn == [100 + 5 * n for n in range(2 * RATES[rate])]


@pytest.mark.parametrize("rate", [rate for rate in RATES if "exp" in rate or "prob" in rate])
def test_a_random_flow_stays_random_without_resampling(write: Write, rate: str) -> None:
    body = f'<flow id="f" begin="100" {rate} from="left1A1" to="B1right1"/>'
    counts = [len(write(body, DemandVariation(scale=2, resample=False), seed=seed)) for seed in range(20)]
    low, high = poisson.interval(1 - CHANCE, 2 * 40 * 20)
    assert low <= sum(counts) <= high
    assert len(set(counts)) > 5


def test_small_flows_scale_on_average(write: Write) -> None:
    body = "".join(f'<flow id="f{n}" begin="200" end="300" number="1" from="a" to="b"/>' for n in range(400))
    count = len(write(body, DemandVariation(scale=0.25, resample=False)))
    assert count == pytest.approx(100, abs=43)  # standard deviation 8.7


def test_a_flow_becomes_vehicles_or_trips_with_all_else_that_it_has(write: Write) -> None:
    body = (
        f'<route id="r" edges="{EAST}"/>'
        '<flow id="a" begin="200" end="240" number="2" route="r" type="t" departLane="best" color="red">'
        '<param key="k" value="1"/></flow>'
        '<flow id="b" begin="300" end="340" period="20" from="left1A1" to="B1right1" via="A1B1"/>'
    )
    _, *written = write(body, DemandVariation(scale=1, resample=False, jitter_s=1e-9))
    assert text_of(written) == [
        '<vehicle id="a.0" route="r" type="t" departLane="best" color="red" depart="200">'
        '<param key="k" value="1" /></vehicle>',
        '<vehicle id="a.1" route="r" type="t" departLane="best" color="red" depart="220">'
        '<param key="k" value="1" /></vehicle>',
        '<trip id="b.0" from="left1A1" to="B1right1" via="A1B1" depart="300" />',
        '<trip id="b.1" from="left1A1" to="B1right1" via="A1B1" depart="320" />',
    ]


# what stays as it is

SCHEDULED = f"""
    <vehicle id="bus" depart="150" line="7"><route edges="{EAST}"/></vehicle>
    <flow id="buses" begin="150" period="100" line="7"><route edges="{EAST}"/></flow>
    <vehicle id="stops" depart="160"><route edges="{EAST}"/><stop lane="A1B1_1" until="200"/></vehicle>
    <vehicle id="stops_on_route" depart="170"><route edges="{EAST}"><stop lane="A1B1_1" duration="9"/></route></vehicle>
    <vehicle id="stops_on_shared_route" depart="180" route="with_stop"/>
    <trip id="stops_on_trip" depart="190" from="left1A1" to="B1right1"><stop lane="A1B1_1" duration="9"/></trip>
    <flow id="delivery" begin="190" number="3"><route edges="{EAST}"/><stop lane="A1B1_1" duration="9"/></flow>
    <vehicle id="ridden" depart="200"><route edges="{EAST}"/></vehicle>
    <flow id="rides" begin="200" number="3"><route edges="{EAST}"/></flow>
    <vehicle id="waits" depart="triggered"><route edges="{EAST}"/></vehicle>
    <vehicle id="loads" depart="containerTriggered"><route edges="{EAST}"/></vehicle>
    <vehicle id="now" depart="now"><route edges="{EAST}"/></vehicle>
    <vehicle id="begin" depart="begin"><route edges="{EAST}"/></vehicle>
    <person id="p" depart="210"><ride from="left1A1" to="B1right1" lines="waits ridden"/></person>
    <personFlow id="q" begin="220" period="100"><ride from="left1A1" to="B1right1" lines="rides.1"/></personFlow>
    <new_element begin="230" end="240"><part/></new_element>
"""


def test_scheduled_traffic_stays_as_it_is(write: Write) -> None:
    head = f'<route id="with_stop" edges="{EAST}"><stop lane="A1B1_1" duration="9"/></route>'
    kept = text_of(list(ElementTree.fromstring(f"<routes>{head}{SCHEDULED}</routes>")))
    for seed in range(3):
        variation = DemandVariation(scale=[0.1, 3], jitter_s=100, shift_s=100)
        drawn = write(head + SCHEDULED + vehicles(20), variation, seed=seed)
        assert [text for text in text_of(drawn) if 'id="v' not in text] == kept


def test_definitions_come_first_in_their_order_and_the_rest_by_departure(write: Write) -> None:
    body = (
        '<vehicle id="b" depart="300" route="r2"/><vType id="t2"/><include href="x.xml"/><route id="r2" edges="e"/>'
        '<person id="with_b" depart="triggered"/>'
        '<vehicle id="a" depart="0:02:30" route="r1"/><vTypeDistribution id="d" vTypes="t2"/><route id="r1" edges="e"/>'
    )
    drawn = write(body, DemandVariation(resample=False, shift_s=1e-9))
    names = [element.get("id", element.tag) for element in drawn]
    assert names == ["t2", "include", "r2", "d", "r1", "a", "b", "with_b"]


def test_as_filed_changes_nothing_but_the_order(write: Write) -> None:
    assert AS_FILED.is_as_filed
    for varied in ({"scale": 1.1}, {"scale": [0.9, 1.1]}, {"resample": True}, {"jitter_s": 1}, {"shift_s": 1}):
        assert not DemandVariation(**{"resample": False, **varied}).is_as_filed
    body = vehicles(3) + '<flow id="f" begin="200" end="300" number="3" from="left1A1" to="B1right1"/>'
    assert text_of(write(body, AS_FILED)) == text_of(list(ElementTree.fromstring(f"<routes>{body}</routes>")))


# SUMO


def run_sumo(net_file: Path, route_files: list[Path], folder: Path) -> dict[str, float]:
    """When each vehicle wanted to depart. All must have arrived."""
    out, counts = folder / "trips.xml", folder / "stats.xml"
    words = ["--net-file", net_file, "--route-files", ",".join(map(str, route_files)), "--begin", f"{BEGIN_S:g}"]
    words += ["--end", "3000", "--no-step-log", "--tripinfo-output", out, "--statistic-output", counts, "--seed", "1"]
    done = subprocess.run(
        [sumo_binary("sumo"), *words, "--time-to-teleport", "-1", "--max-depart-delay", "-1"],
        capture_output=True,
        text=True,
        env={**os.environ, "SUMO_HOME": sumo.SUMO_HOME},
    )
    assert not done.stderr
    statistics = ElementTree.parse(counts).getroot()
    assert statistics.find("vehicles").attrib["waiting"] == statistics.find("vehicles").attrib["running"] == "0"  # type: ignore[union-attr]
    assert statistics.find("persons").attrib["running"] == "0"  # type: ignore[union-attr]
    trips = [trip.attrib for trip in ElementTree.parse(out).iter("tripinfo")]
    return {trip["id"]: float(trip["depart"]) - float(trip["departDelay"]) for trip in trips}


TYPES = (
    '<vTypeDistribution id="mix"><vType id="car" probability="0.8"/><vType id="truck" vClass="truck" '
    'probability="0.2"/></vTypeDistribution>'
)
FOR_SUMO = {
    "vehicles": TYPES
    + f'<route id="r" edges="{EAST}"/><routeDistribution id="d" routes="r" probabilities="1"/>'
    + "".join(f'<vehicle id="x{n}" depart="{110 + n}" type="mix" route="{"rd"[n % 2]}"/>' for n in range(20))
    + f'<vehicle id="own" depart="200" type="mix"><route edges="{SOUTH}"/></vehicle>',
    "trips": "".join(
        f'<trip id="t{n}" depart="{110 + n}" from="left1A1" to="B1right1" via="A1B1">'
        '<param key="has.rerouting.device" value="true"/></trip>'
        for n in range(20)
    ),
    "flows": TYPES + "".join(
        f'<flow id="f{n}" type="mix" begin="100" {rate} from="top0A1" to="A0bottom0" departLane="best"/>'
        for n, rate in enumerate(RATES)
    ),
    "persons": f'<vehicle id="taxi" depart="triggered"><route edges="{EAST}"/></vehicle>'
    '<person id="p" depart="120"><walk edges="left1A1" arrivalPos="50"/>'
    '<ride from="left1A1" to="B1right1" lines="taxi"/></person>'
    f'<vehicle id="with" depart="130"><route edges="{EAST}"/></vehicle>'
    '<person id="q" depart="triggered"><ride from="left1A1" to="B1right1" lines="with"/></person>'
    '<personFlow id="walkers" begin="100" end="300" number="5"><walk from="left1A1" to="A1B1"/></personFlow>'
    + vehicles(10, SOUTH),
    "bus": f'<vType id="b" vClass="bus"/><vehicle id="bus" type="b" depart="150" line="7"><route edges="{EAST}"/>'
    '<stop lane="A1B1_1" until="200" duration="10"/></vehicle>'
    + vehicles(20),
}  # fmt: skip


@pytest.mark.parametrize("kind", FOR_SUMO)
def test_sumo_runs_the_written_file(write: Write, net_file: Path, kind: str, tmp_path: Path) -> None:
    drawn = write(FOR_SUMO[kind], DemandVariation(scale=1.5, jitter_s=20, shift_s=40))
    names = {element.attrib["id"] for element in drawn if element.tag in ("vehicle", "trip")}
    assert len(names) > 10
    assert set(run_sumo(net_file, [tmp_path / "out.rou.xml"], tmp_path)) == names


def test_several_files_and_compressed_ones_become_one_that_sumo_runs(net_file: Path, tmp_path: Path) -> None:
    first, second = tmp_path / "a.rou.xml", tmp_path / "b.rou.xml.gz"
    first.write_text(f"<routes>{TYPES}{vehicles(20)}</routes>")
    second.write_bytes(gzip.compress(f"<routes>{vehicles(20, SOUTH, name='w')}</routes>".encode()))
    path = tmp_path / "out.rou.xml"
    variation = DemandVariation(scale=2, resample=False)
    write_demand([first, second], path, variation, seed=1, begin_s=BEGIN_S, end_s=END_S)
    assert len(run_sumo(net_file, [path], tmp_path)) == 80


def test_even_flows_depart_as_in_sumo_when_only_written_out(write: Write, net_file: Path, tmp_path: Path) -> None:
    rates = [rate for rate in RATES if "exp" not in rate and "prob" not in rate and "end=" in rate]
    rates = [*rates[:-1], 'end="333" number="7"', 'end="250" vehsPerHour="700"', 'end="120" vehsPerHour="60"']
    starts = ["left1A1", "top0A1", "bottom0A0", "left0A0", "right0B0", "right1B1", "top1B1"]
    body = "".join(
        f'<flow id="f{n}" begin="{begin}" {rate} from="{edge}" to="A1B1" departSpeed="max"/>'
        # SUMO ignores flows that are not in order
        for n, (rate, edge, begin) in enumerate(zip(rates, starts, (7, 95, 100, 100, 100, 103, 110), strict=True))
    )
    write(body, DemandVariation(resample=False, jitter_s=1e-9))
    ours: Any = run_sumo(net_file, [tmp_path / "out.rou.xml"], tmp_path)
    theirs: Any = run_sumo(net_file, [tmp_path / "filed.rou.xml"], tmp_path)

    # SUMO counts the vehicles that would have departed before its begin; ours are numbered from 0
    ours, theirs = (sorted((name.split(".")[0], departs[name]) for name in departs) for departs in (ours, theirs))
    assert [name for name, _ in ours] == [name for name, _ in theirs]
    assert [depart_s for _, depart_s in ours] == pytest.approx([depart_s for _, depart_s in theirs], abs=0.05)


# errors


def test_a_wrong_setting_is_refused() -> None:
    def check(**values: Any) -> None:
        validate_values(values, DemandVariation, where="a.yaml")

    for scale in (0, -1, 11, [0, 1], [0.5, 10.5], [2, 1], [1], "much"):
        with pytest.raises(ConfigError, match="a.yaml: scale"):
            check(scale=scale)
    with pytest.raises(ConfigError, match="a.yaml: scale is 20: from 20 to 20: choose above 0, up to 10"):
        check(scale=20)
    with pytest.raises(ConfigError, match="jitter_s is -1"):
        check(jitter_s=-1)
    with pytest.raises(ConfigError, match="unknown key 'jitter': did you mean 'jitter_s'"):
        check(jitter=1)


def test_broken_xml_is_reported_with_its_place(write: Write) -> None:
    with pytest.raises(ScenarioError, match=r"filed\.rou\.xml:2:\d+: broken XML: "):
        write("\n<vehicle", DemandVariation())


def test_a_missing_or_damaged_file_is_reported(tmp_path: Path) -> None:
    damaged = tmp_path / "a.rou.xml.gz"
    damaged.write_bytes(gzip.compress(os.urandom(9999))[:5000])
    for path in (damaged, tmp_path / "gone.rou.xml"):
        with pytest.raises(ScenarioError, match=f"cannot read the route file {path}: "):
            write_demand([path], tmp_path / "b.xml", DemandVariation(), seed=1, begin_s=0, end_s=1)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (
            '<vehicle id="v7" depart="noon"/>',
            "filed.rou.xml: depart of vehicle 'v7' is 'noon': use seconds, H:M:S or days:H:M:S, or one of triggered, ",
        ),
        ('<trip id="t" depart="1:30"/>', "depart of trip 't' is '1:30'"),
        ('<person id="p" depart="nan"/>', "depart of person 'p' is 'nan'"),
        ('<flow id="f" begin="inf" number="1"/>', "begin of flow 'f' is 'inf'"),
        ('<flow id="f" end="now" number="1"/>', "end of flow 'f' is 'now': use seconds, H:M:S or days:H:M:S$"),
        ('<flow id="f" period="exp(x)"/>', r"period of flow 'f' is 'exp\(x\)': use a number"),
        ('<flow id="f" vehsPerHour="many"/>', "vehsPerHour of flow 'f' is 'many': use a number"),
    ],
)
def test_a_departure_that_is_no_time_is_reported(write: Write, body: str, message: str) -> None:
    with pytest.raises(ScenarioError, match=message):
        write(body, DemandVariation())
