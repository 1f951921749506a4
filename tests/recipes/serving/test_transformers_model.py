"""A model in this process: its answers and how sure it is of them."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from recipes.serving.chat_endpoint import Sampling
from recipes.serving.model_choice import LocalModelChoice
from recipes.serving.transformers_model import TransformersModel
from tests.recipes.serving.greedy_answers import greedy_answers
from tests.recipes.serving.taught_model import teach
from tsc.controllers.language_model import Conversation
from tsc.junction.decision import AnswerForm, Decision, parse_answer

CONVERSATIONS: list[Conversation] = [
    [{"role": "user", "content": f"green: queue {queue_veh} veh\nred: queue {7 * queue_veh % 31} veh"}]
    for queue_veh in range(16)
]
SURE_PROMPTS = 12  # of the others, the model sees both answers


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    chats = []
    for number, prompt in enumerate(CONVERSATIONS):
        answers = [Decision.YES, Decision.NO] if number >= SURE_PROMPTS else [list(Decision)[number % 2]]
        chats += [[*prompt, {"role": "assistant", "content": each.answer}] for each in answers]
    return teach(chats, tmp_path_factory.mktemp("taught") / "model")


def text_probability(folder: Path, prompt: Conversation, decision: Decision) -> float:
    """Of the whole text of the answer, token by token."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    before = tokenizer.apply_chat_template(prompt, add_generation_prompt=True, return_dict=False)
    whole = before + tokenizer.encode(decision.answer, add_special_tokens=False)
    with torch.no_grad():
        logits = torch.log_softmax(model(torch.tensor([whole])).logits[0], dim=-1)
    return math.exp(sum(float(logits[i - 1, whole[i]]) for i in range(len(before), len(whole))))


def test_answers_are_those_of_greedy_decoding_with_the_probabilities_of_their_texts(model_folder: Path) -> None:
    model = TransformersModel(LocalModelChoice(name="m", model=model_folder), max_answer_tokens=12)
    replies = model.ask(CONVERSATIONS)
    assert [reply.text for reply in replies] == greedy_answers(model_folder, CONVERSATIONS, max_new_tokens=12)
    assert {parse_answer(reply.text or "").form for reply in replies} == {AnswerForm.EXACT}
    for number in (0, 1, SURE_PROMPTS):
        found = replies[number].probabilities
        assert found is not None
        for decision, probability in ((Decision.YES, found.yes), (Decision.NO, found.no)):
            expected = text_probability(model_folder, CONVERSATIONS[number], decision)
            assert probability == pytest.approx(expected, abs=0.03)
    unsure, sure = replies[SURE_PROMPTS].probabilities, replies[0].probabilities
    assert unsure is not None and sure is not None
    assert min(unsure.yes, unsure.no) > 0.1 and sure.yes > 0.9
    assert all(reply.latency_s > 0 and reply.prompt_tokens and reply.completion_tokens for reply in replies)


def test_a_seed_repeats_what_a_temperature_draws(model_folder: Path) -> None:
    def drawn(seed: int) -> list[str | None]:
        sampling = Sampling(temperature=1.0, seed=seed)
        choice = LocalModelChoice(name="m", model=model_folder)
        model = TransformersModel(choice, max_answer_tokens=12, sampling=sampling)
        return [reply.text for reply in model.ask(CONVERSATIONS[SURE_PROMPTS:])]

    answers = {seed: drawn(seed) for seed in range(4)}
    assert drawn(2) == answers[2]
    assert len({tuple(each) for each in answers.values()}) > 1
