"""SUMO files that travel inside a replay request, for machines that do not have the dataset's folder."""

from __future__ import annotations

import base64
import binascii
import hashlib
import lzma
import os
import re
from collections import OrderedDict
from dataclasses import replace
from pathlib import Path

from tsc.errors import SampleError
from tsc.replays.request import ReplayRequest

# Net, routes and additional files are repeated in every row, so only small ones travel. The large ones of a city are
# copied once, by hand.
MAX_SCENARIO_BYTES = 64 * 1024
_XZ_MAGIC = b"\xfd7zXZ\x00"


def _scenario_names(request: ReplayRequest) -> list[str]:
    sumo = request.sumo
    return [sumo.net_file, *sumo.route_files, *sumo.additional_files]


class FileEmbedder:
    """Puts the files of a request into the request.

    The state always travels. Net, routes and additional files travel if together they have no more than
    MAX_SCENARIO_BYTES when compressed.
    """

    def __init__(self) -> None:
        self._scenario_files: dict[Path, str] = {}
        self.num_states = 0
        self.state_chars = 0
        self.scenario_chars = 0
        self.left_out: set[Path] = set()

    def embed(self, request: ReplayRequest) -> ReplayRequest:
        """Raises SampleError if a file cannot be read, or if the state is not the one that the request names."""
        state = self._read(request.state_path, request)
        if request.state_sha256 not in (None, hashlib.sha256(state).hexdigest()):
            raise SampleError(
                f"state {request.state_path} of sample {request.sample_id} is not the file whose digest the sample "
                "gives: generate the dataset again"
            )
        files = {request.state_file: base64.b64encode(state).decode()}
        self.num_states += 1
        self.state_chars += len(files[request.state_file])
        names = _scenario_names(request)
        paths = [Path(request.dataset_dir, name) for name in names]
        texts = [self._scenario_file(path, request) for path in paths]
        if sum(map(len, texts)) * 3 // 4 <= MAX_SCENARIO_BYTES:
            files |= dict(zip(names, texts, strict=True))
            self.scenario_chars += sum(map(len, texts))
        else:
            self.left_out.update(paths)
        return replace(request, embedded=files)

    def _scenario_file(self, path: Path, request: ReplayRequest) -> str:
        if path not in self._scenario_files:
            self._scenario_files[path] = base64.b64encode(lzma.compress(self._read(path, request))).decode()
        return self._scenario_files[path]

    @staticmethod
    def _read(path: Path, request: ReplayRequest) -> bytes:
        try:
            return path.read_bytes()
        except OSError as error:
            raise SampleError(f"cannot embed {path} of sample {request.sample_id}: {error.strerror}") from error


class UnpackedFiles:
    """Embedded files as memory files. They have a path, need no folder, and vanish with the process however it ends.

    Once all of them together exceed max_bytes, the least recently used ones are closed.
    """

    def __init__(self, max_bytes: int = 64 << 20) -> None:
        self._max_bytes = max_bytes
        self._num_bytes = 0
        self._open: OrderedDict[str, tuple[int, int]] = OrderedDict()  # by text: descriptor, bytes
        self._original_names: dict[str, str] = {}

    def unpack(self, request: ReplayRequest) -> ReplayRequest:
        """The same request with its embedded files at paths. They stay until the next call. Raises SampleError."""
        self._original_names.clear()
        if not request.embedded:
            return request
        names = dict.fromkeys([request.state_file, *_scenario_names(request)])
        paths = {name: str(Path(request.dataset_dir, name)) for name in names}
        for name in names & request.embedded.keys():
            paths[name] = self._path_of(name, request)
        self._close_surplus(num_needed=len(request.embedded))
        sumo = request.sumo.model_copy(
            update={
                "net_file": paths[request.sumo.net_file],
                "route_files": tuple(paths[name] for name in request.sumo.route_files),
                "additional_files": tuple(paths[name] for name in request.sumo.additional_files),
            }
        )
        return replace(request, embedded={}, state_file=paths[request.state_file], sumo=sumo)

    def _path_of(self, name: str, request: ReplayRequest) -> str:
        text = request.embedded[name]
        if text in self._open:
            self._open.move_to_end(text)
        else:
            try:
                data = base64.b64decode(text, validate=True)
                if data.startswith(_XZ_MAGIC):
                    data = lzma.decompress(data)
            except (binascii.Error, lzma.LZMAError) as error:
                raise SampleError(
                    f"embedded file {name!r} of sample {request.sample_id} is damaged ({error}): convert the dataset "
                    "again with json_to_parquet"
                ) from error
            self._open[text] = (_memory_file(name, data), len(data))
            self._num_bytes += len(data)
        path = f"/proc/{os.getpid()}/fd/{self._open[text][0]}"
        self._original_names[path] = f"{Path(request.dataset_dir, name)} (embedded)"
        return path

    def original_names(self, message: str) -> str:
        """The message, in which the files of the last request have their names in the dataset."""
        for path, name in self._original_names.items():
            message = re.sub(rf"{path}\b", name.replace("\\", r"\\"), message)
        return message

    def _close_surplus(self, num_needed: int) -> None:
        while self._num_bytes > self._max_bytes and len(self._open) > num_needed:
            _, (descriptor, num_bytes) = self._open.popitem(last=False)
            os.close(descriptor)
            self._num_bytes -= num_bytes


def _memory_file(name: str, data: bytes) -> int:
    writable = os.memfd_create(Path(name).name)
    try:
        with open(writable, "wb", closefd=False) as file:
            file.write(data)
        # A descriptor's number is used again. A time of change that is made from the content keeps caches right that go
        # by path and time.
        time_ns = int.from_bytes(hashlib.sha256(data).digest()[:7], "big")
        os.utime(writable, ns=(time_ns, time_ns))
        # read-only, so that a fork of the simulation does not mistake it for one of SUMO's outputs
        return os.open(f"/proc/self/fd/{writable}", os.O_RDONLY | os.O_CLOEXEC)
    finally:
        os.close(writable)
