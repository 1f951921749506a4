"""Whether vLLM's engine has verl's adapter, asked as seldom as possible."""

from __future__ import annotations

from typing import Any


def remember_loaded_adapter(engine: Any) -> None:
    """verl asks the engine before each answer which adapters are loaded, and waits for its worker processes. verl's
    adapter has one id and is only ever replaced, so from the first yes on the engine need not be asked."""
    if "list_loras" in vars(engine):
        return
    ask = engine.list_loras
    loaded: set[int] = set()

    async def list_loras() -> set[int]:
        if not loaded:
            loaded.update(await ask())
        return set(loaded)

    engine.list_loras = list_loras
