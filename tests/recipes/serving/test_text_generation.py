import json
import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from recipes.models.tiny_model import TinyModelSize, build_tiny_model
from recipes.serving.text_generation import LocalModel
from tsc.errors import ConfigError

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

SYSTEM = 'Extend the green? Answer with {"extend": "yes"} or {"extend": "no"} only.'


def conversation(queue_veh: int, other_queue_veh: int) -> list[dict[str, str]]:
    content = f"stage 1 (green): queue {queue_veh} veh\nstage 2 (red): queue {other_queue_veh} veh"
    if queue_veh % 3 == 0:
        # Prompts of different lengths, so that a batch is padded.
        content += f"\nstage 3 (red): queue {other_queue_veh // 2} veh, longest wait {queue_veh} s"
    return [{"role": "system", "content": SYSTEM}, {"role": "user", "content": content}]


CONVERSATIONS = [conversation(queue_veh, 7 * queue_veh % 31) for queue_veh in range(24)]


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory):
    """A random model that ends its answers early or late, depending on the prompt."""
    folder = tmp_path_factory.mktemp("model")
    texts = folder / "texts.parquet"
    answers = [{"role": "assistant", "content": f'{{"extend": "{word}"}}'} for word in ("yes", "no")]
    pq.write_table(pa.table({"messages": [[*c, answers[i % 2]] for i, c in enumerate(CONVERSATIONS)]}), texts)
    build_tiny_model(texts, folder / "tiny", TinyModelSize(hidden=64, layers=2), seed=1)
    # A random model never says <|im_end|>: let common tokens of its answers end them instead.
    answers = reference_answers(folder / "tiny", CONVERSATIONS, max_new_tokens=6, decode=False)
    config_file = folder / "tiny" / "generation_config.json"
    config = json.loads(config_file.read_text())
    config["eos_token_id"] = [config["eos_token_id"], *{answer[4] for answer in answers[::4]}]
    config_file.write_text(json.dumps(config))
    return folder / "tiny"


def reference_answers(folder, conversations, *, max_new_tokens=12, decode=True, adapter=None):
    """transformers' own greedy decoding, one prompt at a time."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    if adapter is not None:
        from peft import PeftModel

        model = PeftModel.from_pretrained(model, adapter)
    end_tokens = model.generation_config.eos_token_id
    end_tokens = end_tokens if isinstance(end_tokens, list) else [end_tokens]
    answers = []
    for messages in conversations:
        inputs = tokenizer.apply_chat_template(
            messages, add_generation_prompt=True, return_tensors="pt", return_dict=True
        )
        output = model.generate(**inputs, do_sample=False, max_new_tokens=max_new_tokens)
        tokens = output[0, inputs["input_ids"].shape[1] :].tolist()
        tokens = tokens[:-1] if tokens[-1] in end_tokens else tokens
        answers.append(tokenizer.decode(tokens, skip_special_tokens=True) if decode else tokens)
    return answers


@pytest.fixture(scope="module")
def expected(model_folder):
    return reference_answers(model_folder, CONVERSATIONS)


def test_answers_are_those_of_transformers_greedy_decoding(model_folder, expected):
    assert len({len(answer) for answer in expected}) > 2, "the model should give answers of different lengths"
    assert LocalModel(model_folder, max_new_tokens=12).generate(CONVERSATIONS) == expected


def test_answers_do_not_depend_on_the_batch(model_folder, expected):
    for batch_size in (1, 5, 9):
        model = LocalModel(model_folder, max_new_tokens=12)
        for first in range(0, len(CONVERSATIONS), batch_size):
            batch = slice(first, first + batch_size)
            assert model.generate(CONVERSATIONS[batch]) == expected[batch]
    backwards = LocalModel(model_folder, max_new_tokens=12)
    assert [backwards.generate([each])[0] for each in reversed(CONVERSATIONS)] == expected[::-1]


def test_the_same_prompt_is_computed_once(model_folder, expected, monkeypatch):
    model = LocalModel(model_folder, max_new_tokens=12)
    assert model.generate([CONVERSATIONS[3], CONVERSATIONS[4], CONVERSATIONS[3]]) == [expected[i] for i in (3, 4, 3)]
    monkeypatch.setattr(model, "_decode_greedily", lambda prompts: pytest.fail(f"computed {len(prompts)} again"))
    assert model.generate([CONVERSATIONS[4], CONVERSATIONS[3]]) == [expected[4], expected[3]]


def test_no_conversations_give_no_answers(model_folder):
    assert LocalModel(model_folder).generate([]) == []


def test_answers_are_cut_off_at_max_new_tokens(model_folder):
    shortened = LocalModel(model_folder, max_new_tokens=3).generate(CONVERSATIONS)
    assert shortened == reference_answers(model_folder, CONVERSATIONS, max_new_tokens=3)


@pytest.fixture(scope="module")
def adapter_folder(model_folder, tmp_path_factory):
    """A LoRA adapter with large random weights."""
    peft = pytest.importorskip("peft")
    model = transformers.AutoModelForCausalLM.from_pretrained(model_folder, dtype=torch.float32)
    torch.manual_seed(3)
    config = peft.LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", init_lora_weights=False)
    folder = tmp_path_factory.mktemp("adapter")
    peft.get_peft_model(model, config).save_pretrained(folder)
    return folder


def test_model_with_adapter_answers_like_the_merged_model(model_folder, adapter_folder, expected, tmp_path):
    from peft import PeftModel

    base = transformers.AutoModelForCausalLM.from_pretrained(model_folder, dtype=torch.float32)
    PeftModel.from_pretrained(base, adapter_folder).merge_and_unload().save_pretrained(tmp_path)
    for path in model_folder.iterdir():
        if not (tmp_path / path.name).exists() or path.name == "generation_config.json":
            shutil.copy(path, tmp_path)

    answers = LocalModel(model_folder, adapter_folder, max_new_tokens=12).generate(CONVERSATIONS)
    assert answers == LocalModel(tmp_path, max_new_tokens=12).generate(CONVERSATIONS)
    assert answers == reference_answers(model_folder, CONVERSATIONS, adapter=adapter_folder)
    assert answers != expected


@pytest.mark.parametrize(
    ("file", "message"),
    [
        ("config.json", r"does not have config\.json"),
        ("tokenizer.json", r"does not have tokenizer\.json"),
        ("model.safetensors", r"does not have model\.safetensors"),
    ],
)
def test_incomplete_model_folder_is_refused_with_what_it_lacks(model_folder, tmp_path, file, message):
    broken = shutil.copytree(model_folder, tmp_path / "broken")
    (broken / file).unlink()
    with pytest.raises(ConfigError, match=message):
        LocalModel(broken)


def test_missing_folders_are_named(model_folder, tmp_path):
    with pytest.raises(ConfigError, match="the model folder .*nowhere does not exist"):
        LocalModel(tmp_path / "nowhere")
    with pytest.raises(ConfigError, match="the adapter folder .*nowhere does not exist"):
        LocalModel(model_folder, tmp_path / "nowhere")


def test_adapter_given_as_the_model_is_explained(adapter_folder):
    with pytest.raises(ConfigError, match="this is a LoRA adapter"):
        LocalModel(adapter_folder)


def test_model_given_as_the_adapter_is_explained(model_folder):
    with pytest.raises(ConfigError, match=r"does not have adapter_config\.json"):
        LocalModel(model_folder, model_folder)


def test_adapter_of_another_model_is_refused(model_folder, adapter_folder, tmp_path):
    texts = Path(model_folder).parent / "texts.parquet"
    build_tiny_model(texts, tmp_path / "wider", TinyModelSize(hidden=96, layers=2), seed=1)
    with pytest.raises(ConfigError, match="does not fit the model"):
        LocalModel(tmp_path / "wider", adapter_folder)


def test_model_without_chat_template_is_refused(model_folder, tmp_path):
    broken = shutil.copytree(model_folder, tmp_path / "broken")
    (broken / "chat_template.jinja").unlink()
    with pytest.raises(ConfigError, match="has no chat template"):
        LocalModel(broken)
