"""GRPO in one process: log-probabilities against plain passes, groups against hand-worked ones, and that it learns."""

from __future__ import annotations

import dataclasses
import json
import random
from collections import Counter
from collections.abc import Sequence
from itertools import islice, product
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from fast_grpo import (
    AnswerShape,
    GrpoSettings,
    Policy,
    State,
    Trainer,
    group_advantages,
    load_states,
    prompt_order,
    train,
    training_pool,
)
from recipes.models.tiny_model import TinyModelSize, build_tiny_model
from reward.ground_truth import GroundTruth
from reward.scoring import score_answer, traffic_score
from reward.settings import RewardSettings, load_settings
from reward.stretch_scoring import score_stretch
from reward.stretch_source import StretchSource
from tests.recipes.serving.greedy_answers import greedy_answers
from tsc.cost.outcome import Outcomes
from tsc.junction.decision import INVALID_ANSWER, Answer, AnswerForm, Decision, parse_answer
from tsc.replays.request import ReplayRequest
from tsc.replays.sample import Sample


def prompt(queue_veh: int, red_veh: int) -> list[dict[str, str]]:
    return [
        {"role": "system", "content": "Shall the current green be extended?"},
        {"role": "user", "content": f"green: queue {queue_veh}\nred: queue {red_veh}"},
    ]


def states_of(number: int) -> list[State]:
    """Yes is better if more vehicles wait at the green than at the red; the gap is the difference."""
    draw = random.Random(3)
    states = []
    for _ in range(number):
        green, red = draw.randrange(20), draw.randrange(20)
        states.append(State(prompt=prompt(green, red), outcomes=Outcomes(yes=float(red), no=float(green))))
    return states


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A very small model that knows the format of an answer and nothing else."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("models")
    chats = [
        [*state.prompt, {"role": "assistant", "content": decision.answer}]
        for state, decision in product(states_of(150), Decision)
    ]
    texts = folder / "texts.parquet"
    pq.write_table(pa.table({"messages": chats}), texts)
    build_tiny_model(texts, folder / "tiny", TinyModelSize(hidden=32, layers=2), seed=1)

    policy = Policy(folder / "tiny", rank=1, alpha=1, seed=1)
    policy.fold_adapter()
    model = policy._base.requires_grad_(True)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    draw = random.Random(5)
    for _ in range(60):
        batch = draw.sample(chats, 32)
        answers = policy.tokenizer([chat[-1]["content"] + policy.tokenizer.eos_token for chat in batch])["input_ids"]
        read = policy.read(policy.prompt_tokens([chat[:-1] for chat in batch]))
        loss = -policy.log_probs(read, torch.tensor(answers), temperature=1.0).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.save_pretrained(folder / "start")
    policy.tokenizer.save_pretrained(folder / "start")
    return folder / "start"


@pytest.fixture(scope="module")
def policy(start: Path) -> Policy:
    """A policy whose adapter changes the model: peft's own adapter begins without a change."""
    made = Policy(start, rank=4, alpha=8, seed=1)
    torch.manual_seed(1)
    for name, parameter in made.model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.05)
    return made


def plain_log_probs(policy: Policy, prompts: Sequence[list[int]], answers: torch.Tensor) -> torch.Tensor:
    """Log-probabilities of one answer per prompt, each read alone, without cache, padding or shared beginnings."""
    rows = []
    for row, answer in zip(prompts, answers.tolist(), strict=True):
        logits = policy.model(input_ids=torch.tensor([row + answer])).logits[0, len(row) - 1 : -1]
        rows.append(torch.log_softmax(logits, dim=-1).gather(1, torch.tensor(answer)[:, None])[:, 0])
    return torch.stack(rows)


def test_log_probabilities_and_their_gradients_are_those_of_plain_passes(policy: Policy) -> None:
    prompts = policy.prompt_tokens([prompt(3, 1200), prompt(14, 2), prompt(0, 7)])
    assert len({len(row) for row in prompts}) > 1  # so that padding matters
    shape = policy.shape
    answers = torch.tensor([[*shape.before, choice, *shape.after] for choice in (shape.yes, shape.no, shape.yes)])

    def gradients(log_probs: torch.Tensor) -> list[torch.Tensor]:
        weights = torch.arange(1.0, 1.0 + log_probs.numel()).view(log_probs.shape)
        parameters = [p for p in policy.model.parameters() if p.requires_grad]
        return list(torch.autograd.grad((weights * log_probs).sum(), parameters))

    ours = policy.log_probs(policy.read(prompts), answers, temperature=1.0)
    plain = plain_log_probs(policy, prompts, answers)
    assert torch.allclose(ours, plain, atol=1e-5)
    for ours_gradient, plain_gradient in zip(gradients(ours), gradients(plain), strict=True):
        assert torch.allclose(ours_gradient, plain_gradient, atol=1e-3, rtol=1e-3)


def test_whole_answers_have_the_log_probabilities_they_were_drawn_with(policy: Policy) -> None:
    prompts = policy.prompt_tokens([prompt(3, 12), prompt(14, 2)])
    reading = policy.read(prompts)
    rollout = policy.sample(reading, 3, 1.0, torch.Generator().manual_seed(1), whole=True)
    again = policy.log_probs(reading, rollout.tokens, temperature=1.0)
    kept = rollout.mask.bool()
    assert torch.allclose(again[kept], rollout.log_probs[kept], atol=1e-5)
    for row, mask, text in zip(rollout.tokens.tolist(), rollout.mask.tolist(), rollout.texts, strict=True):
        said = row[: int(sum(mask))]
        assert policy.tokenizer.decode(said, skip_special_tokens=True) == text
        assert len(said) == len(row) or said[-1] == policy.tokenizer.eos_token_id


def test_decision_tokens_are_drawn_as_often_as_their_probability_says(policy: Policy) -> None:
    [row] = policy.prompt_tokens([prompt(9, 4)])
    reading = policy.read([row + policy.shape.before])
    rollout = policy.sample(reading, 4000, 0.7, torch.Generator().manual_seed(1), whole=False)
    expected = float(torch.softmax(reading.logits[0] / 0.7, dim=-1)[policy.shape.yes])
    assert rollout.texts.count(Decision.YES.answer) / 4000 == pytest.approx(expected, abs=0.03)


def test_the_two_answers_differ_in_one_token(policy: Policy) -> None:
    shape = AnswerShape.of(policy.tokenizer)
    for decision, token in ((Decision.YES, shape.yes), (Decision.NO, shape.no)):
        said = [*shape.before, token, *shape.after]
        assert policy.tokenizer.decode(said) == decision.answer + policy.tokenizer.eos_token
        assert len(said) == shape.num_tokens


def test_the_answer_by_its_decision_token_is_the_greedily_generated_one(start: Path) -> None:
    policy = Policy(start, rank=4, alpha=8, seed=1)
    prompts = [state.prompt for state in states_of(40)]
    assert policy.certainty(prompts) > 0.9
    assert policy.decide(prompts) == policy.answers(prompts) == greedy_answers(start, prompts)


def test_grpo_learns_the_better_answers_and_repeats_itself(start: Path) -> None:
    # easier than states_of: a queue of two digits is always the longer one
    draw = random.Random(4)
    states = []
    for _ in range(200):
        green, red = draw.choice([(draw.randrange(10, 20), draw.randrange(10)), (draw.randrange(10), 12)])
        states.append(State(prompt=prompt(green, red), outcomes=Outcomes(yes=float(red), no=float(green))))
    settings = GrpoSettings(steps=40, batch_prompts=32, learning_rate=1e-2, kl=0.0)

    def decisions() -> list[str]:
        trained = train(start, states[:150], settings, seed=1, start_logits=None)
        return trained.policy.decide([state.prompt for state in states[150:]])

    said = decisions()
    better = [state.outcomes.better() for state in states[150:]]
    assert sum(text == right.answer for text, right in zip(said, better, strict=True) if right) > 0.9 * len(better)
    assert decisions() == said


def test_groups_that_do_not_differ_are_replaced_until_the_batch_is_full(start: Path) -> None:
    states = states_of(200)
    settings = GrpoSettings(steps=1, batch_prompts=16, filter_groups=True, rollout_n=2)
    metrics = train(start, states, settings, seed=1, start_logits=None).metrics
    assert metrics["informative_groups"] == 1.0
    # two answers of about even odds agree half of the time
    assert metrics["prompts"] >= 32
    settings = dataclasses.replace(settings, filter_groups=False)
    metrics = train(start, states, settings, seed=1, start_logits=None).metrics
    assert metrics["informative_groups"] < 1.0
    assert metrics["prompts"] == 16


def test_several_decisions_to_an_answer_share_the_score_of_what_they_lead_to(start: Path, small_dataset: Path) -> None:
    samples = json.loads((small_dataset / "grpo_dataset.json").read_text())[:6]
    requests = [ReplayRequest.from_sample(Sample.model_validate(sample), small_dataset) for sample in samples]
    truths = [GroundTruth(request=request, outcomes=None, outcome_settings=None) for request in requests]
    states = [
        State(prompt=sample["prompt"], outcomes=Outcomes(yes=0.0, no=1.0), truth=truth)
        for sample, truth in zip(samples, truths, strict=True)
    ]
    settings = GrpoSettings(steps=2, batch_prompts=2, rollout_n=2, lora_rank=4, decisions=3)
    policy = Policy(start, rank=4, alpha=8, seed=1)
    rows = policy.prompt_tokens([state.prompt for state in states])
    trainer = Trainer(policy, states, rows, settings, seed=1, start_logits=None)
    source = StretchSource(load_settings(), 3)
    try:
        _, rollout, scores, owners = trainer._played_rollout(source)
        numbers = list(islice(prompt_order(states, training_pool(states, settings), settings, seed=1), 2))
        for answer in range(4):
            said = [parse_answer(text) for text, owner in zip(rollout.texts, owners, strict=True) if owner == answer]
            stretch = source.play(truths[numbers[answer // 2]], said).progress.stretch
            assert stretch is not None and stretch.num_decisions == len(said) == 3
            assert float(scores[answer]) == pytest.approx(score_stretch(said, stretch, load_settings()).score)
    finally:
        source.close()
        trainer.close()
    runs = [train(start, states, settings, seed=1, start_logits=None).metrics for _ in range(2)]
    assert runs[0] == runs[1] and runs[0]["answers"] == 12.0


def test_a_pool_is_without_ties_unless_told_otherwise_and_balanced_where_asked_for() -> None:
    states = [State(prompt=[], outcomes=Outcomes(yes=y, no=n)) for y, n in [(0, 9), (9, 0), (8, 0), (7, 3), (5, 5)]]

    def pool(**changes: object) -> list[int]:
        return training_pool(states, dataclasses.replace(GrpoSettings(), **changes))

    assert pool(drop_within_veh_s=None) == [0, 1, 2, 3, 4]
    assert pool() == [0, 1, 2, 3]
    assert pool(drop_within_veh_s=4.0) == [0, 1, 2]
    assert [states[i].outcomes.better() for i in pool(balance=True)].count(Decision.YES) == 1
    assert len(pool(balance=True)) == 2


def test_states_are_drawn_by_their_gap_with_each_answer_better_half_of_the_time() -> None:
    outcomes = [Outcomes(yes=0, no=10), Outcomes(yes=10, no=5), Outcomes(yes=10, no=9)]
    states = [State(prompt=[], outcomes=each) for each in outcomes]
    settings = GrpoSettings(weigh_by_gap=True, balance=True)
    drawn = Counter(islice(prompt_order(states, [0, 1, 2], settings, seed=1), 6000))
    # relative gaps of 1, 0.5 and 0.1
    assert drawn[0] / 6000 == pytest.approx(0.5, abs=0.03)
    assert drawn[1] / drawn[2] == pytest.approx(5, rel=0.2)


def test_states_come_once_a_pass_in_an_order_that_the_seed_decides() -> None:
    states = states_of(10)
    first, other = (list(islice(prompt_order(states, range(10), GrpoSettings(), seed), 20)) for seed in (1, 2))
    assert sorted(first[:10]) == sorted(first[10:]) == list(range(10))
    assert first != other


def test_states_are_read_from_what_json_to_parquet_writes(small_dataset: Path, tmp_path: Path) -> None:
    from data_tools.json_to_parquet import main

    main(["--input", str(small_dataset), "--output", str(tmp_path), "--ties", "keep"])
    states = load_states(tmp_path / "train.parquet")
    assert len(states) > 20
    assert all(state.prompt[-1]["role"] == "user" for state in states)
    assert len({state.outcomes.better() for state in states}) > 1


# ------------------------------------------------------------------------------------------ gaming


def scores_of(answers: Sequence[Answer], of: Outcomes, reward: RewardSettings) -> torch.Tensor:
    return torch.tensor([score_answer(answer, of, reward).score for answer in answers], dtype=torch.float64)


FORMS = (AnswerForm.EXACT, AnswerForm.EMBEDDED)
some_answer = st.one_of(
    st.just(INVALID_ANSWER),
    st.builds(lambda d, f: Answer(decision=d, form=f), st.sampled_from(list(Decision)), st.sampled_from(FORMS)),
)


@hypothesis_settings(max_examples=200, deadline=None)
@given(
    group=st.lists(some_answer, min_size=2, max_size=16),
    yes=st.integers(0, 400),
    no=st.integers(0, 400),
    normalisation=st.sampled_from(["relative", "sign", "clipped"]),
    normalise_std=st.booleans(),
)
def test_in_a_group_the_better_answer_gets_more_advantage_than_the_worse_one_in_the_same_form(
    group: list[Answer], yes: int, no: int, normalisation: str, normalise_std: bool
) -> None:
    of = Outcomes(yes=float(yes), no=float(no))
    reward = RewardSettings.model_validate({"normalisation": normalisation})
    advantages = group_advantages(scores_of(group, of, reward), len(group), normalise_std=normalise_std).tolist()
    better = of.better()
    for one, other in product(range(len(group)), repeat=2):
        if group[one].form is group[other].form and group[one].decision is better is not group[other].decision:
            assert advantages[one] > advantages[other]
        if group[one] == group[other]:
            assert advantages[one] == advantages[other]


def test_in_balanced_data_the_majority_answer_earns_little_of_what_the_better_answers_earn(
    small_dataset: Path, tmp_path: Path
) -> None:
    """The shipped reward on what json_to_parquet --balance leaves in train.parquet."""
    from data_tools.json_to_parquet import main

    main(["--input", str(small_dataset), "--output", str(tmp_path), "--balance"])
    outcomes = [state.outcomes for state in load_states(tmp_path / "train.parquet")]

    def mean_traffic(answer: Decision | None, reward: RewardSettings) -> float:
        """The score of a constant answer; None: of the better answers."""
        parts = [traffic_score(answer or of.better() or Decision.NO, of, reward) for of in outcomes]
        return sum(parts) / len(parts)

    shipped, sign = load_settings(), load_settings(overrides={"normalisation": "sign"})
    for constant in Decision:
        assert mean_traffic(constant, shipped) < 0.5 * mean_traffic(None, shipped)
        assert mean_traffic(constant, sign) == 0.0


@pytest.mark.parametrize("normalise_std", [True, False])
@pytest.mark.parametrize("balanced", [True, False])
def test_only_balanced_states_give_a_policy_that_ignores_them_nothing_for_a_constant_answer(
    balanced: bool, normalise_std: bool
) -> None:
    """All groups are sampled alike, whatever the state. Summed over states, the advantages of "no" are zero if the
    states are balanced, and positive if "no" is the better answer in two of three."""
    gaps = [(90.0, 30.0), (40.0, 36.0), (200.0, 0.0)]
    states = [Outcomes(yes=a, no=b) for a, b in gaps] + [Outcomes(yes=b, no=a) for a, b in gaps]
    if not balanced:
        states += [Outcomes(yes=a, no=b) for a, b in gaps]
    reward = RewardSettings()
    for num_yes in (1, 2, 3):
        group = [Answer(decision=Decision.YES, form=AnswerForm.EXACT)] * num_yes
        group += [Answer(decision=Decision.NO, form=AnswerForm.EXACT)] * (4 - num_yes)
        scores = torch.cat([scores_of(group, of, reward) for of in states])
        advantages = group_advantages(scores, 4, normalise_std=normalise_std).view(-1, 4)
        towards_no = float(advantages[:, num_yes:].sum())
        if balanced:
            assert towards_no == pytest.approx(0.0, abs=1e-6)
        else:
            assert towards_no > 0.1


def test_divided_by_the_groups_deviation_all_normalisations_are_the_sign() -> None:
    """Two outcomes have one difference, which the division by the deviation removes. Only an unreadable answer in the
    group brings the size of the gap back."""
    group = [Answer(decision=decision, form=AnswerForm.EXACT) for decision in (Decision.YES, *[Decision.NO] * 3)]
    of = Outcomes(yes=80.0, no=100.0)
    found = {
        name: group_advantages(
            scores_of(group, of, RewardSettings.model_validate({"normalisation": name})), 4, normalise_std=True
        )
        for name in ("relative", "sign", "clipped")
    }
    assert torch.allclose(found["relative"], found["sign"], atol=1e-4)
    assert torch.allclose(found["clipped"], found["sign"], atol=1e-4)
