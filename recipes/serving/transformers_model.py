"""A language model in this process, with transformers (an Ask of tsc.controllers.language_model).

It answers one conversation after the other. vLLM is many times as fast for more than a few of them.
"""

from __future__ import annotations

import time

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from recipes.models.model_folder import no_progress_bars_in_logs
from recipes.serving.answer_probabilities import NUM_TOKENS, answer_probabilities
from recipes.serving.chat_endpoint import GREEDY, Sampling
from recipes.serving.model_choice import LocalModelChoice, with_adapter
from recipes.serving.vllm_server import num_threads
from tsc.controllers.language_model import Conversation, Reply


class TransformersModel:
    """On a GPU if there is one, with the precision of its weights; else on the CPU in fp32, as vLLM and training there.

    The replies have the probabilities of the two answers. Their token counts are exact.
    """

    def __init__(self, choice: LocalModelChoice, *, max_answer_tokens: int, sampling: Sampling = GREEDY) -> None:
        """Loads the model. Raises ConfigError if its adapter does not fit it."""
        self._on = "cuda" if torch.cuda.is_available() else "cpu"
        self._max_answer_tokens = max_answer_tokens
        self._sampling = sampling
        torch.set_num_threads(num_threads(choice.model))
        self._tokenizer = AutoTokenizer.from_pretrained(choice.model)
        with no_progress_bars_in_logs():
            model = AutoModelForCausalLM.from_pretrained(
                choice.model, dtype="auto" if self._on == "cuda" else torch.float32
            )
            if choice.adapter is not None:
                model = with_adapter(model, choice.model, choice.adapter)
        self._model = model.to(self._on).eval()
        # Without the folder's own generation_config.json, which may set a repetition penalty that training does not
        # use.
        own = self._model.generation_config
        end = own.eos_token_id if own.eos_token_id is not None else self._tokenizer.eos_token_id
        pad = self._tokenizer.pad_token_id
        self._model.generation_config = GenerationConfig(
            eos_token_id=end, pad_token_id=self._tokenizer.eos_token_id if pad is None else pad
        )

    def ask(self, conversations: list[Conversation]) -> list[Reply]:
        """The replies have the order of the conversations. latency_s is that of each by itself (monotonic clock)."""
        return [self._reply(conversation) for conversation in conversations]

    def _reply(self, conversation: Conversation) -> Reply:
        begin_s = time.monotonic()
        inputs = self._tokenizer.apply_chat_template(
            conversation, add_generation_prompt=True, return_tensors="pt", return_dict=True
        ).to(self._on)
        how: dict[str, object] = {"do_sample": False}
        if self._sampling.temperature > 0:
            how = {"do_sample": True, "temperature": self._sampling.temperature, "top_p": self._sampling.top_p}
            how["top_k"] = 0  # all tokens
            if self._sampling.seed is not None:
                torch.manual_seed(self._sampling.seed)
        with torch.inference_mode():
            made = self._model.generate(
                **inputs,
                **how,
                max_new_tokens=self._max_answer_tokens,
                return_dict_in_generate=True,
                output_logits=True,
            )
        num_prompt = inputs["input_ids"].shape[1]
        tokens = made.sequences[0, num_prompt:].tolist()
        text = self._text(tokens)
        latency_s = time.monotonic() - begin_s
        positions = [
            self._candidates(tokens[:number], token, logits[0])
            for number, (token, logits) in enumerate(zip(tokens, made.logits, strict=True))
        ]
        return Reply(text, latency_s, num_prompt, len(tokens), answer_probabilities(positions))

    def _candidates(self, before: list[int], chosen: int, logits: torch.Tensor) -> list[tuple[str, float]]:
        """The most likely tokens of a position, the chosen one first."""
        log_probabilities = torch.log_softmax(logits.float(), dim=-1)
        likely = log_probabilities.topk(min(NUM_TOKENS, len(log_probabilities))).indices.tolist()
        return [
            (self._text([*before, token]), float(log_probabilities[token]))
            for token in dict.fromkeys([chosen, *likely])
        ]

    def _text(self, tokens: list[int]) -> str:
        text: str = self._tokenizer.decode(tokens, skip_special_tokens=True)
        return text
