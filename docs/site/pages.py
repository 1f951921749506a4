"""A hook of mkdocs (mkdocs.yml): makes the pages of the site that are not files of docs/, and mends all links.

In the repository, links lead to files, as GitHub shows them. The site only has pages: README.md and its like become
pages, a settings file is a section of a reference page, and any other file or folder gets a page with its text.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

from reference_pages import REPO_ROOT, SETTINGS_PAGES, heading_anchor, knobs_page, settings_files, settings_page

# Files outside of docs/ that are pages of the site.
PAGES = {
    "README.md": "index.md",
    "README.zh-CN.md": "index.zh.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "SECURITY.md": "security.md",
}
SOURCES = {page: source for source, page in PAGES.items()}
# Of what lies in docs/: folders and texts that a browser would not show.
SHOWN_AS_A_PAGE = {"", ".sh", ".sbatch", ".yaml"}
LINK = re.compile(r"\]\(([^)\s#:]+)(#[^)\s]*)?\)")


def on_files(files: Files, *, config: MkDocsConfig) -> Files:
    """Add the pages that are not files of docs/."""
    texts = {page: _read(source) for source, page in PAGES.items()}
    texts["reference/knobs.md"] = knobs_page()
    texts |= {page: settings_page(page) for page in SETTINGS_PAGES}
    own = {file.src_uri: file.content_string for file in files.documentation_pages()}
    for target in {target for page, text in (own | texts).items() for target in _targets(page, text)}:
        uri = _uri(target)
        if uri.startswith("files/"):
            texts[uri] = _text_page(target)
    for uri, text in sorted(texts.items()):
        files.append(File.generated(config, uri, content=text))
    return files


def on_page_markdown(markdown: str, *, page: Page, **_: Any) -> str:
    """Make every link to something in the repository a link of the site."""
    own = page.file.src_uri

    def mended(match: re.Match[str]) -> str:
        if (target := _target(own, match[1])) is None:
            return match[0]
        uri, _, section = _uri(target).partition("#")
        anchor = match[2] or (f"#{section}" if section else "")
        return f"]({posixpath.relpath(uri, posixpath.dirname(own) or '.')}{anchor})"

    return LINK.sub(mended, markdown)


def _read(name: str) -> str:
    return (REPO_ROOT / name).read_text(encoding="utf-8")


def _targets(page: str, text: str) -> Iterator[str]:
    for match in LINK.finditer(text):
        if target := _target(page, match[1]):
            yield target


def _target(page: str, link: str) -> str | None:
    """The path in the repository that a link of a page leads to; None where nothing is: mkdocs then warns."""
    source = SOURCES.get(page, f"docs/{page}")
    path = posixpath.normpath(posixpath.join(posixpath.dirname(source), link))
    return path if (REPO_ROOT / path).exists() else None


def _uri(target: str) -> str:
    """Where the site shows a path of the repository, with #section where that is a part of a page."""
    if target in PAGES:
        return PAGES[target]
    for page in SETTINGS_PAGES:
        if target in settings_files(page):
            return f"{page}#{heading_anchor(target)}"
    if target.startswith("docs/") and Path(target).suffix not in SHOWN_AS_A_PAGE:
        return target.removeprefix("docs/")
    return f"files/{target}.md"


def _text_page(target: str) -> str:
    """A page with the text of a file, or of all files of a folder."""
    path = REPO_ROOT / target
    files = sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else [path]
    parts = [f"# {target}\n"]
    for file in files:
        if path.is_dir():
            parts.append(f"## {file.name}\n")
        language = {".sh": "bash", ".sbatch": "bash"}.get(file.suffix, file.suffix.removeprefix("."))
        parts.append(f"~~~~{language}\n{file.read_text(encoding='utf-8').rstrip()}\n~~~~\n")
    return "\n".join(parts)
