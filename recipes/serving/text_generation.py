"""A language model in this process that answers chats greedily, for uses that do not need vLLM."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import takewhile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from recipes.models.model_folder import check_adapter_folder, check_model_folder, no_progress_bars_in_logs
from tsc.errors import ConfigError

if TYPE_CHECKING:
    import torch

Conversation = Sequence[Mapping[str, str]]

# Below this size one CPU thread is faster than several, which spend more time on synchronising than on multiplying.
ONE_THREAD_MAX_PARAMETERS = 20_000_000


class LocalModel:
    """A model folder that answers greedily (temperature 0). A LoRA adapter, if given, is merged into the model.

    The answer to a prompt is remembered: at temperature 0 the same prompt has the same answer. The other prompts of a
    batch change the last digits of the logits (about 1e-6 in fp32). An answer can only depend on its batch if the two
    best tokens are that close. In half precision this happens now and then.

    Raises ConfigError if the folders do not hold a model with its tokenizer and chat template, or an adapter.
    """

    def __init__(
        self,
        path: Path | str,
        adapter: Path | str | None = None,
        *,
        max_new_tokens: int = 16,
        device: str | None = None,
        dtype: torch.dtype | None = None,
        num_threads: int | None = None,
        chat_template_options: Mapping[str, Any] | None = None,
    ) -> None:
        """Load the model.

        device: by default CUDA if there is a GPU, else the CPU. dtype: by default fp32 on the CPU, half precision on
        CUDA. num_threads: torch's number of CPU threads in this process; by default 1 for models under 20 million
        parameters, and unchanged for larger ones. chat_template_options: options of the chat template, for example
        `{"enable_thinking": False}`.
        """
        path = Path(path)
        check_model_folder(path)
        if adapter is not None:
            check_adapter_folder(Path(adapter))
        if max_new_tokens < 1:
            raise ConfigError(f"max_new_tokens {max_new_tokens} is less than 1")

        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer

        self.max_new_tokens = max_new_tokens
        self._chat_template_options = dict(chat_template_options or {})
        self._device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        self._tokenizer = AutoTokenizer.from_pretrained(path)
        if not self._tokenizer.chat_template:
            raise ConfigError(
                f"the tokenizer in {path} has no chat template: use an instruct model, or add the template"
            )
        # Merged in fp32: in half precision, a small update would be lost in the rounding of its weight.
        dtype = dtype or _default_dtype(self._device)
        with no_progress_bars_in_logs():
            model = AutoModelForCausalLM.from_pretrained(path, dtype=dtype if adapter is None else torch.float32)
        if adapter is not None:
            model = with_adapter(model, Path(adapter), path)
        self._model = model.to(device=self._device, dtype=dtype).eval()
        self._model.requires_grad_(False)
        if num_threads is None and self._device.type == "cpu" and model.num_parameters() < ONE_THREAD_MAX_PARAMETERS:
            num_threads = 1
        if num_threads is not None:
            torch.set_num_threads(num_threads)
        self._end_tokens = self._tokens_that_end_an_answer()
        self._pad_token: int = (
            self._tokenizer.pad_token_id if self._tokenizer.pad_token_id is not None else min(self._end_tokens)
        )
        self._answers: dict[str, str] = {}

    def generate(self, conversations: Sequence[Conversation]) -> list[str]:
        """The answer to each conversation, in order, without special tokens, cut off after max_new_tokens."""
        prompts = [self._render(conversation) for conversation in conversations]
        new = [prompt for prompt in dict.fromkeys(prompts) if prompt not in self._answers]
        if new:
            answers = self._decode_greedily(self._tokenizer(new, add_special_tokens=False)["input_ids"])
            texts = self._tokenizer.batch_decode(answers, skip_special_tokens=True)
            self._answers.update(zip(new, texts, strict=True))
        return [self._answers[prompt] for prompt in prompts]

    def _render(self, conversation: Conversation) -> str:
        text = self._tokenizer.apply_chat_template(
            list(conversation), tokenize=False, add_generation_prompt=True, **self._chat_template_options
        )
        assert isinstance(text, str)
        return text

    def _tokens_that_end_an_answer(self) -> frozenset[int]:
        declared = self._model.generation_config.eos_token_id
        tokens = declared if isinstance(declared, list) else [declared]
        found = frozenset(token for token in [*tokens, self._tokenizer.eos_token_id] if token is not None)
        if not found:
            raise ConfigError(
                f"neither the tokenizer nor generation_config.json in {self._tokenizer.name_or_path} names an end token"
            )
        return found

    def _decode_greedily(self, prompts: list[list[int]]) -> list[list[int]]:
        """The tokens of the answers, without the end token. Stops when all answers have ended."""
        import torch
        from transformers import DynamicCache

        width = max(len(prompt) for prompt in prompts)
        padding = [width - len(prompt) for prompt in prompts]
        # Padded on the left, so that all answers begin in the same column; positions do not count the padding.
        tokens = torch.tensor([[self._pad_token] * n + prompt for n, prompt in zip(padding, prompts, strict=True)])
        mask = torch.tensor([[0] * n + [1] * (width - n) for n in padding])
        positions = (mask.cumsum(dim=1) - 1).clamp(min=0)
        tokens, mask, positions = (each.to(self._device) for each in (tokens, mask, positions))
        ends = torch.tensor(sorted(self._end_tokens), device=self._device)
        ended = torch.zeros(len(prompts), dtype=torch.bool, device=self._device)
        cache = DynamicCache(config=self._model.config)
        said = []
        with torch.inference_mode():
            for _ in range(self.max_new_tokens):
                logits = self._model(
                    input_ids=tokens,
                    attention_mask=mask,
                    position_ids=positions,
                    past_key_values=cache,
                    use_cache=True,
                    # Only those of the last token: with a large vocabulary, all of them would be most of the work.
                    logits_to_keep=1,
                ).logits
                tokens = logits[:, -1].argmax(dim=-1, keepdim=True)
                said.append(tokens)
                ended |= torch.isin(tokens[:, 0], ends)
                if bool(ended.all()):
                    break
                mask = torch.nn.functional.pad(mask, (0, 1), value=1)
                positions = positions[:, -1:] + 1
        return [
            list(takewhile(lambda token: token not in self._end_tokens, row)) for row in torch.hstack(said).tolist()
        ]


def _default_dtype(device: torch.device) -> torch.dtype:
    import torch

    if device.type != "cuda":
        return torch.float32
    # Before Ampere, bfloat16 is emulated and slow.
    return torch.bfloat16 if torch.cuda.get_device_capability(device) >= (8, 0) else torch.float16


def with_adapter(model: Any, adapter: Path, base: Path) -> Any:
    """The model (loaded from `base`) with the adapter merged into its weights. Raises ConfigError."""
    from peft import PeftModel

    try:
        return PeftModel.from_pretrained(model, adapter).merge_and_unload()
    except (RuntimeError, ValueError) as error:
        raise ConfigError(f"the adapter {adapter} does not fit the model {base}: {error}") from error
