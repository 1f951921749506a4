"""The reference pages of the site: the knobs of all launchers, and the settings files with their comments."""

from __future__ import annotations

import html
import re
from pathlib import Path

REPO_ROOT = Path(__file__).resolve().parents[2]
ALGORITHMS = ("grpo", "gspo", "ppo", "sft", "dpo")
# In a launcher: the title of a section, and a knob with its default, if it has one, and its meaning.
SECTION = re.compile(r"# ---- (.+)")
KNOB = re.compile(r"([A-Z_0-9]+)=\$\{\1:-\} +# (?:\[(.*?)\] ?)?(.*)")

KNOBS_INTRO = """# Knobs

    STEPS=40 KL=0.1 bash scripts/train_grpo.sh        # in the environment
    CONFIG=mine.yaml bash scripts/train_grpo.sh       # or in a file: a line such as `STEPS: 40` each

A knob in the environment wins over the file `CONFIG`. An empty knob has its default. Of two defaults, the first is the
tiny model's. Any key of a [recipe](recipes.md) or of verl can follow the command, as in `bash scripts/train_grpo.sh
data.seed=2`. This page is made from the scripts, so it has what `--help` prints.
"""

# The first lines of a page, and the settings files that it shows.
SETTINGS_PAGES = {
    "reference/settings.md": (
        "# Settings files\n\nThe files of `configs/` with their comments: scenarios, reward, evaluation and hardware. "
        "What a launch can change of a training is a [knob](knobs.md).\n",
        ("configs/*.yaml", "configs/scenarios/*.yaml", "configs/protocols/*.yaml", "configs/hardware/*.yaml"),
    ),
    "reference/recipes.md": (
        "# Recipes\n\nThe recipe of each algorithm: what differs from verl's own defaults, with the reason. A key can "
        "follow the command of a training, for one run.\n",
        ("recipes/*.yaml", "recipes/start/*.yaml"),
    ),
}


def knobs_page() -> str:
    """A table for each section of the launchers' blocks. The last column names the launchers that have a knob."""
    sections: dict[str, dict[tuple[str, str, str], list[str]]] = {}
    for algorithm in ALGORITHMS:
        section = ""
        for line in (REPO_ROOT / f"scripts/train_{algorithm}.sh").read_text(encoding="utf-8").splitlines():
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


def settings_files(page: str) -> list[str]:
    """The settings files of a page, by their paths in the repository."""
    _, patterns = SETTINGS_PAGES[page]
    return [str(path.relative_to(REPO_ROOT)) for pattern in patterns for path in sorted(REPO_ROOT.glob(pattern))]


def settings_page(page: str) -> str:
    """The page's first lines, then each settings file as it is."""
    parts = [SETTINGS_PAGES[page][0]]
    for name in settings_files(page):
        text = (REPO_ROOT / name).read_text(encoding="utf-8").rstrip()
        parts.append(f"## {name}\n\n~~~~yaml\n{text}\n~~~~\n")
    return "\n".join(parts)


def heading_anchor(heading: str) -> str:
    """The name by which a link reaches a heading, as GitHub makes it."""
    return re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-")
