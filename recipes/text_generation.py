"""A language model in this process, answering chats greedily: for evaluation, where verl and vLLM would be too much."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from recipes.model_folder import check_adapter_folder, check_model_folder, no_progress_bars_in_logs
from tsc.errors import ConfigError

if TYPE_CHECKING:
    import torch

Conversation = Sequence[Mapping[str, str]]

# Under this size one CPU thread is faster than several, which spend more time on meeting than on multiplying.
ONE_THREAD_MAX_PARAMETERS = 20_000_000
# Answers remembered as guesses for the next ones. There are two answers in the format, and a few ways to miss it.
MAX_GUESSES = 16


class LocalModel:
    """Greedy (temperature 0) answers of a model folder, optionally with a LoRA adapter, which is merged into it.

    Tokens are not generated one by one where that can be avoided: the model's own earlier answers are taken as guesses,
    checked in one pass, and kept as far as the model would have said the same. The answers are those of plain greedy
    decoding.

    The answer to a prompt is remembered, since at temperature 0 the same prompt has the same answer. Which prompts
    share a batch changes the logits in their last digits (about 1e-6 in fp32); an answer could depend on its batch only
    where the two best tokens are that close. In half precision this happens now and then.

    Raises ConfigError when the folders do not hold a model with its tokenizer and chat template, or an adapter.
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
        """`device` is CUDA where there is one. `dtype` is fp32 on the CPU, half precision on CUDA.

        `num_threads` is torch's number of CPU threads in this process: 1 for models under 20 million parameters, else
        left as it is. `chat_template_options` go to the chat template, such as `{"enable_thinking": False}`.
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
        # Merged in fp32: in half precision a small update would be lost in the rounding of the weight it is added to.
        dtype = dtype or _default_dtype(self._device)
        with no_progress_bars_in_logs():
            model = AutoModelForCausalLM.from_pretrained(path, dtype=dtype if adapter is None else torch.float32)
        if adapter is not None:
            model = _with_adapter(model, Path(adapter), path)
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
        # A rejected guess is masked out of attention; a recurrent state could not be taken back.
        layer_types = getattr(self._model.config.get_text_config(), "layer_types", None) or []
        self._may_guess = all(layer_type.endswith("attention") for layer_type in layer_types) and not any(
            layer_type.startswith("linear") for layer_type in layer_types
        )
        self._answers: dict[str, str] = {}
        self._guesses: Counter[tuple[int, ...]] = Counter()

    def generate(self, conversations: Sequence[Conversation]) -> list[str]:
        """The answer to each conversation, in order, without special tokens. Cut off after max_new_tokens."""
        prompts = [self._render(conversation) for conversation in conversations]
        new = [prompt for prompt in dict.fromkeys(prompts) if prompt not in self._answers]
        if new:
            answers = self._decode_greedily(self._tokenizer(new, add_special_tokens=False)["input_ids"])
            if self._may_guess:
                self._guesses.update(tuple(answer) for answer in answers)
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

    def _guess_after(self, said: list[int]) -> tuple[int, ...]:
        """How the commonest earlier answer that begins with `said` goes on."""
        for guess, _ in self._guesses.most_common(MAX_GUESSES):
            if len(guess) > len(said) and list(guess[: len(said)]) == said:
                return guess[len(said) :]
        return ()

    def _decode_greedily(self, prompts: list[list[int]]) -> list[list[int]]:
        """The answers' tokens, end token included.

        Every pass feeds each unfinished row what the model has not read yet (at first the prompt) and then a guess of
        how the answer goes on. The tokens of the guess that the model would have said itself are kept, and the token it
        says after them is new. Rejected tokens stay in the cache, masked out; positions are counted without them.
        """
        import torch
        from transformers import DynamicCache

        rows = list(range(len(prompts)))
        answers: list[list[int]] = [[] for _ in rows]
        unread = [list(prompt) for prompt in prompts]
        num_read = [0 for _ in rows]
        # Which slots of the cache count, per row.
        mask = torch.zeros((len(prompts), 0), dtype=torch.long)
        cache = DynamicCache(config=self._model.config)
        with torch.inference_mode():
            while rows:
                guesses = [
                    self._guess_after(answers[row])[: self.max_new_tokens - len(answers[row]) - 1] for row in rows
                ]
                # Aligned where the answers begin: padding left of what is unread and right of the guess.
                num_left = max(len(unread[row]) for row in rows)
                num_right = max(len(guess) for guess in guesses)
                tokens, positions, fed_mask = [], [], []
                for row, guess in zip(rows, guesses, strict=True):
                    left = num_left - len(unread[row])
                    right = num_right - len(guess)
                    num_fed = len(unread[row]) + len(guess)
                    tokens.append([self._pad_token] * left + unread[row] + list(guess) + [self._pad_token] * right)
                    positions.append([0] * left + list(range(num_read[row], num_read[row] + num_fed)) + [0] * right)
                    fed_mask.append([0] * left + [1] * num_fed + [0] * right)
                num_slots = mask.shape[1]
                mask = torch.cat([mask, torch.tensor(fed_mask)], dim=1)
                logits = self._model(
                    input_ids=torch.tensor(tokens, device=self._device),
                    attention_mask=mask.to(self._device),
                    position_ids=torch.tensor(positions, device=self._device),
                    past_key_values=cache,
                    use_cache=True,
                    # Not the logits of the prompt: those are most of the work of a large vocabulary.
                    logits_to_keep=num_right + 1,
                ).logits
                best = logits.argmax(dim=-1).tolist()

                unfinished = []
                for index, (row, guess) in enumerate(zip(rows, guesses, strict=True)):
                    num_kept = 0
                    while num_kept < len(guess) and best[index][num_kept] == guess[num_kept]:
                        num_kept += 1
                    mask[index, num_slots + num_left + num_kept :] = 0
                    num_read[row] += len(unread[row]) + num_kept
                    said = best[index][: num_kept + 1]
                    unread[row] = said[-1:]
                    answers[row] += said
                    if not self._is_finished(answers[row]):
                        unfinished.append(index)
                if len(unfinished) < len(rows):
                    rows = [rows[index] for index in unfinished]
                    mask = mask[unfinished]
                    if rows:
                        cache.batch_select_indices(torch.tensor(unfinished, device=self._device))
        return answers

    def _is_finished(self, answer: list[int]) -> bool:
        """Cuts `answer` after its first end token."""
        for index, token in enumerate(answer):
            if token in self._end_tokens:
                del answer[index + 1 :]
                return True
        return len(answer) >= self.max_new_tokens


def _default_dtype(device: torch.device) -> torch.dtype:
    import torch

    if device.type != "cuda":
        return torch.float32
    # Before Ampere, bfloat16 is emulated and slow.
    return torch.bfloat16 if torch.cuda.get_device_capability(device) >= (8, 0) else torch.float16


def _with_adapter(model: Any, adapter: Path, base: Path) -> Any:
    from peft import PeftModel

    try:
        return PeftModel.from_pretrained(model, adapter).merge_and_unload()
    except (RuntimeError, ValueError) as error:
        raise ConfigError(f"the adapter {adapter} does not fit the model {base}: {error}") from error
