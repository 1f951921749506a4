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
from tsc.files import memory_file
from tsc.replays.request import ReplayRequest
from tsc.replays.saved_state import MAX_STATE_BYTES
from tsc.replays.state_archive import is_saved, state_bytes

# Net, routes and additional files are repeated in every row, so only small ones travel. The large ones of a city are
# copied once, by hand.
MAX_SCENARIO_BYTES = 64 * 1024
# Of each of these files before it is compressed. RESCO's nets get 8 to 27 times smaller.
MAX_UNPACKED_BYTES = 16 << 20
_XZ_MAGIC = b"\xfd7zXZ\x00"


class FileEmbedder:
    """Puts the files of a request into the request.

    The state always travels. Net, routes and additional files travel if together they have no more than
    MAX_SCENARIO_BYTES when compressed.
    """

    def __init__(self) -> None:
        self._scenario_files: dict[tuple[Path, str | None], str] = {}
        self.num_states = 0
        self.state_chars = 0
        self.scenario_chars = 0
        self.left_out: set[Path] = set()

    def embed(self, request: ReplayRequest) -> ReplayRequest:
        """Raises SampleError if a file cannot be read, is not the one that the request names by its digest, or lies
        outside of the dataset and has no digest: no dataset of others may make a private file travel."""
        state = self._read(request.state_file, request.state_sha256, request)
        if not request.state_path.is_file():
            state = lzma.compress(state, preset=1)  # from an archive, so it is plain XML
        files = {request.state_file: base64.b64encode(state).decode()}
        self.num_states += 1
        self.state_chars += len(files[request.state_file])
        digests = request.sumo.digests
        paths = [Path(request.dataset_dir, name) for name in digests]
        if not any(path.is_file() and path.stat().st_size > MAX_UNPACKED_BYTES for path in paths):
            texts = {name: self._scenario_file(name, digest, request) for name, digest in digests.items()}
            num_chars = sum(map(len, texts.values()))
            if num_chars * 3 // 4 <= MAX_SCENARIO_BYTES:
                self.scenario_chars += num_chars
                return replace(request, embedded=files | texts)
        self.left_out.update(paths)
        return replace(request, embedded=files)

    def _scenario_file(self, name: str, digest: str | None, request: ReplayRequest) -> str:
        key = (Path(request.dataset_dir, name), digest)
        if key not in self._scenario_files:
            data = self._read(name, digest, request)
            self._scenario_files[key] = base64.b64encode(lzma.compress(data)).decode()
        return self._scenario_files[key]

    @staticmethod
    def _read(name: str, digest: str | None, request: ReplayRequest) -> bytes:
        path = Path(request.dataset_dir, name)
        what = f"cannot embed {path} of sample {request.sample_id}"
        if not is_saved(path):
            raise SampleError(f"{what}: No such file")
        if digest is None and not path.resolve().is_relative_to(Path(request.dataset_dir).resolve()):
            raise SampleError(f"{what}: it lies outside of the dataset, and the sample does not know its content")
        data = state_bytes(path)
        if len(data) > MAX_STATE_BYTES:
            raise SampleError(f"{what}: it has more than {MAX_STATE_BYTES >> 20} MiB")
        if digest not in (None, hashlib.sha256(data).hexdigest()):
            raise SampleError(f"{what}: it is not the file whose digest the sample gives: generate the dataset again")
        return data


class UnpackedFiles:
    """Embedded files as memory files. They have a path, need no folder, and vanish with the process however it ends.

    Once all of them together exceed max_bytes, the least recently used ones are closed.
    """

    def __init__(self, max_bytes: int = 64 << 20) -> None:
        self._max_bytes = max_bytes
        self._num_bytes = 0
        self._open: OrderedDict[str, tuple[int, Path, int]] = OrderedDict()  # by text: descriptor, path, bytes
        self._original_names: dict[str, str] = {}

    def unpack(self, request: ReplayRequest) -> ReplayRequest:
        """The same request with its embedded files at paths. They stay until the next call. Raises SampleError."""
        self._original_names.clear()
        if not request.embedded:
            return request
        names = dict.fromkeys([request.state_file, *request.sumo.digests])
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
                    unpacker = lzma.LZMADecompressor()
                    max_bytes = MAX_STATE_BYTES if name == request.state_file else MAX_UNPACKED_BYTES
                    data = unpacker.decompress(data, max_bytes)
                    if not unpacker.eof:
                        raise lzma.LZMAError(f"it ends too early, or has more than {max_bytes >> 20} MiB")
            except (binascii.Error, lzma.LZMAError) as error:
                raise SampleError(
                    f"embedded file {name!r} of sample {request.sample_id} is damaged ({error}): convert the dataset "
                    "again with json_to_parquet"
                ) from error
            self._open[text] = (*memory_file(Path(name).name, data), len(data))
            self._num_bytes += len(data)
        path = str(self._open[text][1])
        self._original_names[path] = f"{Path(request.dataset_dir, name)} (embedded)"
        return path

    def original_names(self, message: str) -> str:
        """The message, in which the files of the last request have their names in the dataset."""
        for path, name in self._original_names.items():
            message = re.sub(rf"{path}\b", name.replace("\\", r"\\"), message)
        return message

    def _close_surplus(self, num_needed: int) -> None:
        while self._num_bytes > self._max_bytes and len(self._open) > num_needed:
            _, (descriptor, _, num_bytes) = self._open.popitem(last=False)
            os.close(descriptor)
            self._num_bytes -= num_bytes
