"""How entry points end: their messages and exit statuses."""

from __future__ import annotations

import errno

import pytest

from tsc.errors import ConfigError, run_main


def raising(error: BaseException) -> None:
    raise error


@pytest.mark.parametrize(
    ("error", "status", "message"),
    [
        (ConfigError("horizon_s is -1: choose 5 to 600"), 2, "error: horizon_s is -1: choose 5 to 600"),
        (PermissionError(errno.EACCES, "Permission denied", "runs/mine"), 2, "may not read or write runs/mine"),
        (KeyboardInterrupt(), 130, "interrupted"),
    ],
)
def test_what_a_user_can_act_on_is_one_line_without_a_traceback(
    error: BaseException, status: int, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        run_main(lambda: raising(error))
    assert ended.value.code == status
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line


@pytest.mark.parametrize("error", [ValueError("a defect"), PermissionError("without a file")])
def test_a_defect_keeps_its_traceback(error: Exception) -> None:
    with pytest.raises(type(error)):
        run_main(lambda: raising(error))
