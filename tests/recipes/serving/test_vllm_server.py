"""A real vLLM that serves a random tiny model and its adapter, asked as in an evaluation."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import peft
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import transformers

from recipes.models.tiny_model import TinyModelSize, build_tiny_model
from recipes.serving.chat_endpoint import KEY_VARIABLE, ChatEndpoint
from recipes.serving.model_choice import LocalModelChoice, ServedModelChoice, checked, merge_adapter
from recipes.serving.vllm_server import VllmServer
from tests.recipes.serving.greedy_answers import greedy_answers
from tests.tsc.sumo_process import in_new_process
from tsc.controllers.language_model import Conversation, LanguageModelController
from tsc.errors import ConfigError, EndpointError
from tsc.junction.decision import parse_answer
from tsc.junction.signal_control import SignalControl
from tsc.junction.timing import Timing
from tsc.sumo.running import SumoFiles
from tsc.sumo.simulation import Simulation

pytestmark = pytest.mark.slow

MAX_ANSWER_TOKENS = 12


def conversation(queue_veh: int) -> Conversation:
    return [
        {"role": "system", "content": 'Extend the green? Answer with {"extend": "yes"} or {"extend": "no"} only.'},
        {
            "role": "user",
            "content": f"green: queue {queue_veh} veh\nred: queue {7 * queue_veh % 31} veh " * (queue_veh % 3 + 1),
        },
    ]


def without_broken_letters(texts: list[str | None]) -> list[str]:
    """Random bytes are rarely UTF-8; vLLM leaves out a letter whose bytes are incomplete at the end."""
    return [(text or "").replace("\N{REPLACEMENT CHARACTER}", "") for text in texts]


CONVERSATIONS = [conversation(queue_veh) for queue_veh in range(24)]


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    answers = [{"role": "assistant", "content": f'{{"extend": "{word}"}}'} for word in ("yes", "no")]
    chats = [[*each, answers[number % 2]] for number, each in enumerate(CONVERSATIONS)]
    pq.write_table(pa.table({"messages": chats}), folder / "texts.parquet")
    build_tiny_model(folder / "texts.parquet", folder / "tiny", TinyModelSize(hidden=64, layers=2, heads=2), seed=1)
    return folder / "tiny"


@pytest.fixture(scope="module")
def adapter_folder(model_folder: Path) -> Path:
    """An adapter of a rank that vLLM does not have, with random weights that change the answers."""
    model = transformers.AutoModelForCausalLM.from_pretrained(model_folder, dtype=torch.float32)
    torch.manual_seed(3)
    config = peft.LoraConfig(r=5, lora_alpha=10, target_modules="all-linear", init_lora_weights=False)
    folder = model_folder.parent / "adapter"
    peft.get_peft_model(model, config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def log_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("log") / "vllm" / "vllm.log"


@pytest.fixture(scope="module")
def endpoint(model_folder: Path, adapter_folder: Path, log_file: Path) -> Iterator[ChatEndpoint]:
    """A server that has the adapter under the name "tiny", and the model without it as "tiny-base"."""
    with VllmServer(
        model_folder, adapter_folder, name="tiny", log_file=log_file, max_answer_tokens=MAX_ANSWER_TOKENS
    ) as endpoint:
        yield endpoint


@pytest.fixture(scope="module")
def key(endpoint: ChatEndpoint) -> str:
    return endpoint._client.api_key


@pytest.fixture(scope="module")
def expected(model_folder: Path, adapter_folder: Path) -> list[str]:
    answers = greedy_answers(model_folder, CONVERSATIONS, adapter=adapter_folder, max_new_tokens=MAX_ANSWER_TOKENS)
    return without_broken_letters([*answers])


def answers_of(endpoint: ChatEndpoint, conversations: list[Conversation]) -> list[str]:
    return without_broken_letters([reply.text for reply in endpoint.ask(conversations)])


def test_answers_come_back_in_order_and_are_those_of_the_model_in_this_process(
    endpoint: ChatEndpoint, expected: list[str]
) -> None:
    assert len(set(expected)) > 10
    assert answers_of(endpoint, CONVERSATIONS) == expected
    assert answers_of(endpoint, CONVERSATIONS[::-1]) == expected[::-1]
    assert endpoint.ask([]) == []


def test_tokens_and_latency_are_recorded(endpoint: ChatEndpoint, key: str, model_folder: Path) -> None:
    tokenizer = transformers.AutoTokenizer.from_pretrained(model_folder)
    lengths = [
        len(tokenizer.apply_chat_template(each, add_generation_prompt=True, return_dict=False))
        for each in CONVERSATIONS
    ]
    begin_s = time.monotonic()
    replies = endpoint.ask(CONVERSATIONS)
    passed_s = time.monotonic() - begin_s
    assert all(0 < reply.latency_s <= passed_s for reply in replies)
    assert {reply.prompt_tokens for reply in replies} == {round(sum(lengths) / len(lengths), 1)}
    assert all(0 < (reply.completion_tokens or 0) <= MAX_ANSWER_TOKENS for reply in replies)
    with ChatEndpoint(endpoint.base_url, "tiny", api_key=key, max_answer_tokens=MAX_ANSWER_TOKENS) as other:
        one_by_one = other.ask(CONVERSATIONS)
    assert [reply.prompt_tokens for reply in one_by_one] == lengths
    assert [reply.completion_tokens for reply in one_by_one] == [reply.completion_tokens for reply in replies]
    assert len({reply.latency_s for reply in one_by_one}) > 1


def test_requests_of_their_own_get_the_same_answers_as_one_for_all(
    endpoint: ChatEndpoint, key: str, expected: list[str]
) -> None:
    with ChatEndpoint(endpoint.base_url, "tiny", api_key=key, max_answer_tokens=MAX_ANSWER_TOKENS) as other:
        assert answers_of(other, CONVERSATIONS) == expected


def test_an_adapter_changes_the_answers_of_its_model(
    endpoint: ChatEndpoint, key: str, model_folder: Path, expected: list[str]
) -> None:
    with ChatEndpoint(endpoint.base_url, "tiny-base", api_key=key, max_answer_tokens=MAX_ANSWER_TOKENS) as base:
        answers = answers_of(base, CONVERSATIONS)
    of_model = greedy_answers(model_folder, CONVERSATIONS, max_new_tokens=MAX_ANSWER_TOKENS)
    assert answers == without_broken_letters([*of_model])
    assert answers != expected


def test_an_answer_after_the_time_limit_is_late(endpoint: ChatEndpoint, key: str) -> None:
    with ChatEndpoint(
        endpoint.base_url, "tiny", api_key=key, time_limit_s=0.002, own_vllm_log=Path("vllm.log")
    ) as hurried:
        replies = hurried.ask(CONVERSATIONS)
    assert [reply.text for reply in replies] == [None] * len(CONVERSATIONS)
    assert all(0.002 <= reply.latency_s < 1 and reply.completion_tokens is None for reply in replies)
    with ChatEndpoint(
        endpoint.base_url, "tiny", api_key=key, time_limit_s=60, own_vllm_log=Path("vllm.log")
    ) as patient:
        assert None not in [reply.text for reply in patient.ask(CONVERSATIONS)]


def test_an_unknown_model_is_refused_with_the_served_ones(
    endpoint: ChatEndpoint, key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", key)
    with pytest.raises(ConfigError, match="the model 'tinny': did you mean 'tiny'.*it serves tiny-base, tiny$"):
        checked(ServedModelChoice(name="x", base_url=endpoint.base_url, model_id="tinny"))
    with pytest.raises(ConfigError, match="serves tiny-base, tiny: name one with"):
        checked(ServedModelChoice(name="x", base_url=endpoint.base_url, model_id=None))
    choice = ServedModelChoice(name="x", base_url=endpoint.base_url, model_id="tiny")
    assert checked(choice) == choice


@pytest.mark.parametrize(("given", "words"), [(None, "a request without a key, set"), ("wrong", "refuses the key in")])
def test_a_refused_key_names_the_variable(
    endpoint: ChatEndpoint, monkeypatch: pytest.MonkeyPatch, given: str | None, words: str
) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    if given:
        monkeypatch.setenv("OPENAI_API_KEY", given)
    with pytest.raises(ConfigError, match=rf"{words} OPENAI_API_KEY \(401\)"):
        checked(ServedModelChoice(name="x", base_url=endpoint.base_url, model_id="tiny"))


def test_a_prompt_that_is_too_long_is_refused_in_the_server_s_words(endpoint: ChatEndpoint) -> None:
    with pytest.raises(EndpointError, match=r"status 400.*(maximum|longer|context)"):
        endpoint.ask([CONVERSATIONS[0], [{"role": "user", "content": "queue 7 veh " * 4000}]])


def _one_round(files: SumoFiles, base_url: str, key: str) -> LanguageModelController:
    control = SignalControl(Simulation(files), Timing())
    control.start()
    with ChatEndpoint(base_url, "tiny", api_key=key) as endpoint:
        model = LanguageModelController(endpoint.ask)
        while not model.latencies_s:
            control.advance(model.decide(control, control.due_junctions()))
    model._ask = list  # what cannot leave the process
    return model


def test_rubbish_is_counted_and_the_net_s_own_plan_decides(files: SumoFiles, endpoint: ChatEndpoint, key: str) -> None:
    model = in_new_process(_one_round, files, endpoint.base_url, key)
    assert (model.invalid_answers, model.late_answers) == (len(model.latencies_s), 0)
    asked = model.last_round[0]
    assert asked.fallback == "invalid" and parse_answer(asked.reply.text).decision is None
    assert [message["role"] for message in asked.prompt] == ["system", "user"]
    assert model.prompt_tokens == [asked.reply.prompt_tokens for asked in model.last_round]


def test_an_evaluation_asks_a_running_server_and_reports_its_rubbish(
    repo_root: Path, short_scenario: Path, endpoint: ChatEndpoint, key: str, tmp_path: Path
) -> None:
    command = [sys.executable, str(repo_root / "scripts/evaluate.py"), "--scenarios", str(short_scenario)]
    command += ["--controllers", "static", "llm:mine=tiny", "--base-url", endpoint.base_url]
    command += ["--seeds", "1", "--end", "60", "--out", str(tmp_path)]
    environment = os.environ | {KEY_VARIABLE: key}
    done = subprocess.run(command, capture_output=True, text=True, timeout=200, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    _, asked = (json.loads(line) for line in (tmp_path / "episodes.jsonl").read_text().splitlines())
    assert asked["kind"] == "llm" and asked["invalid_answers"] == asked["decisions"] > 0
    assert asked["latency_p50_s"] > 0 and asked["prompt_tokens"] > 50
    (decisions,) = (tmp_path / "decisions").rglob("*.jsonl")
    assert len(decisions.read_text().splitlines()) == asked["decisions"]
    assert "mine" in (tmp_path / "report.html").read_text()


def test_a_server_that_dies_in_the_middle_is_told_and_leaves_no_process(endpoint: ChatEndpoint) -> None:
    """This must be the last test that uses the server."""
    servers = [child for child in psutil.Process().children(recursive=True) if "VLLM::" in "".join(child.cmdline())]
    assert servers
    for server in servers:
        server.kill()
    with pytest.raises(EndpointError, match="its log .*vllm.log may say why; to continue, run the same command"):
        for _ in range(3):
            endpoint.ask(CONVERSATIONS)


CALLER = """
import sys, time
from pathlib import Path
from recipes.serving.vllm_server import VllmServer
with VllmServer(Path(sys.argv[1]), name="tiny", log_file=Path(sys.argv[2])):
    time.sleep(300)
"""


@pytest.mark.parametrize(("signum", "once_there"), [(signal.SIGINT, "api_server"), (signal.SIGKILL, "VLLM::")])
def test_no_process_outlives_the_caller(
    model_folder: Path, tmp_path: Path, signum: signal.Signals, once_there: str
) -> None:
    log_file = tmp_path / "vllm.log"
    caller = subprocess.Popen([sys.executable, "-c", CALLER, model_folder, log_file], stderr=subprocess.DEVNULL)
    processes: list[psutil.Process] = []
    deadline_s = time.monotonic() + 120
    while not any(once_there in "".join(process.cmdline()) for process in processes):
        assert caller.poll() is None and time.monotonic() < deadline_s
        time.sleep(0.2)
        processes = [child for child in psutil.Process(caller.pid).children(recursive=True) if child.is_running()]
    os.kill(caller.pid, signum)
    assert caller.wait(timeout=40) != 0
    assert psutil.wait_procs(processes, timeout=30)[1] == []


def test_a_server_that_cannot_start_shows_the_end_of_its_log(model_folder: Path, tmp_path: Path) -> None:
    broken = shutil.copytree(model_folder, tmp_path / "broken")
    config = json.loads((broken / "config.json").read_text())
    (broken / "config.json").write_text(json.dumps(config | {"architectures": ["HorseForCausalLM"]}))
    log_file = tmp_path / "vllm.log"
    with (
        pytest.raises(EndpointError, match=rf"(?s)vLLM could not serve .*broken.*Error.*Horse.*{log_file}"),
        VllmServer(broken, name="broken", log_file=log_file),
    ):
        pass


def test_a_merged_adapter_gives_the_answers_of_model_and_adapter(
    model_folder: Path, adapter_folder: Path, expected: list[str], tmp_path: Path
) -> None:
    merge_adapter(model_folder, adapter_folder, tmp_path)
    answers = greedy_answers(tmp_path, CONVERSATIONS, max_new_tokens=MAX_ANSWER_TOKENS)
    assert without_broken_letters([*answers]) == expected


def test_an_adapter_of_another_model_is_refused(model_folder: Path, adapter_folder: Path, tmp_path: Path) -> None:
    texts = model_folder.parent / "texts.parquet"
    build_tiny_model(texts, tmp_path / "wider", TinyModelSize(hidden=96, layers=2), seed=1)
    with pytest.raises(ConfigError, match="does not fit the model"):
        merge_adapter(tmp_path / "wider", adapter_folder, tmp_path / "merged")


def test_a_model_without_chat_template_or_with_too_large_an_adapter_is_refused_before_anything_starts(
    model_folder: Path, adapter_folder: Path, tmp_path: Path
) -> None:
    broken = shutil.copytree(model_folder, tmp_path / "model")
    (broken / "chat_template.jinja").unlink()
    with pytest.raises(ConfigError, match="has no chat template"):
        checked(LocalModelChoice(name="x", model=broken))
    large = shutil.copytree(adapter_folder, tmp_path / "adapter")
    config = json.loads((large / "adapter_config.json").read_text())
    (large / "adapter_config.json").write_text(json.dumps(config | {"rank_pattern": {"q_proj": 513}}))
    with pytest.raises(ConfigError, match="rank 513: vLLM serves ranks from 1 to 512"):
        checked(LocalModelChoice(name="x", model=model_folder, adapter=large))
