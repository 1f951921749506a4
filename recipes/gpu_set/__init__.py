"""Checks of the GPU set that need no GPU: what vLLM, Triton and torch would do on one, asked on any machine."""
