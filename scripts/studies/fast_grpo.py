"""GRPO of a small model in one process, for studies that need dozens of training runs on a CPU.

The arithmetic is verl's own: its group advantages, clipped policy loss, KL penalty and aggregation over tokens. AdamW,
cosine decay and gradient clipping are set as in recipes/grpo.yaml, and LoRA comes from peft. The parts that make a step
of verl slow for a tiny model are missing: vLLM, Ray, the agent loop, and the copies between them.

Answers are sampled in one of two ways:
    decision token   the answer's text is given up to the one token that says yes or no. Only that token is sampled, and
                     the rest of the answer is appended. If the model is certain of all other tokens (see
                     Policy.certainty), this is GRPO of whole answers at a fraction of the cost.
    whole answers    every token is sampled, as in verl: for models that do not yet keep to the format.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import DictConfig, OmegaConf
from verl.trainer.ppo.core_algos import agg_loss, compute_grpo_outcome_advantage, get_policy_loss_fn, kl_penalty
from verl.utils.torch_functional import get_cosine_schedule_with_warmup
from verl.workers.config import ActorConfig

from recipes.models.model_folder import check_model_folder, no_progress_bars_in_logs
from recipes.preflight.compose import compose
from reward.ground_truth import GroundTruth, parse_ground_truth
from reward.scoring import score_answer
from reward.settings import RewardSettings, load_settings
from reward.stretch_scoring import score_stretch
from reward.stretch_source import StretchSource
from tsc.cost.outcome import Outcomes
from tsc.errors import ConfigError
from tsc.junction.decision import Answer, AnswerForm, Decision, parse_answer

Conversation = Sequence[Mapping[str, str]]

# Part of the fingerprint of every stored run. Change it whenever a run would compute something else.
ARITHMETIC_VERSION = 1
# recipes/grpo.yaml: data.max_response_length
MAX_ANSWER_TOKENS = 16
# So low that only the likeliest token is drawn.
GREEDY_TEMPERATURE = 1e-6
# The number of prompts in one pass without gradients.
PASS_PROMPTS = 128


@cache
def _recipe() -> DictConfig:
    return compose("grpo", ["start=tiny"])


def _of_recipe(key: str) -> Any:
    """A field whose default is the recipe's."""
    return field(default_factory=lambda: OmegaConf.select(_recipe(), key))


@dataclass(frozen=True, kw_only=True)
class GrpoSettings:
    """The settings of one training run. The defaults are the recipe's for a tiny model (recipes/grpo.yaml).

    drop_within_veh_s: leave out states whose two costs differ by no more than this; None keeps all, including ties.
    balance: leave out states until each answer is the better one equally often (json_to_parquet --balance).
    weigh_by_gap: draw states in proportion to |cost(yes) - cost(no)| / max(cost(yes), cost(no)). With `balance`, each
        answer is the better one half of the time.
    filter_groups: replace groups whose answers all have the same score, until the batch is full (DAPO; verl's
        algorithm.filter_groups).
    reward: overrides of configs/reward.yaml, for example {"normalisation": "sign"}.
    whole_answers: sample every token of an answer, not only the decision token.
    decisions: the number of consecutive decisions per answer, scored together (docs/multi_decision.md).
    """

    steps: int = _of_recipe("trainer.total_training_steps")
    batch_prompts: int = _of_recipe("data.train_batch_size")
    rollout_n: int = _of_recipe("actor_rollout_ref.rollout.n")
    learning_rate: float = _of_recipe("actor_rollout_ref.actor.optim.lr")
    lora_rank: int = _of_recipe("actor_rollout_ref.model.lora_rank")
    lora_alpha: int = _of_recipe("actor_rollout_ref.model.lora_alpha")
    kl: float = _of_recipe("actor_rollout_ref.actor.kl_loss_coef")
    normalise_std: bool = _of_recipe("algorithm.norm_adv_by_std_in_grpo")
    temperature: float = _of_recipe("actor_rollout_ref.rollout.temperature")
    drop_within_veh_s: float | None = 0.0
    balance: bool = False
    weigh_by_gap: bool = False
    filter_groups: bool = False
    reward: Mapping[str, Any] = field(default_factory=dict)
    whole_answers: bool = False
    decisions: int = 1


@dataclass(frozen=True, kw_only=True)
class State:
    """A decision point: its prompt, the cost of each answer, and the state from which it can be replayed."""

    prompt: list[dict[str, str]]
    outcomes: Outcomes
    truth: GroundTruth | None = None

    @property
    def relative_gap(self) -> float:
        """What `yes` saves against `no`, as a share of the larger cost."""
        return self.outcomes.saving(Decision.YES) / max(self.outcomes.yes, self.outcomes.no, 1e-9)


def load_states(parquet_file: Path) -> list[State]:
    """The states of json_to_parquet's train.parquet or val.parquet, in order. Raises ConfigError without labels."""
    import pyarrow.parquet as pq

    if not parquet_file.is_file():
        raise ConfigError(f"{parquet_file} does not exist: make it with data_tools/json_to_parquet.py --ties keep")
    table = pq.read_table(parquet_file, columns=["prompt", "reward_model"])
    states = []
    for prompt, reward_model in zip(table["prompt"].to_pylist(), table["reward_model"].to_pylist(), strict=True):
        truth = parse_ground_truth(reward_model["ground_truth"])
        if truth.outcomes is None:
            raise ConfigError(f"{parquet_file} has states without outcomes: label them with generate_dataset")
        states.append(State(prompt=prompt, outcomes=truth.outcomes, truth=truth))
    return states


@dataclass(frozen=True, kw_only=True)
class AnswerShape:
    """The tokens of the two exact answers, which differ in exactly one token."""

    before: list[int]
    yes: int
    no: int
    after: list[int]

    @property
    def num_tokens(self) -> int:
        return len(self.before) + 1 + len(self.after)

    @classmethod
    def of(cls, tokenizer: Any) -> AnswerShape:
        yes, no = (
            tokenizer(decision.answer + tokenizer.eos_token, add_special_tokens=False)["input_ids"]
            for decision in Decision
        )
        differing = [i for i, (a, b) in enumerate(zip(yes, no, strict=False)) if a != b]
        if len(yes) != len(no) or len(differing) != 1:
            raise ConfigError(
                f"the answers {Decision.YES.answer} and {Decision.NO.answer} differ in more than one token of "
                f"{tokenizer.name_or_path}: this study needs a tokenizer made by recipes/models/tiny_model.py"
            )
        at = differing[0]
        return cls(before=yes[:at], yes=yes[at], no=no[at], after=yes[at + 1 :])


@dataclass(frozen=True, kw_only=True)
class Reading:
    """A batch of prompts that the model has read: logits of the next token [B, V], and the cache to continue from."""

    logits: torch.Tensor
    cache: Any
    mask: torch.Tensor  # [B, W], 1 for a token, 0 for padding
    length: torch.Tensor  # [B], tokens without padding


@dataclass(frozen=True, kw_only=True)
class Rollout:
    """n answers to each of B prompts, prompt by prompt: tokens, mask and log-probabilities [B·n, L], and texts."""

    tokens: torch.Tensor
    mask: torch.Tensor
    log_probs: torch.Tensor
    texts: list[str]


class Policy:
    """A model folder with a new LoRA adapter."""

    def __init__(self, folder: Path, *, rank: int, alpha: int, seed: int) -> None:
        import peft
        from transformers import AutoModelForCausalLM, AutoTokenizer

        check_model_folder(folder)
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self.shape = AnswerShape.of(self.tokenizer)
        with no_progress_bars_in_logs():
            base = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        torch.manual_seed(seed)  # peft draws the adapter from torch's own generator
        self.model = peft.get_peft_model(
            base, peft.LoraConfig(r=rank, lora_alpha=alpha, target_modules="all-linear", lora_dropout=0.0)
        )
        self._base = self.model.get_base_model()
        self._end = self.tokenizer.eos_token_id

    def prompt_tokens(self, prompts: Sequence[Conversation]) -> list[list[int]]:
        texts = [
            self.tokenizer.apply_chat_template(list(prompt), tokenize=False, add_generation_prompt=True)
            for prompt in prompts
        ]
        tokens: list[list[int]] = self.tokenizer(texts, add_special_tokens=False)["input_ids"]
        return tokens

    def read(self, rows: Sequence[Sequence[int]]) -> Reading:
        """Read the tokens of each prompt. Their shared beginning, such as the system message, is read once."""
        from transformers import DynamicCache

        num = len(rows)
        shared = 0
        while shared < min(map(len, rows)) - 1 and len({row[shared] for row in rows}) == 1:
            shared += 1
        cache = DynamicCache(config=self._base.config)
        if shared:
            self._base.model(input_ids=torch.tensor([rows[0][:shared]]), past_key_values=cache, use_cache=True)
            cache.batch_repeat_interleave(num)
        width = max(map(len, rows)) - shared
        padding = [width - (len(row) - shared) for row in rows]
        tokens = torch.tensor([[0] * n + list(row[shared:]) for n, row in zip(padding, rows, strict=True)])
        mask = torch.tensor([[1] * shared + [0] * n + [1] * (width - n) for n in padding])
        positions = (mask.cumsum(dim=1) - 1)[:, shared:].clamp(min=0)
        hidden = self._base.model(
            input_ids=tokens, attention_mask=mask, position_ids=positions, past_key_values=cache, use_cache=True
        ).last_hidden_state[:, -1]
        return Reading(logits=self._base.lm_head(hidden), cache=cache, mask=mask, length=mask.sum(dim=1))

    def sample(
        self, reading: Reading, n: int, temperature: float, generator: torch.Generator, *, whole: bool
    ) -> Rollout:
        """Sample n answers to each prompt. Whole answers end with the end token or after MAX_ANSWER_TOKENS."""
        with torch.no_grad():
            logits = reading.logits.detach().repeat_interleave(n, dim=0)
            tokens, log_probs = _draw(logits, temperature, generator)
            if not whole:
                texts = [self._text_around(token) for token in tokens.tolist()]
                return Rollout(
                    tokens=tokens[:, None],
                    mask=torch.ones(len(tokens), 1),
                    log_probs=log_probs[:, None],
                    texts=texts,
                )
            cache = _detached(reading.cache, self._base.config)
            cache.batch_repeat_interleave(n)
            mask = reading.mask.repeat_interleave(n, dim=0)
            position = reading.length.repeat_interleave(n)
            said, said_log_probs, alive = [tokens], [log_probs], [torch.ones_like(tokens, dtype=torch.bool)]
            while len(said) < MAX_ANSWER_TOKENS:
                continuing = alive[-1] & (said[-1] != self._end)
                if not bool(continuing.any()):
                    break
                mask = torch.nn.functional.pad(mask, (0, 1), value=1)
                hidden = self._base.model(
                    input_ids=said[-1][:, None],
                    attention_mask=mask,
                    position_ids=position[:, None],
                    past_key_values=cache,
                    use_cache=True,
                ).last_hidden_state[:, -1]
                position = position + 1
                tokens, log_probs = _draw(self._base.lm_head(hidden), temperature, generator)
                said.append(tokens)
                said_log_probs.append(log_probs)
                alive.append(continuing)
            matrix, alive_mask = torch.stack(said, dim=1), torch.stack(alive, dim=1)
            texts = [
                self.tokenizer.decode([t for t, a in zip(row, kept, strict=True) if a], skip_special_tokens=True)
                for row, kept in zip(matrix.tolist(), alive_mask.tolist(), strict=True)
            ]
            return Rollout(
                tokens=matrix, mask=alive_mask.float(), log_probs=torch.stack(said_log_probs, dim=1), texts=texts
            )

    def log_probs(self, reading: Reading, tokens: torch.Tensor, temperature: float) -> torch.Tensor:
        """Log-probabilities [B·n, L] of `tokens` [B·n, L] after the prompts of `reading`, whose cache it uses up."""
        n = len(tokens) // len(reading.logits)
        logits = reading.logits.repeat_interleave(n, dim=0)[:, None]
        num_tokens = tokens.shape[1]
        if num_tokens > 1:
            reading.cache.batch_repeat_interleave(n)
            mask = reading.mask.repeat_interleave(n, dim=0)
            mask = torch.nn.functional.pad(mask, (0, num_tokens - 1), value=1)
            positions = reading.length.repeat_interleave(n)[:, None] + torch.arange(num_tokens - 1)
            hidden = self._base.model(
                input_ids=tokens[:, :-1],
                attention_mask=mask,
                position_ids=positions,
                past_key_values=reading.cache,
                use_cache=True,
            ).last_hidden_state
            logits = torch.cat([logits, self._base.lm_head(hidden)], dim=1)
        chosen = torch.log_softmax(logits / temperature, dim=-1).gather(-1, tokens[..., None])
        return chosen[..., 0]

    def _text_around(self, token: int) -> str:
        text: str = self.tokenizer.decode([*self.shape.before, token, *self.shape.after], skip_special_tokens=True)
        return text

    def certainty(self, prompts: Sequence[Conversation]) -> float:
        """The least probability, over `prompts`, that the answer is exactly one of the two, at temperature 1."""
        shape = self.shape
        least = 1.0
        with torch.no_grad():
            for batch in _batches(self.prompt_tokens(prompts)):
                total = torch.zeros(len(batch))
                for decision in (shape.yes, shape.no):
                    answer = torch.tensor([[*shape.before, decision, *shape.after]] * len(batch))
                    total += self.log_probs(self.read(batch), answer, temperature=1.0).sum(dim=1).exp()
                least = min(least, float(total.min()))
        return least

    def decision_logits(self, rows: Sequence[Sequence[int]]) -> torch.Tensor:
        """Logits [B, V] of the token that follows each of `rows`, without gradients."""
        with torch.no_grad():
            return torch.cat([self.read(batch).logits for batch in _batches(rows)])

    def decide(self, prompts: Sequence[Conversation]) -> list[str]:
        """The greedy answer to each prompt. Only its decision token comes from the model."""
        rows = [row + self.shape.before for row in self.prompt_tokens(prompts)]
        return [self._text_around(token) for token in self.decision_logits(rows).argmax(dim=-1).tolist()]

    def answers(self, prompts: Sequence[Conversation]) -> list[str]:
        """The greedy answer to each prompt, all of it from the model."""
        found: list[str] = []
        for batch in _batches(self.prompt_tokens(prompts)):
            rollout = self.sample(self.read(batch), 1, GREEDY_TEMPERATURE, torch.Generator(), whole=True)
            found += rollout.texts
        return found

    def fold_adapter(self) -> None:
        """Merge the adapter into the weights after training, which makes a pass a third faster."""
        self._base = self.model.merge_and_unload()
        self._base.requires_grad_(False)


def _draw(logits: torch.Tensor, temperature: float, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    log_probs = torch.log_softmax(logits / temperature, dim=-1)
    tokens = torch.multinomial(log_probs.exp(), 1, generator=generator)
    return tokens[:, 0], log_probs.gather(1, tokens)[:, 0]


def _detached(cache: Any, config: Any) -> Any:
    from transformers import DynamicCache

    copy = DynamicCache(config=config)
    for number, layer in enumerate(cache.layers):
        copy.update(layer.keys.detach(), layer.values.detach(), number)
    return copy


def _batches(rows: Sequence[Any]) -> Iterator[Sequence[Any]]:
    for start in range(0, len(rows), PASS_PROMPTS):
        yield rows[start : start + PASS_PROMPTS]


def training_pool(states: Sequence[State], settings: GrpoSettings) -> list[int]:
    """The numbers of the states to train on: without those too close to a tie, and balanced if the settings say so.

    Balancing leaves out the same states in every run.
    """
    threshold = settings.drop_within_veh_s
    kept = [
        i for i, state in enumerate(states) if threshold is None or abs(state.outcomes.saving(Decision.YES)) > threshold
    ]
    if not settings.balance:
        return kept
    better = {decision: [i for i in kept if states[i].outcomes.better() is decision] for decision in Decision}
    less, more = sorted(better.values(), key=len)
    surplus = set(random.Random(0).sample(more, len(more) - len(less)))
    return [i for i in kept if i not in surplus]


def prompt_order(states: Sequence[State], pool: Sequence[int], settings: GrpoSettings, seed: int) -> Iterator[int]:
    """An endless order of state numbers: passes over the pool, each in a new order, or draws by the size of the gap."""
    draw = random.Random(seed)
    if settings.weigh_by_gap:
        weights = [abs(states[i].relative_gap) for i in pool]
        if settings.balance:
            total = {
                decision: sum(w for i, w in zip(pool, weights, strict=True) if states[i].outcomes.better() is decision)
                for decision in Decision
            }
            weights = [
                w / total[better] if (better := states[i].outcomes.better()) else 0.0
                for i, w in zip(pool, weights, strict=True)
            ]
        while True:
            yield from draw.choices(pool, weights=weights, k=settings.batch_prompts)
    while True:
        yield from draw.sample(pool, len(pool))


def group_advantages(scores: torch.Tensor, rollout_n: int, *, normalise_std: bool) -> torch.Tensor:
    """verl's GRPO advantages [B·n] of scores [B·n]. Each n scores in a row are one group."""
    groups = np.repeat(np.arange(len(scores) // rollout_n), rollout_n)
    advantages, _ = compute_grpo_outcome_advantage(
        scores[:, None].clone(), torch.ones(len(scores), 1), groups, norm_adv_by_std_in_grpo=normalise_std
    )
    return advantages[:, 0]


class Trainer:
    """Trains one policy.

    start_logits: the start's decision_logits for every state, which the KL penalty needs. Without them (as with whole
    answers) the start is evaluated again in every step.
    """

    def __init__(
        self,
        policy: Policy,
        states: Sequence[State],
        rows: Sequence[Sequence[int]],
        settings: GrpoSettings,
        *,
        seed: int,
        start_logits: torch.Tensor | None,
    ) -> None:
        self._policy = policy
        self._states = states
        self._rows = rows
        self._settings = settings
        self._start_logits = start_logits
        self._reward: RewardSettings = load_settings(overrides=dict(settings.reward))
        # what verl's policy loss reads, otherwise with verl's own defaults
        self._actor = ActorConfig(
            strategy="fsdp2",
            rollout_n=settings.rollout_n,
            ppo_mini_batch_size=settings.batch_prompts,
            ppo_micro_batch_size_per_gpu=settings.batch_prompts,
            use_kl_loss=settings.kl > 0,
            kl_loss_coef=settings.kl,
            kl_loss_type="low_var_kl",
        )
        self._policy_loss = get_policy_loss_fn("vanilla")
        self._order = prompt_order(states, training_pool(states, settings), settings, seed)
        self._generator = torch.Generator().manual_seed(seed)
        self._answer = cache(parse_answer)
        self._stretches = StretchSource(self._reward, settings.decisions) if settings.decisions > 1 else None
        self._parameters = [p for p in policy.model.parameters() if p.requires_grad]
        self._optimizer = torch.optim.AdamW(
            self._parameters, lr=settings.learning_rate, betas=(0.9, 0.999), weight_decay=0.01
        )
        self._scheduler = get_cosine_schedule_with_warmup(
            self._optimizer, num_warmup_steps=0, num_training_steps=settings.steps
        )

    def step(self) -> dict[str, float]:
        """Make one update. Returns shares of the sampled answers, and the number of prompts used."""
        settings = self._settings
        if self._stretches is not None:
            rows, rollout, scores, owners = self._played_rollout(self._stretches)
            reading, chosen, num_prompts = self._policy.read(rows), None, settings.batch_prompts
        else:
            if settings.filter_groups:
                chosen, rollout, num_prompts = self._informative_rollout()
                reading = self._policy.read([self._rows[i] for i in chosen])
            else:
                chosen = [next(self._order) for _ in range(settings.batch_prompts)]
                num_prompts = len(chosen)
                reading = self._policy.read([self._rows[i] for i in chosen])
                rollout = self._sample(reading)
            rows, owners = [self._rows[i] for i in chosen], list(range(len(rollout.texts)))
            scores = self._scores(chosen, rollout.texts)
        advantages = group_advantages(scores, settings.rollout_n, normalise_std=settings.normalise_std)[owners]
        start_log_probs = self._start_log_probs(chosen, rows, rollout.tokens) if settings.kl else None
        log_probs = self._policy.log_probs(reading, rollout.tokens, settings.temperature)
        # verl's mean is over all tokens of the answers; the tokens that are not sampled here add nothing to the sum
        num_tokens = float(rollout.mask.sum()) * (1 if settings.whole_answers else self._policy.shape.num_tokens)
        self._actor.global_batch_info.update(dp_size=1, batch_num_tokens=num_tokens)
        loss, _ = self._policy_loss(
            old_log_prob=rollout.log_probs,
            log_prob=log_probs,
            advantages=advantages[:, None] * rollout.mask,
            response_mask=rollout.mask.bool(),
            loss_agg_mode=self._actor.loss_agg_mode,
            config=self._actor,
        )
        if start_log_probs is not None:
            penalty = kl_penalty(log_probs, start_log_probs, self._actor.kl_loss_type)
            loss = loss + settings.kl * agg_loss(
                loss_mat=penalty,
                loss_mask=rollout.mask.bool(),
                loss_agg_mode=self._actor.loss_agg_mode,
                **self._actor.global_batch_info,
            )
        self._optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self._parameters, 1.0)
        self._optimizer.step()
        self._scheduler.step()
        answers = [self._answer(text) for text in rollout.texts]
        groups = scores.view(-1, settings.rollout_n)
        return {
            "prompts": float(num_prompts),
            "answers": float(num_prompts * settings.rollout_n if self._stretches is None else len(answers)),
            "score": float(scores.mean()),
            "yes": sum(answer.decision is Decision.YES for answer in answers) / len(answers),
            "readable": sum(answer.decision is not None for answer in answers) / len(answers),
            "exact": sum(answer.form is AnswerForm.EXACT for answer in answers) / len(answers),
            "informative_groups": float((groups.max(dim=1).values > groups.min(dim=1).values).float().mean()),
        }

    def _sample(self, reading: Reading) -> Rollout:
        settings = self._settings
        return self._policy.sample(
            reading, settings.rollout_n, settings.temperature, self._generator, whole=settings.whole_answers
        )

    def _informative_rollout(self) -> tuple[list[int], Rollout, int]:
        """A full batch of groups whose answers do not all have the same score, and the number of prompts used."""
        settings = self._settings
        n = settings.rollout_n
        chosen: list[int] = []
        tokens, log_probs, texts = [], [], []
        num_prompts = 0
        while len(chosen) < settings.batch_prompts:
            if num_prompts >= 100 * settings.batch_prompts:
                raise ConfigError(
                    f"filter_groups: only {len(chosen)} of {num_prompts} groups had answers with different scores, "
                    "because the policy nearly always gives the same answer: train without filter_groups"
                )
            drawn = [next(self._order) for _ in range(settings.batch_prompts)]
            num_prompts += len(drawn)
            with torch.no_grad():
                rollout = self._sample(self._policy.read([self._rows[i] for i in drawn]))
            scores = self._scores(drawn, rollout.texts).view(-1, n)
            for group in torch.nonzero(scores.max(dim=1).values > scores.min(dim=1).values)[:, 0].tolist():
                if len(chosen) == settings.batch_prompts:
                    break
                of_group = slice(group * n, (group + 1) * n)
                chosen.append(drawn[group])
                tokens.append(rollout.tokens[of_group])
                log_probs.append(rollout.log_probs[of_group])
                texts += rollout.texts[of_group]
        joined = torch.cat(tokens)
        return (
            chosen,
            Rollout(tokens=joined, mask=torch.ones(joined.shape), log_probs=torch.cat(log_probs), texts=texts),
            num_prompts,
        )

    def _played_rollout(self, stretches: StretchSource) -> tuple[list[list[int]], Rollout, torch.Tensor, list[int]]:
        """Rows and answers of all decisions [S], the score of each stretch [B·n], and the stretch of each decision."""
        settings = self._settings
        truths = []
        for number in (next(self._order) for _ in range(settings.batch_prompts)):
            truth = self._states[number].truth
            assert truth is not None, "load_states gives every state its ground truth"
            truths += [truth] * settings.rollout_n
        answers: list[list[Answer]] = [[] for _ in truths]
        scores = torch.zeros(len(truths))
        rows: list[list[int]] = []
        owners: list[int] = []
        rollouts: list[Rollout] = []
        under_way = list(range(len(truths)))
        while under_way:
            with ThreadPoolExecutor(2 * self._reward.replay.num_workers) as threads:
                found = list(threads.map(lambda number: stretches.play(truths[number], answers[number]), under_way))
            prompts = []
            still = []
            for number, each in zip(under_way, found, strict=True):
                if each.progress.stretch is not None:
                    scores[number] = score_stretch(answers[number], each.progress.stretch, self._reward).score
                elif each.progress.question is not None:
                    prompts.append(each.progress.question.prompt)
                    still.append(number)
            under_way = still
            if under_way:
                asked = [row + self._policy.shape.before for row in self._policy.prompt_tokens(prompts)]
                with torch.no_grad():
                    rollout = self._policy.sample(
                        self._policy.read(asked), 1, settings.temperature, self._generator, whole=False
                    )
                for number, text in zip(under_way, rollout.texts, strict=True):
                    answers[number].append(self._answer(text))
                rows += asked
                owners += under_way
                rollouts.append(rollout)
        joined = Rollout(
            tokens=torch.cat([each.tokens for each in rollouts]),
            mask=torch.cat([each.mask for each in rollouts]),
            log_probs=torch.cat([each.log_probs for each in rollouts]),
            texts=[text for each in rollouts for text in each.texts],
        )
        return rows, joined, scores, owners

    def close(self) -> None:
        """Release the replay workers."""
        if self._stretches is not None:
            self._stretches.close()

    def _start_log_probs(
        self, chosen: Sequence[int] | None, rows: Sequence[Sequence[int]], tokens: torch.Tensor
    ) -> torch.Tensor:
        """The start's log-probabilities of `tokens`. chosen: the states of `rows`; None if they are not states."""
        settings = self._settings
        with torch.no_grad():
            if self._start_logits is not None and chosen is not None:
                logits = self._start_logits[list(chosen)].repeat_interleave(settings.rollout_n, dim=0)
                return torch.log_softmax(logits / settings.temperature, dim=-1).gather(1, tokens)
            with self._policy.model.disable_adapter():
                return self._policy.log_probs(self._policy.read(rows), tokens, settings.temperature)

    def _scores(self, chosen: Sequence[int], texts: Sequence[str]) -> torch.Tensor:
        n = self._settings.rollout_n
        return torch.tensor(
            [
                score_answer(self._answer(text), self._states[chosen[number // n]].outcomes, self._reward).score
                for number, text in enumerate(texts)
            ]
        )


@dataclass(frozen=True, kw_only=True)
class TrainedPolicy:
    """A trained policy with its adapter merged in.

    metrics: the means of Trainer.step over the run. The shares of the answers are also given for the first step
    (`yes_at_start`, …) and as the mean of the last tenth (`yes_at_end`, …).
    """

    policy: Policy
    metrics: dict[str, float]


def train(
    start: Path, states: Sequence[State], settings: GrpoSettings, *, seed: int, start_logits: torch.Tensor | None
) -> TrainedPolicy:
    """Train a new adapter of the model in `start`. On one machine with one thread, the same arguments give the same
    result."""
    if settings.filter_groups and settings.whole_answers:
        raise ConfigError("filter_groups works on the decision token only: leave out whole_answers")
    if settings.decisions > 1 and (settings.whole_answers or settings.filter_groups):
        raise ConfigError(
            "several decisions work on the decision token only: leave out whole_answers and filter_groups"
        )
    policy = Policy(start, rank=settings.lora_rank, alpha=settings.lora_alpha, seed=seed)
    rows = policy.prompt_tokens([state.prompt for state in states])
    if not settings.whole_answers:
        rows = [row + policy.shape.before for row in rows]
    trainer = Trainer(policy, states, rows, settings, seed=seed, start_logits=start_logits)
    try:
        steps = [trainer.step() for _ in range(settings.steps)]
    finally:
        trainer.close()
    policy.fold_adapter()
    metrics = {name: math.fsum(step[name] for step in steps) / len(steps) for name in steps[0]}
    last = steps[-max(1, len(steps) // 10) :]
    for name in ("yes", "readable", "exact"):
        metrics[f"{name}_at_start"] = steps[0][name]
        metrics[f"{name}_at_end"] = math.fsum(step[name] for step in last) / len(last)
    return TrainedPolicy(policy=policy, metrics=metrics)
