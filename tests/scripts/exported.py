"""What a training exports."""

from __future__ import annotations

from pathlib import Path


def check_exported(out: Path, base: Path, *, least_change: float) -> None:
    """OUT/merged answers as `base` with OUT/adapter, and unlike `base` alone: some logit differs by least_change."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    start = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    merged = AutoModelForCausalLM.from_pretrained(out / "merged", dtype=torch.float32)
    tokens = torch.arange(10, 60)[None]
    with torch.no_grad():
        from_start = start(tokens).logits
        from_merged = merged(tokens).logits
        with_adapter = PeftModel.from_pretrained(start, out / "adapter")(tokens).logits
    assert (from_merged - from_start).abs().max() > least_change
    torch.testing.assert_close(from_merged, with_adapter, atol=1e-4, rtol=1e-4)
