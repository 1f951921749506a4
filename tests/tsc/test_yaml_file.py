"""Every fault in a configuration file is named with file, key, value and the remedy."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import pytest
from pydantic import BaseModel, ConfigDict, Field, model_validator

from tsc.cost.outcome import OutcomeSettings
from tsc.errors import ConfigError
from tsc.yaml_file import load_yaml


class Pool(BaseModel):
    model_config = ConfigDict(extra="forbid")
    workers: int | None = Field(default=None, ge=1)
    timeout_s: float = Field(default=60.0, gt=0)


class Approach(BaseModel):
    model_config = ConfigDict(extra="forbid")
    num_lanes: int = 3


class Settings(BaseModel):
    model_config = ConfigDict(extra="forbid")
    kind: Literal["relative", "sign"] = "relative"
    horizon_s: int = 45
    pool: Pool = Pool()
    approaches: list[Approach] = []

    @model_validator(mode="after")
    def _check_horizon(self) -> Settings:
        OutcomeSettings(horizon_s=self.horizon_s)
        return self


def fault(tmp_path: Path, text: str) -> str:
    path = tmp_path / "settings.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        load_yaml(path, Settings)
    assert str(path) in str(caught.value)
    return str(caught.value)


def test_values_are_read(tmp_path: Path) -> None:
    path = tmp_path / "settings.yaml"
    path.write_text("kind: sign\npool: {workers: 2}\napproaches: [{num_lanes: 2}]\n")
    settings = load_yaml(path, Settings)
    assert settings == Settings(kind="sign", pool=Pool(workers=2), approaches=[Approach(num_lanes=2)])


def test_an_empty_file_means_all_defaults(tmp_path: Path) -> None:
    path = tmp_path / "settings.yaml"
    path.write_text("# nothing\n")
    assert load_yaml(path, Settings) == Settings()


def test_an_unknown_key_is_named_with_its_nearest_spelling(tmp_path: Path) -> None:
    message = fault(tmp_path, "knid: sign\n")
    assert "unknown key 'knid': did you mean 'kind'?" in message
    assert "allowed: kind, horizon_s, pool, approaches" in message


def test_an_unknown_key_of_a_section_is_compared_with_that_section(tmp_path: Path) -> None:
    message = fault(tmp_path, "pool: {timeout: 3}\n")
    assert "unknown key 'pool.timeout': did you mean 'timeout_s'?" in message
    assert "allowed: workers, timeout_s" in message


def test_an_unknown_key_in_a_list_of_sections_is_compared_with_that_section(tmp_path: Path) -> None:
    assert "did you mean 'num_lanes'?" in fault(tmp_path, "approaches: [{num_lane: 3}]\n")


def test_a_wrong_value_is_shown_with_the_allowed_ones(tmp_path: Path) -> None:
    message = fault(tmp_path, "kind: absolute\n")
    assert "kind is 'absolute'" in message
    assert "'relative' or 'sign'" in message


def test_a_bound_is_named(tmp_path: Path) -> None:
    assert "pool.workers is 0: input should be greater than or equal to 1" in fault(tmp_path, "pool: {workers: 0}\n")


def test_several_faults_are_all_told(tmp_path: Path) -> None:
    message = fault(tmp_path, "kind: absolute\npool: {workers: -1}\n")
    assert "kind is 'absolute'" in message
    assert "pool.workers is -1" in message


def test_an_error_of_our_own_objects_names_the_file(tmp_path: Path) -> None:
    assert "horizon_s is 0" in fault(tmp_path, "horizon_s: 0\n")


def test_a_key_given_twice_is_an_error(tmp_path: Path) -> None:
    assert "line 2: key 'kind' is already given in line 1" in fault(tmp_path, "kind: sign\nkind: relative\n")


def test_broken_yaml_is_told_with_line_and_column(tmp_path: Path) -> None:
    assert "settings.yaml:2:8: broken YAML" in fault(tmp_path, "kind: sign\npool: {]\n")


def test_a_file_that_is_no_mapping_says_which_keys_are_expected(tmp_path: Path) -> None:
    assert "holds a list, expected keys: kind, horizon_s" in fault(tmp_path, "- 1\n")


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"absent\.yaml: No such file"):
        load_yaml(tmp_path / "absent.yaml", Settings)


def test_a_binary_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "settings.yaml"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="not UTF-8"):
        load_yaml(path, Settings)
