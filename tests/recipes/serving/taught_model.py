"""A tiny model that has learned to answer in the right form, in a few seconds on the CPU."""

from __future__ import annotations

from pathlib import Path
from typing import Any

NUM_STEPS = 60


def teach(chats: list[list[dict[str, str]]], folder: Path) -> Path:
    """The folder of a model that was trained on the chats, whose last messages are the answers."""
    import pyarrow as pa
    import pyarrow.parquet as pq
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from recipes.models.tiny_model import TinyModelSize, build_tiny_model

    torch.set_num_threads(1)  # of a tiny model, more only wait for each other
    texts = folder.with_suffix(".parquet")
    pq.write_table(pa.table({"messages": chats}), texts)
    build_tiny_model(texts, folder, TinyModelSize(hidden=64, layers=2, heads=2), seed=1)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    rows = []
    for chat in chats:
        prompt = tokenizer.apply_chat_template(chat[:-1], add_generation_prompt=True, return_dict=False)
        whole = tokenizer.apply_chat_template(chat, return_dict=False)
        rows.append((whole, [-100] * len(prompt) + whole[len(prompt) :]))
    longest = max(len(whole) for whole, _ in rows)
    tokens = torch.tensor([whole + [0] * (longest - len(whole)) for whole, _ in rows])
    labels = torch.tensor([wanted + [-100] * (longest - len(wanted)) for _, wanted in rows])
    optimiser = torch.optim.AdamW(model.parameters(), lr=5e-3)
    torch.manual_seed(1)
    for _ in range(NUM_STEPS):
        loss = model(input_ids=tokens, labels=labels).loss
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    model.save_pretrained(folder)
    return folder
