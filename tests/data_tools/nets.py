"""A small net with two signals, A0 and B0, as SUMO writes it."""

import subprocess
import tempfile
from functools import cache
from pathlib import Path

from tsc.files import strip_generated_comment
from tsc.sumo.binaries import sumo_binary


@cache
def two_signals() -> str:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "x.net.xml")
        command = [str(sumo_binary("netgenerate")), "--grid", "--grid.x-number", "2", "--grid.y-number", "1"]
        command += ["--grid.attach-length", "100", "--default.junctions.type", "traffic_light", "--no-turnarounds"]
        subprocess.run([*command, "-o", str(path)], check=True, capture_output=True)
        return strip_generated_comment(path.read_bytes()).decode()
