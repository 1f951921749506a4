import re
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from tsc.errors import ConfigError
from tsc.junction.observation import LaneGroupObservation, Observation, StageObservation
from tsc.junction.prompt import CHINESE, SYSTEM_MESSAGE, messages, prompt_maker, prompt_version, user_message


def observation(num_stages: int, space_veh: int = 99) -> Observation:
    """Every count as large as a busy junction of three lanes has it."""
    return Observation(
        junction_id="J",
        elapsed_green_s=55,
        min_green_s=10,
        max_green_s=60,
        green_extension_s=5,
        stages=tuple(
            StageObservation(
                stage=number,
                queue_veh=24 + number,
                moving_near_veh=12,
                moving_mid_veh=13,
                moving_far_veh=25,
                longest_wait_s=138,
                downstream_space_veh=space_veh,
            )
            for number in range(num_stages)
        ),
    )


def with_shared_lanes(*turns: tuple[int, ...], num_stages: int = 3) -> Observation:
    """Lanes that lead to the stages of these turns, with as many vehicles."""
    groups = tuple(
        LaneGroupObservation(
            turns=each,
            queue_veh=24 + number,
            moving_near_veh=12,
            moving_mid_veh=13,
            moving_far_veh=25,
            longest_wait_s=138,
            downstream_space_veh=99,
        )
        for number, each in enumerate(turns)
    )
    return replace(observation(num_stages), lane_groups=groups)


INGOLSTADT = ((0,), (0, 1), (0, 2), (2,))


def qwen_tokens_at_most(text: str) -> int:
    """An upper bound for Qwen's tokenizer: it splits text into words with the blank before them, single digits, and
    runs of other signs; the words used here are each one token of its vocabulary (it counts 192 for four stages)."""
    return len(re.findall(r"[^\r\n\w]?[^\W\d_]+|\d| ?[^\s\w]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s", text))


@pytest.mark.parametrize("seen", [observation(4), with_shared_lanes(*INGOLSTADT)], ids=["stages", "lane groups"])
def test_four_stages_or_lane_groups_take_at_most_200_tokens(seen: Observation) -> None:
    chat = "".join(f"<|im_start|>{m['role']}\n{m['content']}<|im_end|>\n" for m in messages(seen))
    chat = re.sub(r"<\|im_\w+\|>", "@", chat + "<|im_start|>assistant\n")
    assert qwen_tokens_at_most(chat) <= 200


def test_the_current_stage_comes_first_and_every_number_is_there() -> None:
    lines = user_message(observation(3)).splitlines()
    assert lines[0].startswith("Green for 55 s (10 to 60 s). Extend by 5 s?")
    assert [line.split(":")[0] for line in lines[1:]] == ["green", "next", "red"]
    assert lines[2] == "next: queue 25 moving near 12 mid 13 far 25 wait 138 s space 99"


def test_lanes_of_several_stages_have_a_line_of_their_own_that_names_these() -> None:
    lines = user_message(with_shared_lanes(*INGOLSTADT)).splitlines()
    assert lines[0] == ("Green for 55 s (10 to 60 s). Extend by 5 s? Vehicles by the stages that serve their lanes:")
    assert [line.split(":")[0] for line in lines[1:]] == ["green", "green, next", "green, stage 3", "stage 3"]
    assert lines[2] == "green, next: queue 25 moving near 12 mid 13 far 25 wait 138 s space 99"
    lines = user_message(with_shared_lanes((0, 1), (1, 3), num_stages=4), CHINESE).splitlines()
    assert [line.split("：")[0] for line in lines[1:]] == ["绿灯、下一个", "下一个、相位 4"]


def test_the_system_message_shows_both_answers() -> None:
    assert '{"extend": "yes"}' in SYSTEM_MESSAGE and '{"extend": "no"}' in SYSTEM_MESSAGE


@pytest.mark.parametrize("seen", [observation(4), with_shared_lanes(*INGOLSTADT)], ids=["stages", "lane groups"])
def test_the_chinese_prompt_has_the_numbers_and_the_answers_of_the_english_one(seen: Observation) -> None:
    english, chinese = messages(seen), prompt_maker("tsc_zh")(seen)
    assert [each["role"] for each in chinese] == [each["role"] for each in english]
    for ours, theirs in zip(english, chinese, strict=True):
        assert re.findall(r"\d+|\{.*?\}|\n", theirs["content"]) == re.findall(r"\d+|\{.*?\}|\n", ours["content"])
    rest = re.sub(r"\{.*?\}", "", "".join(each["content"] for each in chinese))
    assert not re.search("[A-Za-z]", rest)


def test_the_chinese_stages_are_named_in_order() -> None:
    lines = user_message(observation(3), CHINESE).splitlines()
    assert lines[0] == "绿灯已亮 55 秒（10 至 60 秒）。是否延长 5 秒？车辆数："
    assert [line.split("：")[0] for line in lines[1:]] == ["绿灯", "下一个", "红灯"]
    assert lines[2] == "下一个：排队 25 行驶 近 12 中 13 远 25 等待 138 秒 空位 99"


def test_much_room_downstream_is_cut_to_two_digits() -> None:
    assert user_message(observation(2, space_veh=368)) == user_message(observation(2, space_veh=99))


@pytest.fixture
def own_prompts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "prompts_of_a_user.py"
    path.write_text(
        "def chinese(seen):\n    return f'绿灯 {seen.elapsed_green_s} 秒, 排队 {seen.stages[0].queue_veh} 辆'\n"
        "def chat(seen):\n    return [{'role': 'system', 'content': 'a'}, {'role': 'user', 'content': 'b'}]\n"
        "def wrong(seen):\n    return [{'role': 'user'}]\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, path.stem, raising=False)
    return path


def test_a_user_s_own_function_makes_the_prompt(own_prompts: Path) -> None:
    seen = observation(2)
    assert prompt_maker("pkg://prompts_of_a_user:chinese")(seen) == [
        {"role": "user", "content": "绿灯 55 秒, 排队 24 辆"}
    ]
    assert [each["role"] for each in prompt_maker("pkg://prompts_of_a_user:chat")(seen)] == ["system", "user"]
    assert prompt_maker("tsc")(seen) == messages(seen)


def test_the_version_of_a_prompt_changes_with_its_text(own_prompts: Path) -> None:
    before = prompt_version("pkg://prompts_of_a_user:chinese")
    own_prompts.write_text(own_prompts.read_text() + "# changed\n")
    assert before.startswith("pkg://") and prompt_version("pkg://prompts_of_a_user:chinese") != before
    assert prompt_version("tsc") == "2" and prompt_version("tsc_zh") == "tsc_zh 2"


def test_a_prompt_that_cannot_be_made_is_an_error(own_prompts: Path) -> None:
    with pytest.raises(ConfigError, match="'zh' is unknown: choose tsc, tsc_zh .* or a function of your own"):
        prompt_maker("zh")
    with pytest.raises(ConfigError, match="has no function 'gone': choose of chinese, chat, wrong"):
        prompt_maker("pkg://prompts_of_a_user:gone")
    with pytest.raises(ConfigError, match="must be a text, or messages with role and content"):
        prompt_maker("pkg://prompts_of_a_user:wrong")(observation(2))
