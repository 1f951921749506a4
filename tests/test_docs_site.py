"""The documentation site is built without a warning, leads nowhere wrong, and says what the code says."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

REPO_ROOT = Path(__file__).resolve().parents[1]
LAUNCHERS = sorted((REPO_ROOT / "scripts").glob("train_*.sh"))
CODE = ("tsc", "reward", "data_tools", "recipes", "scripts")


class Page(HTMLParser):
    """What a page of the site loads (`loaded`), where its links lead, its anchors, and its text."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.loaded: list[str] = []
        self.links: list[str] = []
        self.anchors = {""}
        self._texts: list[str] = []
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = {name: value for name, value in attrs if value}
        self.anchors |= {found[name] for name in ("id", "name") if name in found}
        if tag == "a" and "href" in found:
            self.links.append(found["href"])
        elif tag == "link" and "href" in found:
            self.loaded.append(found["href"])
        elif "src" in found:
            self.loaded.append(found["src"])

    def handle_data(self, data: str) -> None:
        self._texts.append(data)

    @property
    def text(self) -> str:
        return "".join(self._texts)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    # with --quiet, --strict does not see the warnings
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    done = subprocess.run(command, cwd=REPO_ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


@pytest.fixture(scope="module")
def pages(site: Path) -> dict[Path, Page]:
    return {path: Page(path) for path in site.rglob("*.html") if path.name != "404.html"}


def test_every_page_of_the_docs_is_there(site: Path) -> None:
    expected = {f"{path.stem}.html" for path in (REPO_ROOT / "docs").glob("*.md")} | {"index.html", "contributing.html"}
    assert expected - {path.name for path in site.glob("*.html")} == set()


def test_every_link_leads_to_a_file_and_a_heading_of_the_site(pages: dict[Path, Page]) -> None:
    wrong = []
    for path, page in pages.items():
        for link in page.links + page.loaded:
            parts = urlsplit(link)
            if parts.scheme:
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            target = target / "index.html" if target.is_dir() else target
            anchors = pages[target].anchors if target in pages else {""}
            if not target.is_file() or unquote(parts.fragment) not in anchors:
                wrong.append(f"{path.name}: {link}")
    assert wrong == []


def test_a_page_loads_nothing_from_elsewhere(pages: dict[Path, Page]) -> None:
    assert [link for page in pages.values() for link in page.loaded if urlsplit(link).netloc] == []


def test_a_link_to_a_settings_file_leads_to_its_text(site: Path) -> None:
    assert "reference/settings.html#configsrewardyaml" in Page(site / "horizon_study.html").links
    kuberay = Page(site / "files/docs/examples/kuberay.html").text
    assert "kind: RayCluster" in kuberay or "kind: RayJob" in kuberay


@pytest.mark.parametrize("launcher", LAUNCHERS, ids=lambda path: path.stem)
def test_the_knobs_are_those_of_help(site: Path, launcher: Path) -> None:
    help_text = subprocess.check_output(["bash", str(launcher), "--help"], text=True)
    knobs = re.findall(r"^  ([A-Z_0-9]+)  (.*)$", help_text, re.MULTILINE)
    assert len(knobs) > 20
    page = "".join(Page(site / "reference/knobs.html").text.split())
    rows = ["".join((knob + re.sub(r"^\[(.*?)\]", r"\1", told)).split()) for knob, told in knobs]
    assert [row for row in rows if row not in page] == []


@pytest.mark.parametrize(("folder", "page"), [("configs", "settings"), ("recipes", "recipes")])
def test_every_settings_file_is_shown_as_it_is(site: Path, folder: str, page: str) -> None:
    files = sorted((REPO_ROOT / folder).rglob("*.yaml"))
    text = Page(site / "reference" / f"{page}.html").text
    assert files
    assert [str(file) for file in files if file.read_text(encoding="utf-8").strip() not in text] == []


def messages_of_the_code() -> Iterator[str]:
    """Every text in the Python files, with \\0 for what differs, and every line of the shell scripts."""
    for path in (path for folder in CODE for path in (REPO_ROOT / folder).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                yield node.value
            elif isinstance(node, ast.JoinedStr):
                yield "".join(str(part.value) if isinstance(part, ast.Constant) else "\0" for part in node.values)
    for path in (REPO_ROOT / "scripts").glob("*.sh"):
        yield from path.read_text(encoding="utf-8").splitlines()


def messages_of_the_page(text: str) -> list[str]:
    """What the tables of a page quote in their first column."""
    rows = (line.split("|")[1] for line in text.splitlines() if line.startswith("| "))
    return [quoted for row in rows for quoted in re.findall(r"`(.+?)`", row)]


def unknown_messages(quoted: list[str]) -> list[str]:
    known = "\n".join(messages_of_the_code())
    # an ellipsis stands for a value, which no message continues over a line
    return [each for each in quoted if not re.search(r"[^\n]*".join(map(re.escape, each.split("…"))), known)]


def test_every_message_of_the_troubleshooting_page_is_in_the_code() -> None:
    quoted = messages_of_the_page((REPO_ROOT / "docs/troubleshooting.md").read_text(encoding="utf-8"))
    assert len(quoted) > 50
    assert unknown_messages(quoted) == []


def test_a_message_that_no_code_has_is_found() -> None:
    rows = "| `the dataset in … has other settings` | a |\n| `the dataset in … has a fever` | `b` |"
    assert unknown_messages(messages_of_the_page(rows)) == ["the dataset in … has a fever"]
