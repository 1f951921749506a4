"""A language model as a controller: each due junction's observation becomes a prompt, the answer a decision."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from tsc.controllers.controller import Controller
from tsc.controllers.static import Static
from tsc.decision import Decision, parse_answer
from tsc.observation import observe
from tsc.prompt import messages
from tsc.signal_control import SignalControl

Conversation = list[dict[str, str]]
Ask = Callable[[list[Conversation]], list[str]]


class LanguageModelController:
    """Asks for all due junctions at once. An answer that cannot be read is counted in invalid_answers, and the net's
    own plan decides instead: a rule that does no better than what is there already, so that bad answers show."""

    def __init__(self, ask: Ask, fallback: Controller | None = None) -> None:
        self._ask = ask
        self._fallback = fallback or Static()
        self.invalid_answers = 0

    def decide(self, control: SignalControl, junction_ids: Sequence[str]) -> dict[str, Decision]:
        if not junction_ids:
            return {}
        texts = self._ask([messages(observe(control, name)) for name in junction_ids])
        decisions = {name: parse_answer(text).decision for name, text in zip(junction_ids, texts, strict=True)}
        unread = [name for name, decision in decisions.items() if decision is None]
        self.invalid_answers += len(unread)
        fallback = self._fallback.decide(control, unread)
        return {name: decision or fallback[name] for name, decision in decisions.items()}
