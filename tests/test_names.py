"""Every file, module and page of ours that a text names exists: in code, shell scripts, YAML, Dockerfiles and docs."""

import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

REPO_ROOT = Path(__file__).resolve().parents[1]
# The changelog is history: it names files as they were.
HISTORY = {"CHANGELOG.md"}
THIS_FILE = "tests/test_names.py"

FOLDERS = ("recipes", "scripts", "tests", "configs", "docs", "docker", "requirements", "tsc", "reward", "data_tools")
# A path that does not begin in the middle of another one and does not end in a placeholder such as * or {name}.
FILE_NAME = re.compile(rf"(?<![\w.$-])(?<![\w.$-]/)(?:{'|'.join(FOLDERS)})/[\w./-]*\w/?(?![\w*<{{$\[…])")
PLACEHOLDER = re.compile(r"(^|/)([A-Z]+|mine)(\.\w+)?(/|$)")
FILES_OF_OTHERS = {"docker/Dockerfile.stable.vllm": "verl's"}
# Metrics (reward/score/mean) and data sources (tsc/four_way) look like folders of ours.
METRIC_OR_DATA_SOURCE = re.compile(r"(tsc|reward)(/\w+)+")

MODULE_NAME = re.compile(
    r"(?<![\w./-])(?:tsc|reward|data_tools|recipes|benchmarks)(?:\.[A-Za-z_]\w*)+(?::\w+)?(?![\w*<{$\[])"
)
# Pages, and other names that begin with "reward.": files, keys of verl's configuration, and settings of the reward.
NOT_MODULES = re.compile(
    r"\w+\.md\b|reward\.(yaml|custom_reward_function|num_workers|reward_model|format|weights|normalisation|\w+_veh_s)\b"
)

LINK = re.compile(r"\]\(([^)\s]+)\)")


def texts() -> Iterator[tuple[str, str]]:
    """The path and the text of every file of the repository."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    for name in subprocess.check_output(command, cwd=REPO_ROOT, text=True).splitlines():
        path = REPO_ROOT / name
        if name in HISTORY or name == THIS_FILE or not path.is_file():
            continue
        data = path.read_bytes()
        if b"\0" not in data:
            yield name, data.decode("utf-8")


def is_file_of_ours(name: str) -> bool:
    # docs/guarantees.md names tests by their path in tests/.
    return (REPO_ROOT / name).exists() or (REPO_ROOT / "tests" / name).exists()


def missing_files(text: str) -> list[str]:
    return [
        name
        for name in FILE_NAME.findall(text)
        if not is_file_of_ours(name)
        and name not in FILES_OF_OTHERS
        and not PLACEHOLDER.search(name)
        and not METRIC_OR_DATA_SOURCE.fullmatch(name)
    ]


def is_module_of_ours(name: str) -> bool:
    """Whether a dotted name stands for a package, a module, or something in a module (tsc.errors.ConfigError)."""
    first, *parts = re.split(r"[.:]", name)
    folder = REPO_ROOT / "scripts" / first if first == "benchmarks" else REPO_ROOT / first
    for i, part in enumerate(parts):
        if (folder / part).is_dir():
            folder /= part
            continue
        module = folder / f"{part}.py"
        return module.is_file() and (
            i + 1 == len(parts) or bool(re.search(rf"\b{parts[i + 1]}\b", module.read_text(encoding="utf-8")))
        )
    return True


def missing_modules(text: str) -> list[str]:
    names = MODULE_NAME.findall(text)
    return [name for name in names if not NOT_MODULES.match(name) and not is_module_of_ours(name)]


def missing_links(name: str, text: str) -> list[str]:
    """The links of a page to files that do not exist, or to headings that their page does not have."""
    missing = []
    for link in LINK.findall(text):
        if "://" in link:
            continue
        path, _, heading = link.partition("#")
        target = (REPO_ROOT / name).parent / path if path else REPO_ROOT / name
        if not target.exists() or (heading and heading not in headings(target)):
            missing.append(link)
    return missing


def headings(page: Path) -> set[str]:
    """The names by which links reach the headings of a page, as GitHub makes them."""
    lines = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", line.lower()).replace(" ", "-") for line in lines}


def test_every_file_that_a_text_names_exists() -> None:
    assert {path: names for path, text in texts() if (names := missing_files(text))} == {}


def test_every_module_that_a_text_names_exists() -> None:
    assert {path: names for path, text in texts() if (names := missing_modules(text))} == {}


def test_every_link_of_a_page_leads_somewhere() -> None:
    pages = ((path, text) for path, text in texts() if path.endswith(".md"))
    assert {path: links for path, text in pages if (links := missing_links(path, text))} == {}


def test_a_wrong_name_is_found_and_a_placeholder_is_not() -> None:
    text = "`scripts/gone.py`, scripts/train_*.sh, runs/scripts/x.sh, recipes/NAME.yaml, configs/scenarios/mine.yaml"
    assert missing_files(text) == ["scripts/gone.py"]
    text = "-m reward.gone, 'tsc.errors:ConfigError', tsc.errors.Gone, pkg://recipes.gone, reward.num_workers"
    assert missing_modules(text) == ["reward.gone", "tsc.errors.Gone"]
    assert missing_links("README.md", "[a](docs/gone.md) [b](#no-such-heading) [c](LICENSE)") == [
        "docs/gone.md",
        "#no-such-heading",
    ]
