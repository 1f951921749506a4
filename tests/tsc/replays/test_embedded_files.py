"""Files that travel inside replay requests, and the memory files they become."""

from __future__ import annotations

import base64
import fcntl
import hashlib
import lzma
import os
from dataclasses import replace
from pathlib import Path

import pytest

from tsc.cost.outcome import OutcomeSettings
from tsc.errors import SampleError
from tsc.replays.embedded_files import FileEmbedder, UnpackedFiles
from tsc.replays.request import ReplayRequest
from tsc.sumo.sumo_input import SumoInput


@pytest.fixture
def request_on_disk(tmp_path: Path) -> ReplayRequest:
    contents = {"states/t1.xml.gz": b"state", "net.xml": b"<net/>", "a.rou.xml": b"<a/>", "det.add.xml": b"<d/>"}
    for name, content in contents.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(content)
    return ReplayRequest(
        sample_id="s1",
        dataset_dir=str(tmp_path),
        junction_id="A0",
        state_file="states/t1.xml.gz",
        state_sha256=hashlib.sha256(b"state").hexdigest(),
        current_green_elapsed_s=15.0,
        min_green_s=10,
        max_green_s=60,
        green_extension_s=5,
        sumo=SumoInput(
            version="1.28.0", net_file="net.xml", route_files=("a.rou.xml",), additional_files=("det.add.xml",), seed=3
        ),
    )


def num_open() -> int:
    return len(os.listdir("/proc/self/fd"))


def test_unpacked_files_are_read_from_memory_when_the_folder_is_gone(
    request_on_disk: ReplayRequest, tmp_path: Path
) -> None:
    embedded = ReplayRequest.from_json(FileEmbedder().embed(request_on_disk).to_json())
    for name in embedded.embedded:
        (tmp_path / name).unlink()
    unpacked = UnpackedFiles().unpack(embedded)
    sumo = unpacked.sumo
    paths = [str(unpacked.state_path), sumo.net_file, *sumo.route_files, *sumo.additional_files]
    assert [Path(path).read_bytes() for path in paths] == [b"state", b"<net/>", b"<a/>", b"<d/>"]
    assert all(Path(path).is_file() and Path(path).stat().st_size for path in paths)
    assert sumo.seed == 3
    # a fork of the simulation takes files that are open for writing for SUMO's outputs
    assert fcntl.fcntl(int(Path(paths[0]).name), fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY


def test_what_travels_along_is_not_part_of_the_digest(request_on_disk: ReplayRequest) -> None:
    settings = OutcomeSettings()
    digest = hashlib.sha256(b"<net/>").hexdigest()
    request = replace(request_on_disk, sumo=request_on_disk.sumo.model_copy(update={"net_sha256": digest}))
    assert FileEmbedder().embed(request).digest(settings, "1.28.0") == request.digest(settings, "1.28.0")


def test_a_request_without_embedded_files_stays_as_it_is(request_on_disk: ReplayRequest) -> None:
    assert UnpackedFiles().unpack(request_on_disk) is request_on_disk
    assert "embedded" not in request_on_disk.to_json()


def test_errors_name_the_dataset_s_file_and_not_the_memory_file(request_on_disk: ReplayRequest) -> None:
    files = UnpackedFiles()
    unpacked = files.unpack(FileEmbedder().embed(request_on_disk))
    message = f"SUMO cannot load state {unpacked.state_path}: no element in {unpacked.sumo.net_file}1"
    told = files.original_names(message)
    assert f"state {request_on_disk.state_path} (embedded): " in told
    assert told.endswith(f"{unpacked.sumo.net_file}1")  # another file's name


def test_the_same_file_is_kept_once_and_the_least_recently_used_are_closed(request_on_disk: ReplayRequest) -> None:
    before = num_open()
    files = UnpackedFiles(max_bytes=4000)
    for number in range(50):
        state = base64.b64encode(bytes([number]) * 1000).decode()
        request = replace(
            FileEmbedder().embed(request_on_disk), embedded={request_on_disk.state_file: state, "net.xml": "AAAA"}
        )
        unpacked = files.unpack(request)
        assert unpacked.state_path.read_bytes() == bytes([number]) * 1000
        again = files.unpack(request)
        assert (again.state_path, again.sumo) == (unpacked.state_path, unpacked.sumo)
        assert num_open() - before <= 5


def test_files_of_one_path_differ_in_their_time_of_change(request_on_disk: ReplayRequest) -> None:
    # caches go by path, size and time, and the number of a closed descriptor comes again at once
    files = UnpackedFiles(max_bytes=1)
    seen: dict[tuple[Path, int], bytes] = {}
    for number in range(20):
        content = b"%04d" % number
        request = replace(request_on_disk, embedded={request_on_disk.state_file: base64.b64encode(content).decode()})
        path = files.unpack(request).state_path
        assert seen.setdefault((path, path.stat().st_mtime_ns), content) == content
    assert len({path for path, _ in seen}) < len(seen)


@pytest.mark.parametrize("text", ["no base64!", base64.b64encode(lzma.compress(b"x" * 100)[:-9]).decode()])
def test_a_damaged_embedded_file_is_named(request_on_disk: ReplayRequest, text: str) -> None:
    request = replace(request_on_disk, embedded={"net.xml": text})
    with pytest.raises(SampleError, match=r"embedded file 'net\.xml' of sample s1 is damaged"):
        UnpackedFiles().unpack(request)


def test_a_file_that_cannot_be_read_is_named(request_on_disk: ReplayRequest, tmp_path: Path) -> None:
    (tmp_path / "a.rou.xml").unlink()
    with pytest.raises(SampleError, match=r"cannot embed .*a\.rou\.xml of sample s1: No such file"):
        FileEmbedder().embed(request_on_disk)


@pytest.mark.parametrize("field", ["state_file", "net_file", "route_files", "additional_files"])
@pytest.mark.parametrize("is_link", [True, False])
def test_a_dataset_cannot_make_a_private_file_travel(
    request_on_disk: ReplayRequest, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, field: str, is_link: bool
) -> None:
    secret = tmp_path_factory.mktemp("home") / "secret"
    secret.write_bytes(b"private")
    name = str(secret)
    if is_link:
        (tmp_path / "link").symlink_to(secret)
        name = "link"
    if field == "state_file":
        request = replace(request_on_disk, state_file=name, state_sha256=None)
    else:
        files = name if field == "net_file" else (name,)
        request = replace(request_on_disk, sumo=request_on_disk.sumo.model_copy(update={field: files}))
    with pytest.raises(SampleError, match="outside of the dataset, and the sample does not know its content"):
        FileEmbedder().embed(request)
    # who names the content knows it
    digest = hashlib.sha256(b"private").hexdigest()
    if field == "state_file":
        request = replace(request, state_sha256=digest)
    else:
        known = digest if field == "net_file" else (digest,)
        digests = {field.replace("files", "sha256").replace("file", "sha256"): known}
        request = replace(request, sumo=request.sumo.model_copy(update=digests))
    assert name in FileEmbedder().embed(request).embedded


def test_a_device_is_not_read(request_on_disk: ReplayRequest) -> None:
    request = replace(request_on_disk, sumo=request_on_disk.sumo.model_copy(update={"net_file": "/dev/zero"}))
    with pytest.raises(SampleError, match="cannot embed /dev/zero of sample s1: No such file"):
        FileEmbedder().embed(request)


def test_an_embedded_file_unpacks_to_a_bounded_size(request_on_disk: ReplayRequest) -> None:
    bomb = base64.b64encode(lzma.compress(bytes(200 << 20))).decode()
    with pytest.raises(SampleError, match="more than 16 MiB"):
        UnpackedFiles().unpack(replace(request_on_disk, embedded={"net.xml": bomb}))
