"""Draws many demands from the route files of one scenario: each seed gives one new route file.

A route file is one sample of the traffic at a place. The drawn files keep its routes, types and times of day, and vary
which vehicles come, how many, and when. Scheduled traffic stays as it is, because its times belong together: public
transport (`line`), vehicles with stops, persons, containers and the vehicles that they name.
"""

from __future__ import annotations

import math
import random
import xml.etree.ElementTree as ElementTree
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from xml.etree.ElementTree import Element

from pydantic import Field, field_validator
from sumolib.miscutils import openz

from tsc.errors import ScenarioError
from tsc.files import write_atomically
from tsc.scenarios.family import Range
from tsc.scenarios.sumocfg import sumo_time_s
from tsc.yaml_file import Section

MAX_SCALE = 10.0
# Copies of a vehicle would otherwise depart at the same moment and queue.
COPY_SPREAD_S = 30.0

# what SUMO accepts as a departure instead of a time
_DEPART_WORDS = ("triggered", "containerTriggered", "now", "begin", "split")
_FLOW_KEYS = ("begin", "end", "number", "vehsPerHour", "perHour", "period", "probability")

Row = tuple[float, str]
"""The departure (ms, as SUMO counts time) and the XML of an element."""


class DemandVariation(Section):
    """How the demand differs from seed to seed.

    scale: the factor on the number of vehicles, or its lowest and highest value; each seed draws its factor uniformly.
    resample: each vehicle occurs as often as a Poisson distribution with the mean `scale` says. Without it, a vehicle
    occurs floor(scale) times, and once more with the probability of the remainder.
    jitter_s: each departure moves by a uniform draw in ±jitter_s.
    shift_s: all departures from one edge move by the same uniform draw in ±shift_s.
    """

    scale: Range = Range(low=1.0, high=1.0)
    resample: bool = True
    jitter_s: float = Field(default=0.0, ge=0, allow_inf_nan=False)
    shift_s: float = Field(default=0.0, ge=0, allow_inf_nan=False)

    @field_validator("scale", mode="before")
    @classmethod
    def _from_number(cls, value: Any) -> Any:
        return [value, value] if isinstance(value, (int, float)) else value

    @field_validator("scale")
    @classmethod
    def _within_bounds(cls, value: Range) -> Range:
        if not (value.low > 0 and value.high <= MAX_SCALE):
            raise ValueError(f"from {value.low:g} to {value.high:g}: choose above 0, up to {MAX_SCALE:g}")
        return value

    @property
    def is_as_filed(self) -> bool:
        """Whether every seed has the demand of the route files."""
        return self == DemandVariation(resample=False)


def write_demand(
    route_files: Sequence[Path], path: Path, variation: DemandVariation, *, seed: int, begin_s: float, end_s: float
) -> None:
    """Write one route file, sorted by departure. The same files, variation and seed give the same bytes.

    begin_s, end_s: the simulated period. A departure that would leave it wraps around to its other end. Flows are
    written as single vehicles within the period. Vehicles and flows outside it stay as they are.
    Raises ScenarioError for a file that cannot be read, and for a departure or rate of a flow that SUMO does not know.
    """
    elements = [(file, _elements(file)) for file in route_files]
    names = _Names(element for _, of_file in elements for element in of_file)
    draw = _Draw(
        variation=variation,
        seed=seed,
        factor=variation.scale.draw(random.Random(f"demand/{seed}/scale")),
        begin_ms=round(1000 * begin_s),
        end_ms=round(1000 * end_s),
    )
    is_as_filed = variation.is_as_filed
    head: list[str] = []
    rows: list[Row] = []
    for file, of_file in elements:
        # an element whose departure is a word keeps its place behind those before it
        latest_ms = -math.inf
        for element in of_file:
            depart_ms = _depart_ms(file, element, latest_ms, draw.begin_ms)
            if depart_ms is None:
                head.append(_xml(element))
                continue
            latest_ms = max(latest_ms, depart_ms)
            if is_as_filed or names.is_scheduled(element):
                rows.append((depart_ms, _xml(element)))
            elif element.tag == "flow":
                rows += _flow_rows(file, element, int(depart_ms), draw, names.origin(element))
            else:
                rows += _vehicle_rows(element, int(depart_ms), draw, names.origin(element))
    rows.sort(key=lambda row: row[0])
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = ["<routes>", *head, *(text for _, text in rows), "</routes>\n"]
    write_atomically(path, "\n".join(lines).encode())


@dataclass(frozen=True, kw_only=True)
class _Draw:
    """The draws of one seed. Each name has its own generator, so that no vehicle depends on the others."""

    variation: DemandVariation
    seed: int
    factor: float
    begin_ms: int
    end_ms: int
    shifts_s: dict[str, float] = field(default_factory=dict)  # by origin, filled as they are drawn

    def generator(self, name: str) -> random.Random:
        return random.Random(f"demand/{self.seed}/vehicle/{name}")

    def count(self, generator: random.Random, mean: float) -> int:
        """How often something occurs that occurs `mean` times on average."""
        if self.variation.resample:
            return sum(1 for _ in _poisson_process(generator, mean, 0.0, 1.0))
        return _rounded(generator, mean)

    def moved_ms(self, generator: random.Random, depart_ms: int, origin: str, spread_s: float) -> int:
        if origin not in self.shifts_s:
            shift_s = self.variation.shift_s
            self.shifts_s[origin] = random.Random(f"demand/{self.seed}/shift/{origin}").uniform(-shift_s, shift_s)
        moved_s = self.shifts_s[origin] + generator.uniform(-spread_s, spread_s)
        return self.begin_ms + (depart_ms + round(1000 * moved_s) - self.begin_ms) % (self.end_ms - self.begin_ms)


class _Names:
    """What the elements of the route files say about each other by name."""

    def __init__(self, elements: Iterable[Element]) -> None:
        self._routes: dict[str, list[Element]] = {}
        self._ridden: set[str] = set()
        for element in elements:
            if element.tag in ("route", "routeDistribution"):
                self._routes |= {route.get("id", ""): [route] for route in element.iter("route")}
                self._routes[element.get("id", "")] = self._routes_of(element)
            elif element.tag in ("person", "personFlow", "container", "containerFlow"):
                for stage in element.iter():
                    for vehicle in f"{stage.get('lines', '')} {stage.get('intended', '')}".split():
                        # FLOW.3 is a vehicle of a flow
                        self._ridden |= {vehicle, vehicle.rpartition(".")[0]}

    def _routes_of(self, element: Element) -> list[Element]:
        names = f"{element.get('route', '')} {element.get('routes', '')}".split()
        return [*element.iter("route"), *(route for name in names for route in self._routes.get(name, ()))]

    def is_scheduled(self, element: Element) -> bool:
        """Whether the element stays as it is."""
        return (
            element.tag not in ("vehicle", "trip", "flow")
            or element.get("depart", element.get("begin")) in _DEPART_WORDS
            or "id" not in element.attrib  # SUMO refuses it
            or "line" in element.attrib
            or element.get("id") in self._ridden
            or any(part.tag == "stop" for whole in (element, *self._routes_of(element)) for part in whole.iter())
        )

    def origin(self, element: Element) -> str:
        """The first edge of a vehicle, trip or flow. Without one, another name of where it starts."""
        edges = [edge for route in self._routes_of(element) for edge in route.get("edges", "").split()[:1]]
        # the route may also be in an additional file
        names = (element.get(key) for key in ("from", "fromTaz", "fromJunction", "route"))
        return next((name for name in (*edges, *names) if name), "")


def _vehicle_rows(vehicle: Element, depart_ms: int, draw: _Draw, origin: str) -> Iterator[Row]:
    if not draw.begin_ms <= depart_ms < draw.end_ms:
        yield depart_ms, _xml(vehicle)
        return
    name = vehicle.get("id", "")
    generator = draw.generator(name)
    jitter_s = draw.variation.jitter_s
    for number in range(draw.count(generator, draw.factor)):
        spread_s = max(jitter_s, COPY_SPREAD_S) if number else jitter_s
        yield _row(
            vehicle,
            f"{name}.copy{number}" if number else name,
            draw.moved_ms(generator, depart_ms, origin, spread_s),
        )


def _flow_rows(file: Path, flow: Element, begin_ms: int, draw: _Draw, origin: str) -> Iterator[Row]:
    """The vehicles of a flow, named as SUMO names them."""
    begin_s, end_s = begin_ms / 1000, draw.end_ms / 1000
    number = _number(file, flow, "number") if "number" in flow.attrib else math.inf
    rate_per_s = _rate_per_s(file, flow)
    if "end" in flow.attrib:
        end_s = _time_ms(file, flow, "end") / 1000
    elif rate_per_s:
        end_s = begin_s + number / rate_per_s
    if not rate_per_s and end_s > begin_s:
        rate_per_s = number / (end_s - begin_s)
    end_s = min(end_s, draw.end_ms / 1000)
    # SUMO skips a flow without vehicles. It refuses a wrong rate in its own words.
    if not 0 < rate_per_s < math.inf or end_s <= max(begin_s, draw.begin_ms / 1000):
        yield begin_ms, _xml(flow)
        return

    name = flow.get("id", "")
    generator = draw.generator(name)
    departs_s = _departs_s(flow, rate_per_s, begin_s, end_s, draw, generator)
    has_route = "route" in flow.attrib or any(child.tag in ("route", "routeDistribution") for child in flow)
    attributes = {key: value for key, value in flow.attrib.items() if key not in _FLOW_KEYS}
    vehicle = Element("vehicle" if has_route else "trip", attributes)
    vehicle.text = flow.text
    vehicle[:] = flow[:]
    for position, depart_s in enumerate([s for s in departs_s if s >= draw.begin_ms / 1000]):
        depart_ms = draw.moved_ms(generator, round(1000 * depart_s), origin, draw.variation.jitter_s)
        yield _row(vehicle, f"{name}.{position}", depart_ms)


def _departs_s(
    flow: Element, rate_per_s: float, begin_s: float, end_s: float, draw: _Draw, generator: random.Random
) -> list[float]:
    """The departures of a flow in order, before they are moved."""
    rate = rate_per_s * draw.factor
    if draw.variation.resample or flow.get("period", "").startswith("exp("):
        return list(_poisson_process(generator, rate, begin_s, end_s))
    if "probability" in flow.attrib:
        seconds = range(math.ceil(end_s - begin_s))
        return [begin_s + second for second in seconds for _ in range(_rounded(generator, rate))]
    # SUMO starts a flow with a vehicle. Rounding errors must not add one at its end.
    as_filed = math.ceil((end_s - begin_s) * rate_per_s - 1e-6)
    count = _rounded(generator, as_filed * draw.factor)
    gap_s = 1 / rate_per_s if count == as_filed else (end_s - begin_s) / max(count, 1)
    return [begin_s + position * gap_s for position in range(count)]


def _poisson_process(generator: random.Random, rate: float, begin: float, end: float) -> Iterator[float]:
    time = begin + generator.expovariate(rate)
    while time < end:
        yield time
        time += generator.expovariate(rate)


def _rounded(generator: random.Random, mean: float) -> int:
    """One of the two whole numbers around the mean, so that the average is the mean."""
    return math.floor(mean) + (generator.random() < mean % 1)


def _rate_per_s(file: Path, flow: Element) -> float:
    """Vehicles per second; 0 if the flow has only a number of vehicles."""
    for key, unit_s in (("probability", 1), ("vehsPerHour", 3600), ("perHour", 3600)):
        if key in flow.attrib:
            return _number(file, flow, key) / unit_s
    if flow.get("period", "").startswith("exp("):
        return _number(file, flow, "period")
    period_ms = _time_ms(file, flow, "period") if "period" in flow.attrib else 0
    return 1000 / period_ms if period_ms else 0.0


def _elements(file: Path) -> list[Element]:
    try:
        with openz(str(file), "rb") as stream:
            return list(ElementTree.fromstring(stream.read()))
    except ElementTree.ParseError as error:
        line, column = error.position
        raise ScenarioError(f"{file}:{line}:{column + 1}: broken XML: {error.msg}") from error
    except (OSError, EOFError, zlib.error) as error:  # the last two are of a damaged .gz file
        raise ScenarioError(f"cannot read the route file {file}: {error}") from error


def _depart_ms(file: Path, element: Element, of_word_ms: float, of_flow_ms: int) -> float | None:
    """None if the element does not depart. A flow without begin begins with the simulation."""
    key = "depart" if "depart" in element.attrib else "begin"
    if key not in element.attrib:
        return of_flow_ms if element.tag.lower().endswith("flow") else None
    return of_word_ms if element.get(key) in _DEPART_WORDS else _time_ms(file, element, key)


def _time_ms(file: Path, element: Element, key: str) -> int:
    text = element.get(key, "")
    try:
        return round(1000 * sumo_time_s(text))
    except (ValueError, OverflowError) as error:  # the latter is of inf
        words = f", or one of {', '.join(_DEPART_WORDS)}" if key in ("depart", "begin") else ""
        raise _wrong(file, element, key, f"seconds, H:M:S or days:H:M:S{words}") from error


def _number(file: Path, element: Element, key: str) -> float:
    """The number itself, or that in exp(…)."""
    try:
        value = float(element.get(key, "").removeprefix("exp(").removesuffix(")"))
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise _wrong(file, element, key, "a number")
    return value


def _wrong(file: Path, element: Element, key: str, allowed: str) -> ScenarioError:
    return ScenarioError(f"{file}: {key} of {element.tag} {element.get('id')!r} is {element.get(key)!r}: use {allowed}")


def _row(vehicle: Element, name: str, depart_ms: int) -> Row:
    """A vehicle under another name and with another departure."""
    vehicle.set("id", name)
    vehicle.set("depart", f"{depart_ms / 1000:.3f}".rstrip("0").rstrip("."))
    return depart_ms, _xml(vehicle)


def _xml(element: Element) -> str:
    element.tail = None
    return ElementTree.tostring(element, encoding="unicode")
