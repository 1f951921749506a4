"""scripts/test_model.py as a user tries a model: on one decision, in a terminal, and on a file."""

from __future__ import annotations

import io
import json
import math
import os
import pty
import runpy
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import openpyxl
import pytest

from recipes.models.model_card import CARD_FILE
from recipes.serving.chat_endpoint import KEY_VARIABLE
from recipes.serving.model_choice import LocalModelChoice
from recipes.serving.transformers_model import TransformersModel
from tests.recipes.serving.taught_model import teach
from tsc.errors import ConfigError, SampleError, TscError
from tsc.junction.decision import Decision
from tsc.junction.prompt import PROMPT_VERSION
from tsc.junction.seen_decisions import SeenDecisions
from tsc.junction.timing import Timing

Samples = list[dict[str, Any]]

NUM_SAMPLES = 12


@pytest.fixture(scope="module")
def samples(small_dataset: Path) -> Samples:
    """The first of the dataset that have a better answer."""
    every = json.loads((small_dataset / "grpo_dataset.json").read_text())
    return [sample for sample in every if "expert_decision" in sample][:NUM_SAMPLES]


@pytest.fixture(scope="module")
def part(small_dataset: Path, samples: Samples) -> Path:
    """A dataset of these samples; the first has no label, so it has to be replayed."""
    unlabelled = {name: value for name, value in samples[0].items() if name not in ("outcomes", "expert_decision")}
    path = small_dataset / "part.json"
    path.write_text(json.dumps([unlabelled, *samples[1:]]))
    return path


@pytest.fixture(scope="module")
def model(samples: Samples, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Knows the better answers of the samples by heart, and says that it has seen no other decisions."""
    chats = [
        [*sample["prompt"], {"role": "assistant", "content": Decision(sample["expert_decision"]).answer}]
        for sample in samples
    ]
    folder = teach(chats, tmp_path_factory.mktemp("taught") / "model")
    seen = SeenDecisions.of({("four_way", "A0")}, prompt_versions=[PROMPT_VERSION], num_stages={2}, timings={Timing()})
    (folder / CARD_FILE).write_text(seen.model_dump_json())
    return folder


def command(repo_root: Path, *words: object) -> list[str]:
    return [sys.executable, str(repo_root / "scripts/test_model.py"), *map(str, words)]


def test_a_dataset_is_answered_into_a_workbook_with_what_both_answers_lead_to(
    repo_root: Path, model: Path, part: Path, samples: Samples, tmp_path: Path
) -> None:
    out = tmp_path / "answers.xlsx"
    words = ("--model-path", model, "--backend", "transformers", "--batch", "--input-file", part, "--output-file", out)
    done = subprocess.run(command(repo_root, *words), capture_output=True, text=True, timeout=280, check=False)
    assert done.returncode == 0, done.stderr
    assert "warning" not in done.stderr
    book = openpyxl.load_workbook(out)
    names, *lines = book["rows"].iter_rows(values_only=True)
    rows = [dict(zip(names, line, strict=True)) for line in lines]
    assert [row["id"] for row in rows] == [sample["id"] for sample in samples]
    # the first costs are those of a replay, and the label that it was not given says the same
    costs = [(sample["outcomes"]["yes"], sample["outcomes"]["no"]) for sample in samples]
    assert [(row["cost_yes"], row["cost_no"]) for row in rows] == costs
    better = [sample["expert_decision"] for sample in samples]
    assert [row["better"] for row in rows] == better
    num_right = sum(row["decision"] == answer for row, answer in zip(rows, better, strict=True))
    assert num_right >= 0.9 * len(rows)
    for row in rows:
        of_answer, of_other = (row[f"p_{name}"] for name in sorted(("yes", "no"), key=lambda n: n != row["decision"]))
        assert of_answer > of_other
    head, total, *_ = book["summary"].iter_rows(values_only=True)
    figures = dict(zip(head, total, strict=True))
    assert figures["accuracy"] == pytest.approx(num_right / len(rows))
    assert f"accuracy over the {len(rows)} rows with a better answer; answers in {out}" in done.stdout


def test_a_terminal_asks_for_one_decision_after_the_other(
    repo_root: Path, model: Path, part: Path, samples: Samples, tmp_path: Path
) -> None:
    observation = samples[1]["observation"] | {"stages": samples[1]["observation"]["stages"] * 2}
    (tmp_path / "junction.json").write_text(json.dumps(observation))
    (tmp_path / "prompt.txt").write_text("Extend?")
    typed = ["1", f"A0 {samples[0]['time_s']:g}", "99", "nowhere.txt", tmp_path / "junction.json", ""]
    terminal, far_end = pty.openpty()
    words = ("--model-path", model, "--backend", "transformers", "--single", "--data", part)
    process = subprocess.Popen(
        command(repo_root, *words), stdin=far_end, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    os.write(terminal, "".join(f"{line}\n" for line in typed).encode())
    stdout, stderr = process.communicate(timeout=280)
    os.close(terminal)
    os.close(far_end)
    assert process.returncode == 0, stderr
    first, replayed, *_ = stdout.split("prompt\n")[1:]
    label = samples[1]["outcomes"]
    assert f"cost         yes {label['yes']:g}, no {label['no']:g}" in first
    assert f"better       {samples[1]['expert_decision']}" in first and "probability  yes 0." in first
    label = samples[0]["outcomes"]
    assert f"cost         yes {label['yes']:g}, no {label['no']:g}" in replayed
    assert f"error: sample 99 does not exist: choose 0 to {NUM_SAMPLES - 1}" in stdout
    assert "error: nowhere.txt cannot be read: No such file or directory" in stdout
    assert stdout.count("decision     ") == 3
    assert stderr.count("warning:") == 1 and "a junction with 4 stages (trained on 2)" in stderr


@pytest.mark.slow
@pytest.mark.timeout(600)  # vLLM takes long to start on a busy machine
def test_vllm_gives_the_answers_and_probabilities_of_transformers(
    repo_root: Path, model: Path, samples: Samples, tmp_path: Path
) -> None:
    table = tmp_path / "prompts.jsonl"
    table.write_text("".join(json.dumps({"prompt": sample["prompt"]}) + "\n" for sample in samples))
    words = ("--model-path", model, "--batch", "--input-file", table, "--output-file", tmp_path / "out.json")
    done = subprocess.run(
        command(repo_root, *words), cwd=tmp_path, capture_output=True, text=True, timeout=550, check=False
    )
    assert done.returncode == 0, done.stderr
    rows = json.loads((tmp_path / "out.json").read_text())["rows"]
    here = TransformersModel(LocalModelChoice(name="m", model=model), max_answer_tokens=16)
    replies = here.ask([sample["prompt"] for sample in samples])
    assert [row["model_answer"] for row in rows] == [reply.text for reply in replies]
    found = [reply.probabilities for reply in replies if reply.probabilities is not None]
    assert [row["p_yes"] for row in rows] == pytest.approx([each.yes for each in found], abs=1e-3)
    assert [row["p_no"] for row in rows] == pytest.approx([each.no for each in found], abs=1e-3)
    assert all(row["latency_s"] > 0 for row in rows)


class ChatServer(BaseHTTPRequestHandler):
    """Serves one model that is 80 % sure of "no". `requests` has the key and the body of each request."""

    requests: ClassVar[list[tuple[str | None, dict[str, Any]]]] = []

    def do_GET(self) -> None:
        self._send({"object": "list", "data": [{"id": "theirs", "object": "model", "created": 0, "owned_by": "x"}]})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.requests.append((self.headers["Authorization"], body))
        likely = [{"token": word, "logprob": math.log(p), "bytes": None} for word, p in (("no", 0.8), ("yes", 0.1))]
        tokens = [
            {"token": '{"extend": "', "logprob": 0.0, "bytes": None, "top_logprobs": []},
            {**likely[0], "top_logprobs": likely},
            {"token": '"}', "logprob": 0.0, "bytes": None, "top_logprobs": []},
        ]
        message = {"role": "assistant", "content": Decision.NO.answer}
        choice = {"index": 0, "finish_reason": "stop", "message": message, "logprobs": {"content": tokens}}
        self._send({"id": "1", "object": "chat.completion", "created": 0, "model": "theirs", "choices": [choice]})

    def _send(self, values: object) -> None:
        data = json.dumps(values).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        pass


def test_a_running_server_is_asked_with_the_key_and_the_sampling_that_the_user_gives(
    repo_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "prompt.txt").write_text("Extend?\n")
    server = ThreadingHTTPServer(("127.0.0.1", 0), ChatServer)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv(KEY_VARIABLE, "secret")
    words = ["--backend", "openai", "--base-url", f"http://127.0.0.1:{server.server_port}/v1", "--single"]
    words += ["--prompt-file", str(tmp_path / "prompt.txt")]
    words += ["--temperature", "0.5", "--top-p", "0.9", "--seed", "3", "--max-tokens", "9"]
    monkeypatch.setattr(sys, "argv", ["test_model.py", *words])
    runpy.run_path(str(repo_root / "scripts/test_model.py"))["main"]()
    server.shutdown()
    server.server_close()
    ((key, body),) = ChatServer.requests
    assert key == "Bearer secret"
    assert body == {
        "model": "theirs",
        "messages": [{"role": "user", "content": "Extend?"}],
        "temperature": 0.5,
        "top_p": 0.9,
        "seed": 3,
        "max_tokens": 9,
        "logprobs": True,
        "top_logprobs": 20,
    }
    assert "decision     no (exact)\nprobability  yes 0.1000, no 0.8000\nlatency" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--single"], "--single does not say which decision: give --data with --sample"),
        (["--single", "--sample", "1"], "--sample chooses a sample of a dataset: give --data, too"),
        (["--single", "--data", "DATA", "--junction", "A0"], "--junction and --time choose a sample together"),
        (
            ["--single", "--data", "DATA", "--junction", "A1", "--time", "9"],
            "is of junction 'A1': choose from A0",
        ),
        (["--single", "--data", "DATA", "--junction", "A0", "--time", "9"], "no sample at 9 s: the nearest are at "),
        (["--single", "--data", "DATA", "--sample", "999"], "sample 999 does not exist: choose 0 to 11"),
        (["--single", "--prompt-file", "p", "--observation", "o"], "--observation and --prompt-file both choose"),
        (["--single", "--prompt-file", "EMPTY"], "is empty: write the prompt into it"),
        (["--single", "--observation", "PARTIAL"], "observation.junction_id is not as generate_dataset writes it"),
        (["--single", "--data", "DATA", "--temperature", "-1"], "--temperature is -1: choose 0"),
        (["--single", "--data", "DATA", "--top-p", "0"], "--top-p is 0: choose more than 0, at most 1"),
        (["--single", "--data", "DATA", "--max-tokens", "0"], "--max-tokens is 0: choose at least 1"),
        (["--single", "--data", "DATA", "--model-path", "nowhere"], "--model-path nowhere: the model folder nowhere"),
        (["--single", "--data", "DATA", "--model-path", "m+"], "--model-path is m+: give FOLDER, FOLDER+ADAPTER or"),
        (["--single", "--base-url", "http://x/v1"], "--base-url is for --backend openai, but the backend is tr"),
        (["--single", "--backend", "openai"], "--backend openai needs the server's address: give --base-url"),
        (["--batch", "--input-file", "DATA"], "--batch needs --input-file and --output-file"),
        (["--batch", "--input-file", "DATA", "--output-file", "o.ods"], "--output-file o.ods ends with '.ods'"),
        (["--batch", "--input-file", "DATA", "--output-file", "no/o.csv"], "its folder does not exist"),
        (["--batch", "--input-file", "EMPTY", "--output-file", "o.csv"], "ends with '.txt': choose one of .json"),
    ],
)
def test_a_wrong_word_is_told_before_the_model_is_loaded(
    repo_root: Path,
    model: Path,
    part: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    words: list[str],
    told: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty.txt").write_text(" ")
    (tmp_path / "partial.json").write_text("{}")
    places = {"DATA": str(part), "EMPTY": "empty.txt", "PARTIAL": "partial.json"}
    monkeypatch.setattr(sys, "stdin", io.StringIO())  # no terminal
    backend = [] if "--backend" in words else ["--backend", "transformers"]
    given = [] if "--model-path" in words else ["--model-path", str(model)]
    monkeypatch.setattr(sys, "argv", ["test_model.py", *(places.get(word, word) for word in words), *backend, *given])
    monkeypatch.setitem(sys.modules, "recipes.serving.transformers_model", None)  # loading it would fail
    with pytest.raises((ConfigError, SampleError)) as caught:
        runpy.run_path(str(repo_root / "scripts/test_model.py"))["main"]()
    assert isinstance(caught.value, TscError) and told in str(caught.value)
