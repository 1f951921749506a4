import subprocess
import sys

from tsc.controllers.registry import CONTROLLERS


def test_the_controllers_stand_in_the_order_of_the_report() -> None:
    assert list(CONTROLLERS) == [
        *("static", "actuated", "delay_based", "webster"),
        *("gap_out", "max_pressure", "longest_queue", "random", "lookahead"),
    ]
    assert [name for name, kind in CONTROLLERS.items() if kind.by_sumo] == list(CONTROLLERS)[:4]


def test_each_controller_is_described_in_sentences() -> None:
    for name, kind in CONTROLLERS.items():
        assert kind.name == name
        assert kind.description.endswith(".") and kind.bounds.endswith(".")


def test_the_names_can_be_listed_without_starting_sumo() -> None:
    program = "import sys, tsc.controllers.registry; sys.exit('libsumo' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False, timeout=60).returncode == 0
