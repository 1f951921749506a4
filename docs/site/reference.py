"""The reference pages of the site: the knobs of all launchers, and the settings files with their comments."""

from __future__ import annotations

import html
import re
from pathlib import Path

ALGORITHMS = ("grpo", "gspo", "ppo", "sft", "dpo")
SECTION = re.compile(r"# ---- (.+)")
KNOB = re.compile(r"([A-Z_0-9]+)=\$\{\1:-\} +# (?:\[(.*?)\] ?)?(.*)")

KNOBS_INTRO = """# Knobs

    STEPS=40 KL=0.1 bash scripts/train_grpo.sh        # in the environment
    CONFIG=mine.yaml bash scripts/train_grpo.sh       # or in a file: a line such as `STEPS: 40` each

A knob in the environment wins over the file `CONFIG`. An empty knob has its default. Of two defaults, the first is the
tiny model's. Any key of a [recipe](recipes.md) or of verl can follow the command, as in `bash scripts/train_grpo.sh
data.seed=2`. This page is made from the scripts, so it has what `--help` prints.
"""

# Each page: its first lines, and the settings files that it shows.
REFERENCE_PAGES = {
    "reference/settings.md": (
        "# Settings files\n\nThe files of `configs/` with their comments. They hold every setting that is not a [knob]"
        "(knobs.md) of a training.\n",
        ("configs/*.yaml", "configs/scenarios/*.yaml", "configs/protocols/*.yaml", "configs/hardware/*.yaml"),
    ),
    "reference/recipes.md": (
        "# Recipes\n\nThe recipe of each algorithm: what differs from verl's own defaults, with the reason. A key can "
        "follow the command of a training, for one run.\n",
        ("recipes/*.yaml", "recipes/start/*.yaml"),
    ),
}


def settings_files(repo_root: Path, page: str) -> list[str]:
    _, patterns = REFERENCE_PAGES[page]
    return [str(path.relative_to(repo_root)) for pattern in patterns for path in sorted(repo_root.glob(pattern))]


SETTINGS_PAGES = {page: settings_files(Path(__file__).resolve().parents[2], page) for page in REFERENCE_PAGES}


def heading_anchor(heading: str) -> str:
    """The name by which a link reaches a heading, as GitHub makes it."""
    return re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-")


def knobs_page(repo_root: Path) -> str:
    """A table for each section of the launchers' blocks. The last column names the launchers that have a knob."""
    sections: dict[str, dict[tuple[str, str, str], list[str]]] = {}
    for algorithm in ALGORITHMS:
        section = ""
        for line in (repo_root / "scripts" / f"train_{algorithm}.sh").read_text(encoding="utf-8").splitlines():
            if match := SECTION.fullmatch(line):
                section = match[1]
            elif match := KNOB.match(line):
                row = (match[1], match[2] or "", match[3])
                sections.setdefault(section, {}).setdefault(row, []).append(algorithm)
    parts = [KNOBS_INTRO]
    for section, rows in sections.items():
        parts.append(f"## {section[0].upper()}{section[1:]}\n")
        parts.append("| knob | default | meaning | script |\n|---|---|---|---|")
        # what two launchers say differently of a knob stands together
        order = list(dict.fromkeys(knob for knob, *_ in rows))
        parts += [_row(*row, rows[row]) for row in sorted(rows, key=lambda row: order.index(row[0]))]
        parts.append("")
    return "\n".join(parts)


def _row(knob: str, default: str, meaning: str, algorithms: list[str]) -> str:
    text = html.escape(meaning, quote=False).replace("|", "\\|")
    text = re.sub(r"\bdocs/(\w+)\.md", r"[docs/\1.md](../\1.md)", text)
    scripts = "all" if len(algorithms) == len(ALGORITHMS) else ", ".join(algorithms)
    return f"| `{knob}` | {f'`{default}`' if default else ''} | {text} | {scripts} |"


def settings_page(repo_root: Path, page: str) -> str:
    """The page's first lines, then each settings file as it is."""
    first, _ = REFERENCE_PAGES[page]
    parts = [first]
    for name in settings_files(repo_root, page):
        text = (repo_root / name).read_text(encoding="utf-8").rstrip()
        parts.append(f"## {name}\n\n~~~~yaml\n{text}\n~~~~\n")
    return "\n".join(parts)
