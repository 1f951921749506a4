"""The words that name language models, and servers that do not answer."""

from __future__ import annotations

import http.server
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from recipes.serving.chat_endpoint import ChatEndpoint
from recipes.serving.model_choice import LocalModelChoice, ServedModelChoice, parse_model_choice
from tsc.errors import ConfigError, EndpointError

BASE_URL = "http://localhost:8000/v1"


@pytest.fixture
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folders model/, adapter/ (made for model/) and stray/ (made for a model of the Hub), with empty weights."""
    monkeypatch.chdir(tmp_path)
    files = {
        "model": {"config.json": "{}", "tokenizer.json": "{}", "chat_template.jinja": "", "model.safetensors": ""},
        "adapter": {"adapter_config.json": '{"base_model_name_or_path": "model"}', "adapter_model.safetensors": ""},
        "stray": {"adapter_config.json": '{"base_model_name_or_path": "Qwen/Qwen3"}', "adapter_model.safetensors": ""},
    }
    for folder, contents in files.items():
        (tmp_path / folder).mkdir()
        for name, text in contents.items():
            (tmp_path / folder / name).write_text(text)
    return tmp_path


@pytest.mark.parametrize(
    ("word", "choice"),
    [
        ("llm:a=model", LocalModelChoice(name="a", model=Path("model"))),
        ("llm:a=model+adapter", LocalModelChoice(name="a", model=Path("model"), adapter=Path("adapter"))),
        ("llm:a=adapter", LocalModelChoice(name="a", model=Path("model"), adapter=Path("adapter"))),
    ],
)
def test_folders_are_read_as_model_adapter_or_both(folders: Path, word: str, choice: LocalModelChoice) -> None:
    assert parse_model_choice(word) == choice


@pytest.mark.parametrize(
    ("word", "choice"),
    [
        ("llm", ServedModelChoice(name="llm", base_url=BASE_URL, model_id=None)),
        ("llm:q=Qwen/Qwen3-8B", ServedModelChoice(name="q", base_url=BASE_URL, model_id="Qwen/Qwen3-8B")),
        ("llm:q=a+b=c", ServedModelChoice(name="q", base_url=BASE_URL, model_id="a+b=c")),
    ],
)
def test_with_a_server_the_word_names_one_of_its_models(word: str, choice: ServedModelChoice) -> None:
    assert parse_model_choice(word, BASE_URL) == choice


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("llm", "or give --base-url"),
        ("llm:a", "write llm:NAME=MODEL"),
        ("llm:a=", "write llm:NAME=MODEL"),
        ("llm:=model", "letters, digits"),
        ("llm:a/b=model", "'a/b' may only have letters"),
        ("llm:a=model+", "write llm:NAME=MODEL"),
        ("llm:a=nowhere", "controller 'llm:a=nowhere': the model folder nowhere does not exist"),
        ("llm:a=model+nowhere", "the adapter folder nowhere does not exist"),
        ("llm:a=model+model", "does not have adapter_config.json"),
        ("llm:a=stray", "made for the model 'Qwen/Qwen3', which is not a local folder: name the model's folder"),
    ],
)
def test_a_word_that_does_not_name_a_model_is_refused_with_the_remedy(folders: Path, word: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_model_choice(word)


def test_the_identity_of_a_model_follows_from_the_contents_of_its_files(folders: Path) -> None:
    choices = [parse_model_choice(word) for word in ("llm:a=model", "llm:b=model", "llm:a=adapter")]
    model, renamed, adapted = [choice.identity() for choice in choices]
    assert model == renamed != adapted
    (folders / "model/model.safetensors").write_text("other weights")
    assert choices[0].identity() != model


def unused_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def test_a_server_that_is_down_is_reported_before_and_during_a_run() -> None:
    with ChatEndpoint(f"http://127.0.0.1:{unused_port()}/v1", "m") as endpoint:
        with pytest.raises(
            ConfigError, match=r"no server answers at http://127.0.0.1:\d+/v1 \(.*connect.*\): start it"
        ):
            endpoint.check()
        with pytest.raises(EndpointError, match="stopped answering .*: check that it runs; to continue, run the same"):
            endpoint.ask([[{"role": "user", "content": "Extend?"}]] * 3)


@pytest.mark.parametrize(
    "base_url",
    ["localhost:8000/v1", "https://", "runs/demo", "me:secret@h/v1", "http://me:secret/3@h/v1", "http://h:abc/v1",
     "http://me:secret@[bad/v1"],
)  # fmt: skip
def test_a_base_url_that_is_not_an_address_is_refused(base_url: str) -> None:
    with pytest.raises(ConfigError, match="is not the address of a server: write http://HOST:PORT/v1") as refused:
        ChatEndpoint(base_url, "m")
    assert "secret" not in str(refused.value)


@pytest.fixture
def web_server(tmp_path: Path) -> Iterator[str]:
    """A server of web pages, not of models."""
    (tmp_path / "v1").mkdir()
    (tmp_path / "v1" / "models").write_text("<html>Welcome</html>")

    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *arguments: object) -> None:
            super().__init__(*arguments, directory=str(tmp_path))  # type: ignore[arg-type]

        def log_message(self, *arguments: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


def test_a_server_without_models_is_refused(web_server: str) -> None:
    with ChatEndpoint(f"{web_server}/v1") as endpoint, pytest.raises(ConfigError, match="does not have OpenAI's API"):
        endpoint.check()
    with ChatEndpoint(web_server) as endpoint, pytest.raises(ConfigError, match="does its address end with /v1"):
        endpoint.check()


def test_a_password_in_the_address_is_used_and_never_shown() -> None:
    with ChatEndpoint("http://me:secret@127.0.0.1:9/v1/", "m") as endpoint:
        assert endpoint.base_url == "http://127.0.0.1:9/v1"
        assert str(endpoint._client.base_url) == "http://me:secret@127.0.0.1:9/v1/"
        with pytest.raises(ConfigError) as told:
            endpoint.check()
    assert "secret" not in str(told.value)
    choice = ServedModelChoice(name="m", base_url="http://me:secret@host/v1", model_id="m")
    assert choice.identity() == "http://host/v1 m"
    assert "secret" not in repr(choice)
