from pathlib import Path

from tsc.evaluation import metrics, statistics


def test_the_documentation_defines_every_number_as_the_report_does(repo_root: Path) -> None:
    document = (repo_root / "docs" / "evaluation.md").read_text(encoding="utf-8")
    for module in (metrics, statistics):
        text = module.definitions_markdown()
        assert text in document, f"print {module.__name__}.definitions_markdown() and put its text there"


def test_labels_are_told_apart() -> None:
    assert len({metric.label for metric in metrics.METRICS.values()}) == len(metrics.METRICS)
