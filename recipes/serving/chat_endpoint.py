"""Ask a language model on any server with OpenAI's chat completions API (an Ask of tsc.controllers.language_model)."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Coroutine
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar
from urllib.parse import urlsplit

import openai
from openai.types.chat import ChatCompletion
from openai.types.chat.chat_completion import Choice

from recipes.serving.answer_probabilities import NUM_TOKENS, Positions, answer_probabilities
from tsc.controllers.language_model import Conversation, Reply
from tsc.errors import ConfigError, EndpointError, did_you_mean
from tsc.files import without_password

Result = TypeVar("Result")

KEY_VARIABLE = "OPENAI_API_KEY"

# For one request with all its tries; only a server that hangs takes so long.
NETWORK_TIMEOUT_S = 600.0
CHECK_TIMEOUT_S = 20.0
# With the client's growing pauses, this leaves a server about 8 s to restart or a rate limit to pass.
MAX_RETRIES = 4
MAX_CONCURRENT_REQUESTS = 64
# How many of the served models an error message names.
MAX_NAMES_SHOWN = 20


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How a model chooses its tokens. temperature 0: always the most likely one. top_p: only among the most likely
    tokens that together have this probability. seed: the same seed gives the same answers; None: others every time."""

    temperature: float = 0.0
    top_p: float = 1.0
    seed: int | None = None

    def as_dict(self) -> dict[str, float | int]:
        """The parameters of a request; those that change nothing are left out."""
        values: dict[str, float | int] = {"temperature": self.temperature}
        if self.top_p != 1.0:
            values["top_p"] = self.top_p
        if self.seed is not None:
            values["seed"] = self.seed
        return values


GREEDY = Sampling()


class ChatEndpoint:
    """A model on the server at `base_url`, which usually ends with /v1. The attribute base_url has no password.

    Requests set temperature 0 and max_answer_tokens, and no other parameter unless it is asked for here. The server
    uses the model's own chat template, as in training.

    model: None for the only model that the server serves.
    probabilities: also ask for the probabilities of the two answers. The replies of a server that does not tell
    log-probabilities have none.
    api_key: without it, the key is taken from the environment (OPENAI_API_KEY).
    time_limit_s: real time for one decision; a conversation without an answer by then is given up.
    own_vllm_log: the log of a vLLM that we started (recipes.serving.vllm_server), to name in errors. Such a server is
    reached without a proxy, and gets all conversations of a call in one request, which takes half as long as separate
    requests. With a time limit, each conversation has its own request, so that it does not wait for the others'
    answers; and so with probabilities, because each then has a latency of its own.
    """

    def __init__(
        self,
        base_url: str,
        model: str | None = None,
        *,
        max_answer_tokens: int = 16,
        time_limit_s: float | None = None,
        sampling: Sampling = GREEDY,
        probabilities: bool = False,
        api_key: str | None = None,
        own_vllm_log: Path | None = None,
    ) -> None:
        """Sends nothing yet. Raises ConfigError if base_url is not an address."""
        told = without_password(base_url)
        try:
            address = urlsplit(base_url)
            is_address = address.scheme in ("http", "https") and bool(address.hostname) and address.port != 0
        except ValueError:  # a port or an IPv6 address that is none
            is_address = False
        if not is_address:
            raise ConfigError(
                f"--base-url {told.rpartition('@')[2]!r} is not the address of a server: write http://HOST:PORT/v1, "
                "and characters such as / or @ in a password as %2F or %40"
            )
        self.base_url = told.rstrip("/")
        self.model = model
        self._max_answer_tokens = max_answer_tokens
        self._time_limit_s = time_limit_s
        self._sampling = sampling
        self._probabilities = probabilities
        self._in_one_request = own_vllm_log is not None and time_limit_s is None and not probabilities
        self._remedy = f"its log {own_vllm_log} may say why" if own_vllm_log else "check that it runs"
        self._client = openai.AsyncOpenAI(
            base_url=base_url.rstrip("/"),
            # The client requires a key; servers that do not need one ignore it.
            api_key=api_key or os.environ.get(KEY_VARIABLE) or "none",
            timeout=NETWORK_TIMEOUT_S,
            max_retries=MAX_RETRIES,
            http_client=openai.DefaultAsyncHttpxClient(trust_env=own_vllm_log is None),
        )
        self._runner = asyncio.Runner()
        self._may_send = asyncio.Semaphore(MAX_CONCURRENT_REQUESTS)

    def __enter__(self) -> ChatEndpoint:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        self._run(self._client.close())
        self._runner.close()

    def check(self) -> str:
        """The model's name. If none was given and the server serves one model, this is that model.

        Raises ConfigError if no server answers, the key is refused, or the server does not have the model.
        """
        served = self._run(self._served_models())
        if self.model is None and len(served) == 1:
            self.model = served[0]
        if self.model is None:
            raise ConfigError(
                f"the server at {self.base_url} serves {_listed(served)}: name one with --controllers llm:NAME=MODEL"
            )
        if self.model not in served:
            meant = did_you_mean(self.model, served)
            raise ConfigError(
                f"the server at {self.base_url} does not have the model {self.model!r}: {meant}it serves "
                f"{_listed(served)}"
            )
        return self.model

    def ask(self, conversations: list[Conversation]) -> list[Reply]:
        """Send all conversations at once. The replies have their order.

        latency_s runs from sending the request to its complete answer (monotonic clock). If one request carries all
        conversations, each reply has the request's latency and the mean number of prompt tokens. An answer without text
        (for example only the thoughts of a reasoning model) has the text "".
        Raises EndpointError if the server stops answering or refuses the request.
        """
        if not conversations:
            return []
        if self._in_one_request:
            return self._run(self._together(conversations))
        return self._run(self._one_by_one(conversations))

    async def _served_models(self) -> list[str]:
        try:
            page = await self._client.with_options(timeout=CHECK_TIMEOUT_S, max_retries=1).models.list()
            return [model.id for model in page.data]
        except (openai.AuthenticationError, openai.PermissionDeniedError) as error:
            given = "the key in" if os.environ.get(KEY_VARIABLE) else "a request without a key, set"
            raise ConfigError(
                f"the server at {self.base_url} refuses {given} {KEY_VARIABLE} ({error.status_code}): {_words(error)}"
            ) from error
        except openai.APIConnectionError as error:
            raise ConfigError(
                f"no server answers at {self.base_url} ({_words(error)}): start it, or correct --base-url"
            ) from error
        except openai.APIStatusError as error:
            raise ConfigError(
                f"the server at {self.base_url} cannot list its models (status {error.status_code}: {_words(error)}): "
                "does it have OpenAI's API, and does its address end with /v1?"
            ) from error
        except (openai.OpenAIError, AttributeError, TypeError, ValueError) as error:
            raise ConfigError(
                f"the server at {self.base_url} does not have OpenAI's API: it does not list its models"
            ) from error

    async def _one_by_one(self, conversations: list[Conversation]) -> list[Reply]:
        tasks = [asyncio.create_task(self._reply(conversation)) for conversation in conversations]
        try:
            return await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()

    async def _reply(self, conversation: Conversation) -> Reply:
        async with self._may_send:
            begin_s = time.monotonic()
            try:
                async with asyncio.timeout(self._time_limit_s):
                    completion = await self._complete("/chat/completions", conversation, **self._asked_tokens())
            except TimeoutError:
                return Reply(None, time.monotonic() - begin_s)
            latency_s = time.monotonic() - begin_s
        usage = completion.usage
        choice = completion.choices[0]
        return Reply(
            choice.message.content or "",
            latency_s,
            usage.prompt_tokens if usage else None,
            usage.completion_tokens if usage else None,
            answer_probabilities(_positions(choice)),
        )

    def _asked_tokens(self) -> dict[str, object]:
        return {"logprobs": True, "top_logprobs": NUM_TOKENS} if self._probabilities else {}

    async def _together(self, conversations: list[Conversation]) -> list[Reply]:
        begin_s = time.monotonic()
        completion = await self._complete("/chat/completions/batch", conversations, return_token_ids=True)
        latency_s = time.monotonic() - begin_s
        choices = sorted(completion.choices, key=lambda choice: choice.index)
        assert completion.usage is not None and len(choices) == len(conversations)
        prompt_tokens = round(completion.usage.prompt_tokens / len(conversations), 1)
        return [
            # token_ids is a field of vLLM's own.
            Reply(choice.message.content or "", latency_s, prompt_tokens, len(choice.token_ids))  # type: ignore[attr-defined]
            for choice in choices
        ]

    async def _complete(self, path: str, messages: object, **more: object) -> ChatCompletion:
        body = {
            "model": self.model,
            "messages": messages,
            **self._sampling.as_dict(),
            "max_tokens": self._max_answer_tokens,
            **more,
        }
        try:
            completion = await self._client.post(path, body=body, cast_to=ChatCompletion)
        except openai.APIConnectionError as error:
            raise EndpointError(
                f"the server at {self.base_url} stopped answering ({_words(error)}): {self._remedy}; to continue, run "
                "the same command again"
            ) from error
        except openai.APIStatusError as error:
            raise EndpointError(
                f"the server at {self.base_url} refuses to answer (status {error.status_code}): {_words(error)}. "
                "When that is solved, run the same command again to continue"
            ) from error
        if not getattr(completion, "choices", None):
            raise EndpointError(
                f"the server at {self.base_url} answers, but not with a chat completion: {str(completion)[:200]}"
            )
        return completion

    def _run(self, work: Coroutine[Any, Any, Result]) -> Result:
        return self._runner.run(work)


def _positions(choice: Choice) -> Positions:
    """Empty if the server does not tell log-probabilities."""
    positions = []
    before = ""
    for token in (choice.logprobs and choice.logprobs.content) or ():
        others = [other for other in token.top_logprobs if other.token != token.token]
        positions.append([(before + each.token, each.logprob) for each in (token, *others)])
        before += token.token
    return positions


def _listed(names: list[str]) -> str:
    shown = ", ".join(names[:MAX_NAMES_SHOWN])
    left = len(names) - MAX_NAMES_SHOWN
    return (f"{shown} and {left} more" if left > 0 else shown) or "none"


def _words(error: openai.APIError) -> str:
    """The server's own message, or why it could not be reached."""
    if isinstance(error, openai.APITimeoutError):
        return "it takes too long"
    if isinstance(error, openai.APIConnectionError):
        return str(error.__cause__ or error) or type(error.__cause__).__name__
    body = error.body
    if isinstance(body, dict) and isinstance(body.get("message"), str):
        return str(body["message"]).strip().rstrip(".")
    return error.message.strip()[:300]
