"""Models that answer: vLLM, any OpenAI-compatible server, transformers."""
