"""README.zh-CN.md says what README.md says: section by section the same commands, code, links and numbers."""

import re
from collections import Counter
from pathlib import Path

import pytest

REPO_ROOT = Path(__file__).resolve().parents[1]
# The line below the title, which leads to the other language.
TO_THE_OTHER_LANGUAGE = re.compile(r"^\[.+\]\(README[\w.-]*\.md\).*\n", re.MULTILINE)
COMMAND = re.compile(r"^ {4}(.+?)(?: +#.*)?$", re.MULTILINE)
CODE = re.compile(r"`[^`]+`")
LINK = re.compile(r"\]\(([^)]+)\)")
NUMBER = re.compile(r"\d+(?:[.,]\d+)*")


def sections(name: str) -> list[str]:
    """The sections of a README, the title's first, each with the number signs of its heading."""
    text = TO_THE_OTHER_LANGUAGE.sub("", (REPO_ROOT / name).read_text(encoding="utf-8"))
    return re.split(r"^(?=#+ )", text, flags=re.MULTILINE)[1:]


def facts(section: str) -> dict[str, object]:
    """What both languages have in common. Commands keep their order; a sentence may have another."""
    commands = COMMAND.findall(section)
    text = COMMAND.sub("", section)
    return {
        "level": section.partition(" ")[0],
        "commands": commands,
        "code": Counter(" ".join(code.split()) for code in CODE.findall(text)),
        "links": Counter(LINK.findall(text)),
        "numbers": Counter(NUMBER.findall(CODE.sub("", LINK.sub("", text)))),
        "rows and items": Counter(line[0] for line in text.splitlines() if line.startswith(("|", "-"))),
    }


ENGLISH = sections("README.md")


def test_both_have_the_same_number_of_sections() -> None:
    assert len(sections("README.zh-CN.md")) == len(ENGLISH) > 5


@pytest.mark.parametrize("number", range(len(ENGLISH)), ids=[text.splitlines()[0] for text in ENGLISH])
def test_a_section_has_the_commands_code_links_and_numbers_of_the_english_one(number: int) -> None:
    assert facts(sections("README.zh-CN.md")[number]) == facts(ENGLISH[number])


def test_each_leads_to_the_other() -> None:
    for name, other in (("README.md", "README.zh-CN.md"), ("README.zh-CN.md", "README.md")):
        assert f"]({other})" in (REPO_ROOT / name).read_text(encoding="utf-8").split("\n\n")[1]
