"""One writer a folder, with real processes."""

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Timer

import pytest

from tsc.errors import ConfigError
from tsc.files import LOCK_FILE, folder_lock

HOLDER = """
import sys, time
from pathlib import Path
from tsc.files import folder_lock

with folder_lock(Path(sys.argv[1]), "numbers"):
    {then}
    print("locked", flush=True)
    time.sleep(600)
"""


@contextmanager
def holder(folder: Path, then: str = "pass") -> Iterator[subprocess.Popen[str]]:
    program = [sys.executable, "-c", HOLDER.format(then=then), str(folder)]
    with subprocess.Popen(program, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stdout.readline() == "locked\n"
        try:
            yield process
        finally:
            process.kill()


def test_a_second_writer_learns_who_holds_the_folder_and_since_when(tmp_path: Path) -> None:
    with holder(tmp_path / "new") as process:
        with pytest.raises(ConfigError) as refused, folder_lock(tmp_path / "new", "letters"):
            pass
        message = str(refused.value)
        assert f"cannot write letters to {tmp_path / 'new'}: process {process.pid} on " in message
        assert re.search(r"\(since 20\d\d-\d\d-\d\d \d\d:\d\d:\d\d UTC: python -c .*new\)", message)
        assert message.endswith("wait until it has ended, or choose another folder")
        # the refusal takes nothing from the holder
        assert str(process.pid) in (tmp_path / "new" / LOCK_FILE).read_text()
        with pytest.raises(ConfigError), folder_lock(tmp_path / "new", "letters"):
            pass


def test_a_writer_may_wait_for_another_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with holder(tmp_path) as process:
        Timer(1.5, process.kill).start()
        with folder_lock(tmp_path, "data", wait=True):
            assert process.wait(timeout=5) == -signal.SIGKILL
            assert str(os.getpid()) in (tmp_path / LOCK_FILE).read_text()
    said = capsys.readouterr().out
    assert said.startswith(f"waiting until process {process.pid} on ") and said.endswith(f"data to {tmp_path}\n")


def test_a_lock_does_not_tell_a_password(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    address = "http://me:secret@host/v1"
    monkeypatch.setattr(sys, "argv", ["evaluate.py", "--base-url", address, f"--base-url={address}"])
    with folder_lock(tmp_path, "letters"):
        told = (tmp_path / LOCK_FILE).read_text()
    assert "python evaluate.py --base-url http://host/v1 --base-url=http://host/v1" in told
    assert "secret" not in told


def test_the_folder_is_free_once_the_writer_has_ended(tmp_path: Path) -> None:
    for _ in range(2):
        with folder_lock(tmp_path, "letters"):
            assert (tmp_path / LOCK_FILE).exists()
        assert not list(tmp_path.iterdir())


def test_the_folder_is_free_after_a_kill_though_a_program_of_the_writer_lives_on(tmp_path: Path) -> None:
    start = "import subprocess; child = subprocess.Popen(['sleep', '600'], stdout=2)"
    then = f"{start}; open(sys.argv[1] + '/pid', 'w').write(str(child.pid))"
    with holder(tmp_path, then) as process:
        process.send_signal(signal.SIGKILL)
        process.wait()
    child_id = int((tmp_path / "pid").read_text())
    try:
        os.kill(child_id, 0)  # it is there
        with folder_lock(tmp_path, "letters"):
            assert str(os.getpid()) in (tmp_path / LOCK_FILE).read_text()
    finally:
        os.kill(child_id, signal.SIGKILL)


def test_two_writers_of_different_things_share_a_folder(tmp_path: Path) -> None:
    with holder(tmp_path), folder_lock(tmp_path, "letters", lock_file=".letters.lock"):
        pass


COUNTER = """
import os, sys, time
from pathlib import Path
from tsc.errors import ConfigError
from tsc.files import folder_lock

folder, count = Path(sys.argv[1]), 0
while count < 300:
    try:
        with folder_lock(folder, "numbers"):
            os.close(os.open(folder / "inside", os.O_CREAT | os.O_EXCL))  # fails if another writer is inside
            os.unlink(folder / "inside")
            count += 1
    except ConfigError:
        time.sleep(0)
"""


def test_no_two_of_many_writers_are_in_the_folder_at_once(tmp_path: Path) -> None:
    writers = [subprocess.Popen([sys.executable, "-c", COUNTER, str(tmp_path)]) for _ in range(4)]
    assert [writer.wait(timeout=120) for writer in writers] == [0] * 4
