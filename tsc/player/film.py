"""Draws recorded episodes as a film: a GIF, or with ffmpeg an MP4, for slides and web pages that play no HTML."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import style
from matplotlib.animation import FFMpegWriter
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import LineCollection, PolyCollection
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image

from tsc.episodes.recording import ANGLE_STEP_DEG, POSITION_STEP_M, Recording
from tsc.errors import ConfigError
from tsc.files import write_atomically
from tsc.player.junction_map import JunctionMap, band
from tsc.player.page import Shown

FRAMES_PER_S = 10  # of the film
STEPS_A_S = 2  # pictures of a simulated second, so that a film is five times as fast

_WIDTH_IN, _DOTS_PER_INCH = 4.2, 110  # of one controller's picture
_GROUND = {"road": "#b4bac1", "path": "#dcd8cf", "rail": "#a89f91"}
_LANE_SHARE = 0.94  # of its width; the rest is the line between two lanes
_NODE, _OUTLINE, _MOVING, _HALTING, _DARK = "#c3c8ce", "#16191d", "#1f4e79", "#f0a30a", "#8a929b"
_OTHERS = (_NODE, _OUTLINE, _MOVING, _HALTING, _DARK)
_SIGNALS = {"G": "#12a53a", "g": "#5ecb7a", "s": "#5ecb7a", "y": "#ffd21a", "Y": "#ffd21a", "u": "#ff9500"}
_SIGNALS |= {"r": "#e02b3c", "o": "#b98500"}


def check_film(path: Path) -> None:
    """Raises ConfigError for an MP4 where ffmpeg is not installed."""
    if path.suffix == ".mp4" and shutil.which("ffmpeg") is None:
        raise ConfigError(f"{path}: an MP4 needs the program ffmpeg: install it (apt install ffmpeg), or write a .gif")


def write_film(
    path: Path, episodes: Sequence[Shown], *, scenario: str, junction_id: str, from_s: int, junction_map: JunctionMap
) -> None:
    """episodes: of one or two controllers on the same traffic. path: ends in .gif or .mp4. The file appears when it
    is complete."""
    west, south, east, north = junction_map.shown
    with style.context(["default", {"font.family": "DejaVu Sans", "font.size": 9}]):
        height_in = _WIDTH_IN * (north - south) / (east - west) + 0.7
        figure = Figure(figsize=(_WIDTH_IN * len(episodes), height_in), dpi=_DOTS_PER_INCH, layout="constrained")
        panels = [
            _Panel(axes, junction_map, shown)
            for axes, shown in zip(figure.subplots(1, len(episodes), squeeze=False)[0], episodes, strict=True)
        ]
        clock = figure.suptitle("")

        def steps() -> Iterator[None]:
            for step in range(STEPS_A_S * len(episodes[0].episode.recording.state)):
                second, part = step // STEPS_A_S, step % STEPS_A_S / STEPS_A_S
                clock.set_text(f"{scenario}, junction {junction_id}, {from_s + second} s")
                for panel in panels:
                    panel.draw(second, part)
                yield

        with tempfile.TemporaryDirectory(prefix="tsc-film-") as folder:
            unfinished = Path(folder, path.name)
            (_write_mp4 if path.suffix == ".mp4" else _write_gif)(unfinished, figure, steps())
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(path, unfinished.read_bytes())


def _write_gif(path: Path, figure: Figure, steps: Iterable[None]) -> None:
    """All frames have the same colours: those of signals, vehicles and ground, and greys."""
    colours = [to_rgb(colour) for colour in (*_SIGNALS.values(), *_GROUND.values(), *_OTHERS)]
    colours += [(grey, grey, grey) for grey in np.linspace(0, 1, 16)]
    palette = Image.new("P", (1, 1))
    palette.putpalette([round(255 * part) for colour in colours for part in colour])
    canvas: Any = FigureCanvasAgg(figure)  # matplotlib leaves its buffer untyped
    frames = []
    for _ in steps:
        canvas.draw()
        drawn = Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")
        frames.append(drawn.quantize(palette=palette, dither=Image.Dither.NONE))
    frames[0].save(path, save_all=True, append_images=frames[1:], duration=1000 // FRAMES_PER_S, loop=0)


def _write_mp4(path: Path, figure: Figure, steps: Iterable[None]) -> None:
    # players want even sizes and this way of storing colours
    even = ["-vf", "crop=trunc(iw/2)*2:trunc(ih/2)*2", "-pix_fmt", "yuv420p"]
    writer = FFMpegWriter(FRAMES_PER_S, extra_args=even)
    with writer.saving(figure, str(path), _DOTS_PER_INCH):
        for _ in steps:
            writer.grab_frame()


class _Panel:
    """One controller's junction."""

    def __init__(self, axes: Axes, ground: JunctionMap, shown: Shown) -> None:
        self._axes = axes
        self._name = shown.controller
        self._recording = shown.episode.recording
        self._links = [index for index, _ in ground.stop_lines]
        recording = self._recording
        self._first_point = np.cumsum(recording.num_frames, dtype=np.int64) - recording.num_frames
        west, south, east, north = ground.shown
        axes.set(xlim=(west, east), ylim=(south, north), xticks=[], yticks=[], aspect="equal")
        axes.add_collection(PolyCollection(ground.nodes, facecolors=_NODE, edgecolors=_NODE))
        for kind, colour in _GROUND.items():
            outlines = [band(points, _LANE_SHARE * width) for points, width, of in ground.lanes if of == kind]
            axes.add_collection(PolyCollection(outlines, facecolors=colour, edgecolors="none"))
        for _, points, width in ground.crossings:
            axes.add_collection(PolyCollection([band(points, width)], facecolors="white", hatch="|||"))
        self._signals = axes.add_collection(LineCollection([line for _, line in ground.stop_lines], linewidths=3.0))
        self._vehicles = PolyCollection([], edgecolors=_OUTLINE, linewidths=0.5)
        axes.add_collection(self._vehicles)

    def draw(self, second: int, part: float) -> None:
        """As it is `part` of a second after the frame `second`."""
        state = self._recording.state[second]
        self._signals.set_color([_SIGNALS.get(state[link], _DARK) for link in self._links])
        vehicles = list(_vehicles(self._recording, self._first_point, second, part))
        self._vehicles.set_verts([outline for outline, _ in vehicles])
        self._vehicles.set_facecolor([_HALTING if halts else _MOVING for _, halts in vehicles])
        queue_veh = int(self._recording.queue_veh[max(0, second - (part == 0))]) if second or part else 0
        mean_veh = self._recording.queue_veh[: second + 1].mean()
        self._axes.set_title(f"{self._name}: queue {queue_veh} veh, mean so far {mean_veh:.1f}", loc="left")


def _vehicles(
    recording: Recording, first_point: NDArray[np.int64], frame: int, part: float
) -> Iterator[tuple[NDArray[np.float64], bool]]:
    """The outline of each vehicle in m, and whether it halts. Between two frames it moves evenly."""
    last_frame = recording.first_frame + recording.num_frames - 1
    for track in np.flatnonzero((recording.first_frame <= frame) & (frame <= last_frame)):
        here = int(first_point[track]) + frame - int(recording.first_frame[track])
        there = here + 1 if frame < last_frame[track] else here
        start, end = recording.position[[here, there]] * POSITION_STEP_M
        x, y = start + part * (end - start)
        turn = (int(recording.angle[there]) - int(recording.angle[here]) + 128) % 256 - 128  # the short way round
        angle = np.radians((int(recording.angle[here]) + part * turn) * ANGLE_STEP_DEG)  # clockwise from north
        length, width = recording.size_dm[track] / 10
        ahead, right = np.array([np.sin(angle), np.cos(angle)]), np.array([np.cos(angle), -np.sin(angle)])
        nose = min(0.9, length / 4)
        corners = [(0, -width / 3.2), (0, width / 3.2), (nose, width / 2)]
        corners += [(length, width / 2), (length, -width / 2), (nose, -width / 2)]
        outline = np.array([(x, y) - along * ahead + aside * right for along, aside in corners])
        yield outline, recording.speed[here if part < 0.5 else there] == 0
