"""A controller that runs someone else's SUMO: a `sumo` process of the installed package, over TraCI."""

from __future__ import annotations

import contextlib
import json
import runpy
import signal
import socket
import subprocess
import sys
import threading
import time
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import groupby
from pathlib import Path
from typing import Any

import pytest
from traci.main import connect

from recipes.models.model_card import CARD_FILE
from recipes.serving.model_choice import LocalModelChoice
from tests.tsc.sumo_process import in_new_process
from tsc.errors import ConfigError, ScenarioError
from tsc.junction.prompt import OWN_PROMPT, PROMPT_VERSION
from tsc.junction.seen_decisions import SeenDecisions
from tsc.junction.signal_control import SignalControl
from tsc.junction.timing import Timing
from tsc.rules.max_pressure import MaxPressure
from tsc.sumo.attached import AttachedSimulation
from tsc.sumo.binaries import sumo_binary
from tsc.sumo.running import SumoFiles
from tsc.sumo.signal_program import SignalProgram
from tsc.sumo.simulation import Simulation

JUNCTION = "A0"
END_S = 200

StartSumo = Callable[..., "Sumo"]


class Sumo:
    """A sumo that waits for its clients; `options` follow those of the files."""

    def __init__(self, files: SumoFiles, *options: str) -> None:
        with socket.socket() as free:
            free.bind(("localhost", 0))
            self.port = int(free.getsockname()[1])
        command = [str(sumo_binary("sumo")), *files.options(), "--remote-port", str(self.port), "--no-step-log"]
        self.process = subprocess.Popen([*command, *options], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


@pytest.fixture
def start_sumo(files: SumoFiles) -> Iterator[StartSumo]:
    """Starts a sumo with these options, and with fields of SumoFiles that differ from the fixture `files`."""
    started: list[Sumo] = []

    def start(*options: str, **changed: Any) -> Sumo:
        started.append(Sumo(replace(files, **changed), *options))
        return started[-1]

    yield start
    for sumo in started:
        sumo.process.kill()
        sumo.process.wait()


@pytest.fixture
def start_controller(repo_root: Path) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    started: list[subprocess.Popen[str]] = []

    def start(port: int, *options: str, controller: str = "max_pressure") -> subprocess.Popen[str]:
        command = [sys.executable, str(repo_root / "scripts/run_controller.py"), "--port", str(port)]
        command += ["--controller", controller, *options]
        started.append(subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True))
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.communicate()


def done(process: subprocess.Popen[str]) -> subprocess.CompletedProcess[str]:
    out, err = process.communicate(timeout=60)
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def write_signals_to(path: Path) -> Path:
    """An additional file that makes SUMO record the signals."""
    additional = path.with_suffix(".add.xml")
    additional.write_text(
        f'<additional><timedEvent type="SaveTLSStates" source="{JUNCTION}" dest="{path}"/></additional>'
    )
    return additional


def signals_in(path: Path) -> list[tuple[float, str]]:
    return [(float(e.attrib["time"]), e.attrib["state"]) for e in ElementTree.parse(path).iter("tlsState")]


def green_times_s(states: Sequence[tuple[float, str]], step_s: float) -> list[float]:
    """The lengths of the complete greens, without the first one, which is held from the begin."""
    runs = [(state, len(list(run)) * step_s) for state, run in groupby(state for _, state in states)]
    return [round(length_s, 3) for state, length_s in runs[1:-1] if "G" in state and "y" not in state]


def _run_in_libsumo(files: SumoFiles, fcd: Path) -> None:
    simulation = Simulation(files, outputs=["--fcd-output", str(fcd)])
    control = SignalControl(simulation, Timing())
    control.start()
    for _ in range(END_S):
        control.advance(MaxPressure().decide(control, control.due_junctions()))
    simulation.close()


def test_max_pressure_over_traci_does_what_it_does_in_libsumo(
    files: SumoFiles, start_sumo: StartSumo, start_controller: Any, tmp_path: Path
) -> None:
    """The signals are the same in every second, and every vehicle is at the same place with the same speed."""
    ours, theirs = tmp_path / "ours.xml", tmp_path / "theirs.xml"
    additional = write_signals_to(ours)
    in_new_process(_run_in_libsumo, replace(files, additional_files=(additional,)), tmp_path / "ours.fcd.xml")

    sumo = start_sumo(
        *("--additional-files", str(write_signals_to(theirs)), "--end", str(END_S)),
        *("--fcd-output", str(tmp_path / "theirs.fcd.xml")),
    )
    result = done(start_controller(sumo.port, "--verbose"))
    assert result.returncode == 0, result.stderr
    assert sumo.process.wait(timeout=20) == 0
    assert signals_in(theirs) == signals_in(ours) != []
    vehicles = [
        [element.attrib for element in ElementTree.parse(tmp_path / name).iter("vehicle")]
        for name in ("ours.fcd.xml", "theirs.fcd.xml")
    ]
    assert vehicles[0] == vehicles[1] != []

    first, runs, *decisions, last = result.stdout.splitlines()
    assert first.startswith("SUMO 1.") and first.endswith(str(files.net_file))
    assert runs == f"max_pressure runs 1 of 1 signals: {JUNCTION}"
    assert f"10 s  {JUNCTION}  stage 1, green for 10 s" in decisions[0]
    switches = sum("no" in line.split() for line in decisions)
    assert last == f"until {END_S} s: {len(decisions)} decisions, {switches} switches"


def test_decisions_fall_on_whole_seconds_of_a_sumo_with_shorter_steps(
    start_sumo: StartSumo, start_controller: Any, tmp_path: Path
) -> None:
    path = tmp_path / "signals.xml"
    sumo = start_sumo(
        "--end", str(20 + END_S), step_length_s=0.1, begin_s=20.0, additional_files=(write_signals_to(path),)
    )
    result = done(start_controller(sumo.port, "--min-green-s", "7", "--max-green-s", "22"))
    assert (result.returncode, result.stderr) == (0, "")
    assert sumo.process.wait(timeout=20) == 0
    greens_s = green_times_s(signals_in(path), 0.1)
    assert len(greens_s) > 5 and set(greens_s) <= {7.0, 12.0, 17.0, 22.0}


def test_ctrl_c_hands_the_signals_back_and_a_sumo_with_another_client_goes_on(
    start_sumo: StartSumo, start_controller: Any
) -> None:
    sumo = start_sumo("--num-clients", "2")
    # it holds every green that it begins
    process = start_controller(
        sumo.port, "--order", "2", "--min-green-s", "400", "--max-green-s", "500", controller="random"
    )
    other = connect(sumo.port, numRetries=50, waitBetweenRetries=0.1)
    other.setOrder(1)

    def remaining_s() -> float:
        return float(other.trafficlight.getNextSwitch(JUNCTION) - other.simulation.getTime())

    for _ in range(150):
        other.simulationStep()
    assert remaining_s() > 500
    process.send_signal(signal.SIGINT)
    while process.poll() is None:
        other.simulationStep()
    result = done(process)
    assert result.returncode == 130 and "0 decisions, 0 switches" in result.stdout
    # no green has lasted longer than its minimum, so the present one continues to it
    assert remaining_s() < 400 - 150
    begin_s = other.simulation.getTime()
    for _ in range(500):
        other.simulationStep()
    assert other.simulation.getTime() == begin_s + 500
    planned_s = [phase.duration for phase in other.trafficlight.getAllProgramLogics(JUNCTION)[0].phases]
    seen_s = []
    for _ in range(2 * len(planned_s)):
        phase, begin_s = other.trafficlight.getPhase(JUNCTION), other.simulation.getTime()
        while other.trafficlight.getPhase(JUNCTION) == phase:
            other.simulationStep()
        seen_s.append((phase, other.simulation.getTime() - begin_s))
    assert all(planned_s[phase] == length_s for phase, length_s in seen_s[1:])
    other.close()
    assert sumo.process.wait(timeout=20) == 0


class ChatServer(BaseHTTPRequestHandler):
    """A server with OpenAI's API whose model gives these answers in turn, and takes a second for an empty answer."""

    answers = ('{"extend": "no"}', "perhaps", "")

    def do_GET(self) -> None:
        self._send({"object": "list", "data": [{"id": "thinker", "object": "model", "created": 0, "owned_by": "us"}]})

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        answered: list[str] = self.server.answered  # type: ignore[attr-defined]
        answer = self.answers[len(answered) % len(self.answers)]
        answered.append(answer)
        if not answer:
            time.sleep(1)
        message = {"index": 0, "message": {"role": "assistant", "content": answer}, "finish_reason": "stop"}
        self._send({"id": "1", "object": "chat.completion", "created": 0, "model": "thinker", "choices": [message]})

    def _send(self, content: object) -> None:
        body = json.dumps(content).encode()
        with contextlib.suppress(BrokenPipeError):  # a client that gave up
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    def log_message(self, format: str, *arguments: object) -> None:
        pass


@pytest.fixture
def chat_server() -> Iterator[ThreadingHTTPServer]:
    server = ThreadingHTTPServer(("localhost", 0), ChatServer)
    server.answered = []  # type: ignore[attr-defined]
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_model_s_unreadable_and_late_answers_are_counted_and_the_net_s_own_plan_decides(
    start_sumo: StartSumo, start_controller: Any, chat_server: ThreadingHTTPServer, tmp_path: Path
) -> None:
    settings = tmp_path / "settings.yaml"
    settings.write_text("llm: {decision_time_limit_s: 0.5}")
    sumo = start_sumo("--end", "100")
    url = f"http://localhost:{chat_server.server_port}/v1"
    options = ["--config", str(settings), "--verbose", "--base-url", url]
    result = done(start_controller(sumo.port, *options, controller="llm"))
    assert result.returncode == 0, result.stderr
    _, runs, *decisions, last = result.stdout.splitlines()
    assert runs == f"llm runs 1 of 1 signals: {JUNCTION}"
    assert len(decisions) == len(chat_server.answered) > 3  # type: ignore[attr-defined]
    expected = [
        '  no  {"extend": "no"}',
        "  yes (from the net's own plan, because the answer is invalid)  perhaps",
        "  yes (from the net's own plan, because the answer is late)",
    ]
    assert [line.rstrip()[-len(end) :] for line, end in zip(decisions[:3], expected, strict=True)] == expected
    invalid, late = len(decisions[1::3]), len(decisions[2::3])
    assert last.endswith(f", {invalid} invalid and {late} late answers")


def test_a_sumo_that_dies_is_told_and_so_is_what_was_done_until_then(
    start_sumo: StartSumo, start_controller: Any
) -> None:
    sumo = start_sumo("--num-clients", "2")
    process = start_controller(sumo.port, "--order", "1")
    other = connect(sumo.port, numRetries=50, waitBetweenRetries=0.1)
    other.setOrder(2)
    for _ in range(30):
        other.simulationStep()
    sumo.process.kill()
    result = done(process)
    assert result.returncode == 2
    assert "error: SUMO closed the connection after 30 s: its own messages say why" in result.stderr
    assert "until 30 s: " in result.stdout


@pytest.mark.parametrize(
    ("controller", "words"),
    [
        ("max_presure", "'max_presure' is unknown: did you mean 'max_pressure'\\? choose from gap_out, max_pressure"),
        ("lookahead", "'lookahead' cannot run here: it tries both answers in forks of the simulation"),
        ("static", "'static' cannot run here: without this program, the signals are static anyway"),
        ("actuated", "'actuated' cannot run here: SUMO itself switches by programs"),
    ],
)
def test_a_controller_that_cannot_run_here_is_refused_before_sumo_is_asked(
    repo_root: Path, monkeypatch: pytest.MonkeyPatch, controller: str, words: str
) -> None:
    monkeypatch.syspath_prepend(str(repo_root / "scripts"))
    import run_controller

    monkeypatch.setattr(sys, "argv", ["run_controller.py", "--port", "1", "--controller", controller])
    with pytest.raises(ConfigError, match=words):
        run_controller.main()


def test_a_port_on_which_no_program_listens_gives_an_error_with_the_remedy() -> None:
    with socket.socket() as taken:
        taken.bind(("localhost", 0))
        port = taken.getsockname()[1]
        with pytest.raises(ScenarioError, match=f"no program listens on localhost:{port} .*start SUMO with --rem"):
            AttachedSimulation(port)


def _bounded_program(files: SumoFiles, bounds: tuple[int, int]) -> SignalProgram:
    program = Simulation(files).program(JUNCTION)
    return program.bounded([bounds] * len(program.stages))


def test_a_model_is_warned_of_signals_that_it_was_not_trained_on(
    repo_root: Path, files: SumoFiles, tmp_path: Path
) -> None:
    program = in_new_process(_bounded_program, files, (5, 40))
    script = runpy.run_path(str(repo_root / "scripts/run_controller.py"))
    signals = script["SignalsToRun"](programs={JUNCTION: program}, skipped={}, replaced={})
    model = LocalModelChoice(name="mine", model=tmp_path)
    assert script["card_warning"](model, signals, Timing(), OWN_PROMPT) is None  # no card
    seen = SeenDecisions.of({("a", "b")}, prompt_versions=["0"], num_stages={2}, timings={Timing(max_green_s=40)})
    (tmp_path / CARD_FILE).write_text(seen.model_dump_json())
    assert script["card_warning"](model, signals, Timing(), OWN_PROMPT).startswith(
        f"warning: the net asks mine about decisions that it was not trained on: prompts of version {PROMPT_VERSION} "
        "(trained on 0); a minimum green of 5 s (trained on 10 s)."
    )


def test_clients_without_an_order_are_told_to_have_one(start_sumo: StartSumo, start_controller: Any) -> None:
    sumo = start_sumo("--num-clients", "2")
    process = start_controller(sumo.port)
    other = connect(sumo.port, numRetries=50, waitBetweenRetries=0.1)
    other.setOrder(1)
    result = done(process)
    assert result.returncode == 2 and "give each an --order of its own" in result.stderr


@pytest.mark.parametrize(
    ("rebuild", "options", "words"),
    [
        ([], ["--junctions", "A1"], "junction 'A1' has no signal in"),
        (["--tls.unset", JUNCTION], [], "changed.net.xml has no signal"),
    ],
)
def test_a_net_without_controllable_signals_gives_an_error(
    files: SumoFiles,
    start_sumo: StartSumo,
    start_controller: Any,
    tmp_path: Path,
    rebuild: list[str],
    options: list[str],
    words: str,
) -> None:
    net_file = tmp_path / "changed.net.xml"
    command = [str(sumo_binary("netconvert")), "--sumo-net-file", str(files.net_file), "--output-file", str(net_file)]
    subprocess.run([*command, "--no-warnings", *rebuild], check=True, stdout=subprocess.DEVNULL)
    sumo = start_sumo(net_file=net_file, route_files=())
    result = done(start_controller(sumo.port, *options))
    assert result.returncode == 2 and words in result.stderr
    assert sumo.process.wait(timeout=20) == 0


def test_an_actuated_signal_is_run_through_a_static_copy_and_handed_back(
    files: SumoFiles, start_sumo: StartSumo, start_controller: Any, tmp_path: Path
) -> None:
    net_file = tmp_path / "actuated.net.xml"
    command = [str(sumo_binary("netconvert")), "--sumo-net-file", str(files.net_file), "--output-file", str(net_file)]
    rebuild = ["--tls.rebuild", "--tls.default-type", "actuated"]
    subprocess.run([*command, "--no-warnings", *rebuild], check=True, stdout=subprocess.DEVNULL)
    sumo = start_sumo("--num-clients", "2", net_file=net_file)
    process = start_controller(sumo.port, "--order", "2")
    other = connect(sumo.port, numRetries=50, waitBetweenRetries=0.1)
    other.setOrder(1)
    light = other.trafficlight
    own = light.getProgram(JUNCTION)
    other.simulationStep()
    shown = []
    for _ in range(100):
        other.simulationStep()
        assert light.getProgram(JUNCTION) == "tsc_static" != own
        shown.append(light.getRedYellowGreenState(JUNCTION))
    greens_s = [len(list(run)) for state, run in groupby(shown) if "G" in state and "y" not in state]
    # minDur 5 s and maxDur 50 s, decisions every 5 s
    assert greens_s[1:-1] and all(5 <= length_s <= 50 and length_s % 5 == 0 for length_s in greens_s[1:-1])
    process.send_signal(signal.SIGINT)
    while process.poll() is None:
        before = light.getRedYellowGreenState(JUNCTION)
        other.simulationStep()
    assert done(process).returncode == 130
    assert light.getProgram(JUNCTION) == own and light.getParameter(JUNCTION, "typeName") == "actuated"
    after = light.getRedYellowGreenState(JUNCTION)
    # no green turns red at once
    assert not any(one in "Gg" and other in "rs" for one, other in zip(before, after, strict=True))
    other.close()


def test_steps_that_do_not_divide_a_second_give_an_error(start_sumo: StartSumo) -> None:
    sumo = start_sumo(step_length_s=0.3)
    with pytest.raises(ScenarioError, match="the step length is 0.3 s: .* 1, 0.5 or 0.1"):
        AttachedSimulation(sumo.port, wait_s=20)
    assert sumo.process.wait(timeout=20) == 0
