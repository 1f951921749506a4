import dataclasses
import hashlib
import json
import random
import re
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from recipes.models.tiny_model import TinyModelSize, build_tiny_model, train_tokenizer
from tsc.errors import ConfigError
from tsc.files import REPO_ROOT
from tsc.junction.observation import Observation, StageObservation
from tsc.junction.prompt import prompt_maker

SYSTEM = (
    "You control the traffic signal of one junction. Decide whether the current green is extended. "
    'Answer with {"extend": "yes"} or {"extend": "no"} only.'
)


def chat(rng: random.Random) -> list[dict[str, str]]:
    lines = [f"elapsed green {rng.randrange(10, 60, 5)} s (min 10 s, max 60 s)"]
    for stage, colour in enumerate(("green", "red"), start=1):
        near, mid, far = (rng.randint(0, 12) for _ in range(3))
        lines.append(
            f"stage {stage} ({colour}): queue {rng.randint(0, 30)} veh, moving near {near} mid {mid} far {far} veh, "
            f"longest wait {rng.randint(0, 120)} s, space downstream {rng.randint(0, 99)} veh"
        )
    return [
        {"role": "system", "content": SYSTEM},
        {"role": "user", "content": "\n".join(lines)},
        {"role": "assistant", "content": json.dumps({"extend": rng.choice(["yes", "no"])})},
    ]


def write_chats(path: Path, column: str = "messages") -> list[list[dict[str, str]]]:
    rng = random.Random(1)
    chats = [chat(rng) for _ in range(300)]
    pq.write_table(pa.table({column: chats}), path)
    return chats


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    path = tmp_path_factory.mktemp("texts") / "sft_train.parquet"
    write_chats(path)
    return path


@pytest.fixture(scope="module")
def model_folder(texts):
    out = texts.parent / "tiny"
    build_tiny_model(texts, out, TinyModelSize(), seed=1)
    return out


@pytest.fixture(scope="module")
def tokenizer(model_folder):
    from transformers import AutoTokenizer

    # As verl and vLLM load it.
    return AutoTokenizer.from_pretrained(model_folder)


def digests(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.iterdir())}


def test_same_texts_and_seed_give_the_same_bytes_in_another_process(texts, model_folder, tmp_path):
    out = tmp_path / "again"
    command = [
        sys.executable,
        REPO_ROOT / "recipes/models/tiny_model.py",
        "--texts",
        texts,
        "--out",
        out,
        "--seed",
        "1",
    ]
    result = subprocess.run(command, check=True, capture_output=True, text=True, cwd=tmp_path)
    assert "million parameters" in result.stdout
    assert digests(out) == digests(model_folder)
    assert [path.name for path in tmp_path.iterdir()] == ["again"]


def test_another_seed_gives_other_weights_and_the_same_tokenizer(texts, model_folder, tmp_path):
    build_tiny_model(texts, tmp_path / "other", TinyModelSize(), seed=2)
    differing = {name for name, digest in digests(tmp_path / "other").items() if digest != digests(model_folder)[name]}
    assert differing == {"model.safetensors"}


def test_model_has_about_a_million_parameters_and_an_untied_head(model_folder):
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(model_folder)
    assert 0.7e6 < sum(parameter.numel() for parameter in model.parameters()) < 1.2e6
    assert model.get_output_embeddings().weight.data_ptr() != model.get_input_embeddings().weight.data_ptr()


def test_a_frozen_head_can_still_be_confident(model_folder):
    import torch
    from transformers import AutoModelForCausalLM

    head = AutoModelForCausalLM.from_pretrained(model_folder).get_output_embeddings().weight.detach()
    # What comes into the head has length sqrt(hidden). A LoRA can point it along a token's row.
    direction = torch.nn.functional.normalize(head, dim=1) * head.shape[1] ** 0.5
    best_probability = torch.softmax(direction @ head.T, dim=1).diagonal()
    assert best_probability.min() > 0.75


def test_chats_without_answers_serve_too(tmp_path):
    write_chats(tmp_path / "train.parquet", column="prompt")
    built = build_tiny_model(tmp_path / "train.parquet", tmp_path / "tiny", TinyModelSize(), seed=1)
    assert built.tokens_per_chat < 100


def test_every_number_below_1000_is_one_token(tokenizer):
    for number in range(1000):
        tokens = tokenizer.tokenize(f"queue {number} veh")
        assert [token for token in tokens if any(char.isdigit() for char in token)] == [str(number)]


@pytest.mark.parametrize("number", ["1000", "4711", "20261129", "007", "3.25", "-5", "1,200"])
def test_other_numbers_are_several_tokens(tokenizer, number):
    tokens = tokenizer.tokenize(f"wait {number} s")
    assert number in "".join(tokens) and tokenizer.decode(tokenizer(f"wait {number} s").input_ids) == f"wait {number} s"
    assert sum(any(char.isdigit() for char in token) for token in tokens) > 1 or number == "-5"


def test_close_numbers_begin_alike(model_folder, tokenizer):
    import torch
    from transformers import AutoModelForCausalLM

    embeddings = AutoModelForCausalLM.from_pretrained(model_folder).get_input_embeddings().weight.detach()
    of = {number: embeddings[tokenizer.convert_tokens_to_ids(str(number))] for number in (12, 13, 40, 900)}
    near, far, farther = (torch.dist(of[12], of[other]) for other in (13, 40, 900))
    assert near < far < 1.2 * farther
    # as long as other tokens
    assert of[12].norm() == pytest.approx(0.02 * embeddings.shape[1] ** 0.5, rel=1e-3)


def test_prompt_is_little_more_than_its_numbers(tokenizer):
    messages = chat(random.Random(99))
    prompt = tokenizer.apply_chat_template(messages[:-1], tokenize=False, add_generation_prompt=True)
    num_numbers = len(re.findall(r"\d+", prompt))
    assert len(tokenizer(prompt).input_ids) < 4 * num_numbers


def chats_of_the_project(prompt: str) -> list[list[dict[str, str]]]:
    rng = random.Random(1)
    counts = [field.name for field in dataclasses.fields(StageObservation) if field.name != "stage"]
    drawn = [
        Observation(
            junction_id="J",
            elapsed_green_s=rng.randrange(10, 60, 5),
            min_green_s=10,
            max_green_s=60,
            green_extension_s=5,
            stages=tuple(
                StageObservation(stage=stage, **{key: rng.randrange(100) for key in counts}) for stage in (0, 1)
            ),
        )
        for _ in range(300)
    ]
    answers = [{"role": "assistant", "content": f'{{"extend": "{word}"}}'} for word in ("yes", "no")]
    return [[*prompt_maker(prompt)(seen), rng.choice(answers)] for seen in drawn]


def test_the_chinese_prompt_takes_as_many_tokens_as_the_english_one():
    def tokens(prompt: str) -> list[int]:
        chats = chats_of_the_project(prompt)
        tokenizer = train_tokenizer(chats, TinyModelSize.vocab_size)
        texts = [tokenizer.apply_chat_template(chat, tokenize=False) for chat in chats[:20]]
        assert [tokenizer.decode(tokenizer(text).input_ids) for text in texts] == texts
        return [len(tokenizer(text).input_ids) for text in texts]

    assert tokens("tsc_zh") == tokens("tsc")


def test_canonical_answer_is_several_tokens_and_the_decision_one_of_them(tokenizer):
    assert tokenizer.tokenize('{"extend": "yes"}')[-2:] == ["yes", '"}']
    assert tokenizer.tokenize('{"extend": "no"}')[-2:] == ["no", '"}']
    assert len(tokenizer.tokenize('{"extend": "no"}')) == 5


def test_chat_decodes_to_itself(tokenizer):
    text = tokenizer.apply_chat_template(chat(random.Random(5)), tokenize=False)
    assert text.startswith(f"<|im_start|>system\n{SYSTEM}<|im_end|>\n<|im_start|>user\n")
    assert tokenizer.decode(tokenizer(text).input_ids) == text


@pytest.mark.parametrize(
    "text", ["Fußgänger auf der Straße", "路口 A0 排队 7 辆", "🚦 1e-3\t\x00\n\n  end", "ﬁ Å e\u0301"]
)
def test_other_text_encodes_byte_by_byte_and_decodes_to_itself(tokenizer, text):
    assert tokenizer.decode(tokenizer(text).input_ids) == text


def test_no_default_system_message_is_put_in(tokenizer):
    text = tokenizer.apply_chat_template([{"role": "user", "content": "hi"}], tokenize=False)
    assert text == "<|im_start|>user\nhi<|im_end|>\n"


@pytest.mark.parametrize("answer", ['{"extend": "no"}', "yes", "\nno", " so", "\n\n", "7"])
def test_prompt_tokens_do_not_depend_on_the_answer_that_follows(tokenizer, answer):
    messages = chat(random.Random(3))[:-1]
    prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    whole = tokenizer.apply_chat_template([*messages, {"role": "assistant", "content": answer}], return_dict=False)
    assert whole[: len(prompt)] == prompt


def test_turns_tokenised_one_by_one_are_the_conversation_tokenised_at_once(tokenizer):
    messages = chat(random.Random(4))
    one_by_one = [token for turn in messages for token in tokenizer.apply_chat_template([turn], return_dict=False)]
    assert one_by_one == tokenizer.apply_chat_template(messages, return_dict=False)


def test_verls_sft_dataset_takes_the_chats_and_trains_on_the_answer_alone(texts, model_folder):
    from omegaconf import OmegaConf
    from verl.utils import hf_tokenizer
    from verl.utils.dataset.multiturn_sft_dataset import MultiTurnSFTDataset

    tokenizer = hf_tokenizer(str(model_folder))
    config = OmegaConf.create({"messages_key": "messages", "pad_mode": "no_padding", "max_length": 512})
    # The dataset itself checks that turns and conversation agree.
    example = MultiTurnSFTDataset(str(texts), tokenizer, config)[0]
    trained_on = tokenizer.decode(example["input_ids"][example["loss_mask"].bool()])
    assert trained_on in ('{"extend": "yes"}<|im_end|>\n', '{"extend": "no"}<|im_end|>\n')


def test_generation_ends_with_the_turn(model_folder, tokenizer):
    config = json.loads((model_folder / "generation_config.json").read_text())
    assert tokenizer.convert_ids_to_tokens([config["eos_token_id"], config["pad_token_id"]]) == [
        "<|im_end|>",
        "<|endoftext|>",
    ]
    assert (tokenizer.eos_token, tokenizer.pad_token) == ("<|im_end|>", "<|endoftext|>")


def test_missing_texts_are_named_and_leave_no_folder(tmp_path):
    with pytest.raises(ConfigError, match=r"nowhere\.parquet is not a file"):
        build_tiny_model(tmp_path / "nowhere.parquet", tmp_path / "tiny", TinyModelSize(), seed=1)
    assert list(tmp_path.iterdir()) == []


def test_parquet_without_chats_is_refused_with_its_columns(tmp_path):
    pq.write_table(pa.table({"question": ["?"]}), tmp_path / "other.parquet")
    with pytest.raises(ConfigError, match="neither a column `messages` nor `prompt`: it has .*question"):
        build_tiny_model(tmp_path / "other.parquet", tmp_path / "tiny", TinyModelSize(), seed=1)


def test_file_that_is_not_parquet_is_refused(tmp_path):
    (tmp_path / "text.parquet").write_text("hello")
    with pytest.raises(ConfigError, match="is not a Parquet file"):
        build_tiny_model(tmp_path / "text.parquet", tmp_path / "tiny", TinyModelSize(), seed=1)


def test_existing_folder_is_not_overwritten(texts, model_folder):
    before = digests(model_folder)
    with pytest.raises(ConfigError, match="exists already"):
        build_tiny_model(texts, model_folder, TinyModelSize(), seed=2)
    assert digests(model_folder) == before


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"hidden": 33}, "--hidden 33"),
        ({"heads": 3}, "--heads 3"),
        ({"layers": 0}, "--layers 0"),
        ({"vocab_size": 100}, "--vocab-size 100"),
    ],
)
def test_impossible_sizes_are_refused(sizes, message):
    with pytest.raises(ConfigError, match=message):
        TinyModelSize(**sizes)
