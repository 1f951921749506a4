"""A language model as a controller: each due junction's observation becomes a prompt, the answer a decision."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from tsc.junction.decision import Decision, parse_answer
from tsc.junction.observation import observe
from tsc.junction.prompt import OWN_PROMPT, prompt_maker
from tsc.junction.signal_control import SignalControl
from tsc.rules.static import Static

Conversation = list[dict[str, str]]


@dataclass(frozen=True, kw_only=True)
class Probabilities:
    """Of the two answers, each from 0 to 1."""

    yes: float
    no: float


@dataclass(frozen=True)
class Reply:
    """A model's answer to one conversation.

    text: None if no answer came within the time limit.
    latency_s: from sending the conversation to the end of its answer, or to the time limit.
    prompt_tokens, completion_tokens: None if the model does not count them. If it counts several conversations
    together, prompt_tokens is their mean.
    probabilities: of the two answers; None if the model was not asked for them or does not tell them.
    """

    text: str | None
    latency_s: float
    prompt_tokens: float | None = None
    completion_tokens: int | None = None
    probabilities: Probabilities | None = None


# Sends all conversations to a model; the replies have the order of the conversations.
Ask = Callable[[list[Conversation]], list[Reply]]


def ask_function(generate: Callable[[list[Conversation]], list[str]]) -> Ask:
    """An Ask from `generate`, a model in this process. Each reply has the latency of the whole call, and no token
    counts."""

    def ask(conversations: list[Conversation]) -> list[Reply]:
        begin_s = time.monotonic()
        texts = generate(conversations)
        latency_s = time.monotonic() - begin_s
        return [Reply(text, latency_s) for text in texts]

    return ask


@dataclass(frozen=True, kw_only=True)
class Asked:
    """One decision of a LanguageModelController: the prompt, the answer, and the decision that was carried out.

    fallback: why the fallback decided: "invalid" (the answer cannot be read) or "late" (no answer within the time
    limit). None if the model decided.
    """

    junction_id: str
    prompt: Conversation
    reply: Reply
    decision: Decision
    fallback: Literal["invalid", "late"] | None


class LanguageModelController:
    """Asks the model for the decisions of all due junctions at once.

    If an answer cannot be read (counted in invalid_answers) or comes too late (late_answers), the fallback decides, the
    net's own plan: it does not improve on the present signals, so bad answers show in the results.

    latencies_s, prompt_tokens and completion_tokens have one entry for each decision so far. A late answer has the time
    that was waited, and no tokens. last_round holds the decisions of the last call of decide(), in its order.
    """

    def __init__(self, ask: Ask, prompt: str = OWN_PROMPT) -> None:
        """prompt: the name of the prompt maker (tsc.junction.prompt). Raises ConfigError."""
        self._ask = ask
        self._messages = prompt_maker(prompt)
        self.invalid_answers = 0
        self.late_answers = 0
        self.latencies_s: list[float] = []
        self.prompt_tokens: list[float | None] = []
        self.completion_tokens: list[int | None] = []
        self.last_round: list[Asked] = []

    def decide(self, control: SignalControl, junction_ids: Sequence[str]) -> dict[str, Decision]:
        self.last_round = []
        if not junction_ids:
            return {}
        prompts = [self._messages(observe(control, name)) for name in junction_ids]
        for name, prompt, reply in zip(junction_ids, prompts, self._ask(prompts), strict=True):
            decision = parse_answer(reply.text or "").decision
            reason: Literal["invalid", "late"] | None = None
            if decision is None:
                decision = Static().decide(control, [name])[name]
                reason = "late" if reply.text is None else "invalid"
            self.last_round.append(
                Asked(junction_id=name, prompt=prompt, reply=reply, decision=decision, fallback=reason)
            )
            self.invalid_answers += reason == "invalid"
            self.late_answers += reason == "late"
            self.latencies_s.append(reply.latency_s)
            self.prompt_tokens.append(reply.prompt_tokens)
            self.completion_tokens.append(reply.completion_tokens)
        return {asked.junction_id: asked.decision for asked in self.last_round}
