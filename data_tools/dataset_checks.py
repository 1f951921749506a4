"""Reads the samples of datasets and finds every fault: in the JSON, in a sample, in the files that it names.

A fault is one line that says where, which field, which value and what is allowed. Checking does not stop at the first.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import re
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from data_tools.json_objects import Fault, read_objects
from data_tools.net_signals import signals_of
from data_tools.state_causes import lanes_in, lanes_of, lost_in
from tsc.errors import SampleError, StateError
from tsc.files import sha256_of
from tsc.junction.signal_control import Signals
from tsc.replays.sample import SCHEMA_VERSION, Sample
from tsc.replays.saved_state import running_phases, state_text
from tsc.replays.state_archive import is_saved, state_bytes
from tsc.scenarios.sumocfg import SumoConfig, sumo_input
from tsc.sumo.sumo_input import SumoInput

_MAX_VALUE_CHARS = 80
_KEPT_STATES = 4096
_MAX_INDEX = 1 << 40
# SUMO writes its configuration as a comment ahead of the snapshot element
_STATE_HEAD_BYTES = 1 << 18


@dataclass(frozen=True, kw_only=True)
class CheckedSample:
    """A sample without fault.

    sample: its id, scenario, time and SUMO input are filled in if another generator left them out. index: from 0, in
    its file. state: the digest of the saved state, or its path if the state was not read.
    """

    file: Path
    index: int
    sample: Sample
    state: str


def _shown(value: object) -> str:
    text = json.dumps(value, ensure_ascii=False, default=repr)
    return text if len(text) <= _MAX_VALUE_CHARS else text[: _MAX_VALUE_CHARS - 1] + "…"


def fault_messages(error: ValidationError) -> Iterator[str]:
    """For each wrong field its name, its value and what is allowed."""
    for detail in error.errors():
        field = ".".join(str(part) for part in detail["loc"])
        message = detail["msg"].removeprefix("Value error, ")
        if field == "schema_version":
            message = f"this version of tsc-grpo reads schema version {SCHEMA_VERSION}"
        if detail["type"] == "missing":
            yield f"{field} is missing"
        elif detail["type"] == "value_error":
            yield f"{field}: {message}" if field else message
        elif not field:
            yield f"the sample is {_shown(detail['input'])}: must be a JSON object"
        else:
            message = message[:1].lower() + message[1:] if message.startswith("Input") else message
            yield f"{field} is {_shown(detail['input'])}: {message}"


def read_samples(files: Sequence[Path]) -> Iterator[tuple[Path, int, Sample]]:
    """Every sample of the files, with its file and its index there. Only the JSON and the contract are checked.

    Raises SampleError at the first fault, and if there is no sample at all.
    """
    found = False
    for file in files:
        for item in read_objects(file):
            if isinstance(item, Fault):
                raise SampleError(str(item))
            index, raw = item
            try:
                sample = Sample.model_validate(raw)
            except ValidationError as error:
                detail = error.errors()[0]
                field = ".".join(map(str, detail["loc"]))
                raise SampleError(
                    f"{file}: sample {index}: {field}: {detail['msg']}: data_tools/json_to_parquet.py lists all faults"
                ) from error
            found = True
            yield file, index, sample
    if not found:
        raise SampleError(f"{', '.join(map(str, files))} does not contain any sample")


def _read_head(path: Path, num_bytes: int) -> bytes:
    if not path.is_file():
        return state_bytes(path)[:num_bytes]
    with path.open("rb") as raw:
        zipped = raw.read(2) == b"\x1f\x8b"
        raw.seek(0)
        return gzip.GzipFile(fileobj=raw).read(num_bytes) if zipped else raw.read(num_bytes)


def _digest(path: Path) -> str | None:
    """None if the file does not exist or cannot be read. A device counts as missing, because it may have no end.

    Raises StateError for a damaged archive."""
    try:
        if path.is_file():
            return sha256_of(path)
        return hashlib.sha256(state_bytes(path)).hexdigest() if is_saved(path) else None
    except OSError:
        return None


def _hash_of(text: str) -> bytes:
    return hashlib.blake2b(text.encode(), digest_size=16).digest()


def _is_there(path: Path) -> bool:
    try:
        return is_saved(path)
    except StateError:  # another check tells
        return False


def _state_head(path: Path) -> tuple[str, float | None] | None:
    """SUMO version and time of a saved state. None if the file is missing or not a state."""
    try:
        head = _read_head(path, _STATE_HEAD_BYTES).decode(errors="replace")
    except (OSError, EOFError, zlib.error, StateError):
        return None
    snapshot = re.search(r"<snapshot\b[^>]*>", head)
    version = re.search(r'\bversion="([^"]+)"', snapshot[0]) if snapshot else None
    time = re.search(r'\btime="(\d+(?:\.\d+)?)"', snapshot[0]) if snapshot else None
    return (version[1], float(time[1]) if time else None) if version else None


def _version_numbers(version: str) -> tuple[str, ...]:
    return tuple(re.findall(r"\d+", version)[:2])


class DatasetChecker:
    """Checks the samples of one input, which may be several dataset files.

    faults: in the order in which they were found. num_faulty: samples and broken places of JSON, each counted once.
    """

    def __init__(self, *, installed_sumo: str, check_states: bool = True, sumocfg: SumoConfig | None = None) -> None:
        self.installed_sumo = installed_sumo
        self.check_states = check_states
        self.sumocfg = sumocfg
        self.faults: list[Fault] = []
        self.num_faulty = 0
        self.num_read = 0
        self.num_with_sumocfg = 0
        self.num_lost: Counter[str] = Counter()  # states without a label, by what they were saved without
        self._known_lost: set[bytes] = set()  # of states that were counted
        self._files: list[Path] = []
        # where each id was first: file number and index in one number, by a hash, because there are many
        self._place_of_id: dict[bytes, int] = {}
        self._shared_faults: dict[tuple[Path, str], Fault] = {}
        # The samples of an input share most of their scenario's files, so each is read once. Samples that share a state
        # lie together.
        self._digest = cache(_digest)
        self._state_digest = lru_cache(_KEPT_STATES)(_digest)
        self._state_head = lru_cache(_KEPT_STATES)(_state_head)
        self._foreign_state = lru_cache(_KEPT_STATES)(self._read_foreign_state)
        self._signals = cache(signals_of)
        self._faults_of_sumo = cache(lambda sumo, folder: list(self._find_faults_of_sumo(sumo, folder)))

    def forget_ids(self) -> None:
        """Frees memory. No more samples are read."""
        self._place_of_id.clear()

    def check_file(self, path: Path, name: str) -> Iterator[CheckedSample]:
        """The samples of the dataset file `path` that have no fault. name: begins the ids that are made here."""
        folder = path.resolve().parent
        self._files.append(path)
        for item in read_objects(path):
            self.num_read += 1
            if isinstance(item, Fault):
                self.faults.append(item)
                self.num_faulty += 1
                continue
            index, raw = item
            checked = self._check(path, folder, name, index, raw)
            if checked is None:
                self.num_faulty += 1
            else:
                yield checked

    def _check(self, path: Path, folder: Path, name: str, index: int, raw: object) -> CheckedSample | None:
        raw_id = raw.get("id") if isinstance(raw, dict) else None
        sample_id = raw_id if isinstance(raw_id, str) else None
        try:
            sample = Sample.model_validate(raw)
        except ValidationError as error:
            self.faults.extend(Fault(path, message, index, sample_id) for message in fault_messages(error))
            return None

        own: list[str] = []
        filled = self._filled_in(sample, folder, name, index, own)
        own.extend(self._faults_of_timing(filled))
        state = self._check_state(filled, folder, own)
        shared = [] if filled.sumo is None else self._faults_of_sumo(filled.sumo, folder)
        if filled.sumo is not None and not shared:
            own.extend(self._faults_of_junctions(filled, folder))
        if filled.outcomes is None and self.check_states and not own:
            own.extend(self._faults_of_elapsed_green(filled, folder))
        assert filled.id is not None
        place = len(self._files) * _MAX_INDEX + index
        first = self._place_of_id.setdefault(_hash_of(filled.id), place)
        if first != place:
            file_number, first_index = divmod(first, _MAX_INDEX)
            own.append(
                f"id is also that of sample {first_index} of {self._files[file_number - 1]}: must be unique over the "
                "whole input"
            )

        self.faults.extend(Fault(path, message, index, sample_id) for message in own)
        for message in shared:
            fault = self._shared_faults.get((path, message))
            if fault is None:
                fault = self._shared_faults[path, message] = Fault(path, message, index, sample_id)
                self.faults.append(fault)
            else:
                fault.count += 1
        if own or shared:
            return None
        filled = self._with_digests(filled, folder, state)
        return CheckedSample(file=path, index=index, sample=filled, state=state)

    def _filled_in(self, sample: Sample, folder: Path, name: str, index: int, own: list[str]) -> Sample:
        """Fills in what other generators leave out: id, scenario (the folder's name), and from the state time and SUMO
        version."""
        values: dict[str, Any] = {}
        if sample.id is None:
            values["id"] = f"{name}#{index}"
        if "scenario" not in sample.model_fields_set:
            values["scenario"] = folder.name
        if sample.sumo is None or sample.time_s is None:
            head = self._state_head(folder / sample.state_file)
            if head is not None and sample.time_s is None:
                values["time_s"] = head[1]
            if sample.sumo is None and self.sumocfg is None:
                own.append("sumo is missing: name the scenario that the state belongs to with --sumocfg FILE")
            elif sample.sumo is None and self.sumocfg is not None and head is not None:
                values["sumo"] = sumo_input(self.sumocfg, folder).model_copy(update={"version": head[0]})
                self.num_with_sumocfg += 1
            elif sample.sumo is None and _is_there(folder / sample.state_file):
                own.append(
                    f"state_file is {sample.state_file!r}: it is not a SUMO state, which has a version in its snapshot"
                )
        return sample.model_copy(update=values) if values else sample

    @staticmethod
    def _faults_of_timing(sample: Sample) -> Iterator[str]:
        for field in ("min_green", "max_green", "green_extension"):
            value = getattr(sample, field)
            if value != int(value):
                yield f"{field} is {value:g}: must be a whole number of seconds"
        clock = sample.clocks.get(sample.junction_id)
        if sample.clocks and clock is None:
            yield (
                f"clocks has no entry for the sample's own junction {sample.junction_id!r}: "
                f"has {_shown(sorted(sample.clocks))}"
            )
        if clock is not None and (clock.mode != "green" or clock.elapsed_green_s != sample.current_green_elapsed):
            yield (
                f"clocks.{sample.junction_id} says {clock.mode} for {clock.elapsed_green_s:g} s: must be green for "
                f"current_green_elapsed {sample.current_green_elapsed:g} s"
            )

    def _check_state(self, sample: Sample, folder: Path, own: list[str]) -> str:
        path = folder / sample.state_file
        if not self.check_states:
            return sample.state_sha256 or str(path)
        try:
            digest = self._state_digest(path)
        except StateError as error:
            own.append(f"state_file is {sample.state_file!r}: {error}")
            return str(path)
        if digest is None:
            own.append(f"state_file is {sample.state_file!r}: no such file in {folder}")
        elif sample.state_sha256 not in (None, digest):
            own.append(
                f"state_sha256 is {sample.state_sha256}, but {sample.state_file} has {digest}: "
                "the state was changed or belongs to another dataset; generate the dataset again"
            )
        return digest or str(path)

    def _find_faults_of_sumo(self, sumo: SumoInput, folder: Path) -> Iterator[str]:
        wanted = _version_numbers(sumo.version)
        if wanted != _version_numbers(self.installed_sumo):
            yield (
                f"sumo.version is {sumo.version!r}, but SUMO {self.installed_sumo} is installed, and a state loads "
                "exactly only in the version that saved it: generate the dataset again, or install "
                f"libsumo=={'.'.join(wanted)}.*"
            )
        for name, expected in sumo.digests.items():
            digest = self._digest(folder / name)
            if digest is None:
                yield f"sumo names {name!r}: no such file in {folder}"
            elif expected not in (None, digest):
                yield (
                    f"sumo names {name!r} with digest {expected}, but the file has {digest}: put the file back that "
                    "the states were saved with, or generate the dataset again"
                )

    def _faults_of_junctions(self, sample: Sample, folder: Path) -> Iterator[str]:
        """What SUMO says of the junction: a sample whose junction has nothing to decide could never be scored."""
        assert sample.sumo is not None
        signals, net_file = self._signals_of(sample.sumo, folder), sample.sumo.net_file
        if isinstance(signals, str):
            yield f"sumo.net_file is {net_file!r}: {signals}"
        elif sample.junction_id in signals.skipped:
            yield f"junction_id is {sample.junction_id!r}, which {signals.skipped[sample.junction_id]}"
        elif sample.junction_id not in signals.programs:
            known = sorted({*signals.programs, *signals.skipped})
            yield (
                f"junction_id is {sample.junction_id!r}: {net_file} has no traffic light of that name, but "
                f"{_shown(known)}"
            )
        else:
            program = signals.programs[sample.junction_id]
            for field in ("stage", "next_stage"):
                stage = getattr(sample, field)
                if stage is not None and stage >= len(program.stages):
                    yield (
                        f"{field} is {stage}, but junction {sample.junction_id!r} has the stages 0 to "
                        f"{len(program.stages) - 1} in {net_file}: is it another net, or another program?"
                    )
            unknown = sorted(set(sample.clocks) - set(signals.programs))
            if unknown:
                yield f"clocks names {_shown(unknown)}, which cannot be controlled in {net_file}"

    def _signals_of(self, sumo: SumoInput, folder: Path) -> Signals | str:
        # the routes of an episode do not matter: one look for all episodes of a net
        return self._signals(sumo.model_copy(update={"route_files": (), "route_sha256": None, "seed": 0}), folder)

    def _faults_of_elapsed_green(self, sample: Sample, folder: Path) -> Iterator[str]:
        """What the state says of the green. It counts how long the present phase has lasted."""
        assert sample.sumo is not None
        signals = self._signals_of(sample.sumo, folder)
        clocks, lanes = self._foreign_state(folder / sample.state_file)
        unknown = sorted(lanes - lanes_of(folder / sample.sumo.net_file))
        if unknown:
            yield (
                f"state_file is {sample.state_file!r}, which has the lane {unknown[0]!r}, but {sample.sumo.net_file} "
                "does not: the state was saved with another net"
            )
            return
        if isinstance(signals, str) or sample.junction_id not in clocks:
            return
        phase_index, lasted_s = clocks[sample.junction_id]
        if signals.programs[sample.junction_id].stage_of_phase(phase_index) is None:
            yield (
                f"junction_id is {sample.junction_id!r}, which in {sample.state_file} is in phase {phase_index}, "
                "between two stages: a decision lies in a green"
            )
        elif sample.current_green_elapsed < lasted_s - 1:
            yield (
                f"current_green_elapsed is {sample.current_green_elapsed:g}, but in {sample.state_file} the phase of "
                f"junction {sample.junction_id!r} has lasted {lasted_s:g} s already"
            )

    def _read_foreign_state(self, path: Path) -> tuple[dict[str, tuple[int, float]], frozenset[str]]:
        """The present phase of each junction and for how long (s) it has lasted; the lanes that are occupied.

        Counts what the state lacks.
        """
        try:
            text = state_text(state_bytes(path), path)
        except (OSError, StateError):
            return {}, frozenset()
        if _hash_of(str(path)) not in self._known_lost:
            self._known_lost.add(_hash_of(str(path)))
            self.num_lost.update(lost_in(text))
        return running_phases(text), frozenset(lanes_in(text))

    def _with_digests(self, sample: Sample, folder: Path, state: str) -> Sample:
        """Outcomes are cached by content, so that two files of the same name are not mistaken for each other.

        A file outside of the dataset's folder gets no digest, because the digest is what lets a file travel: only who
        made the dataset, or --sumocfg, can say that they know it.
        """
        assert sample.sumo is not None
        sumo = sample.sumo
        update: dict[str, Any] = {}
        home = folder  # of check_file, so it is resolved
        if not all(sumo.digests.values()):
            digests = {
                name: known or (self._digest(path) if (path := (home / name).resolve()).is_relative_to(home) else None)
                for name, known in sumo.digests.items()
            }
            values: dict[str, Any] = {"net_sha256": digests[sumo.net_file]}
            for kind in ("route", "additional"):
                found = [digests[name] for name in getattr(sumo, f"{kind}_files")]
                values[f"{kind}_sha256"] = tuple(found) if found and None not in found else None
            update["sumo"] = sumo.model_copy(update=values)
        if (
            self.check_states
            and sample.state_sha256 is None
            and (home / sample.state_file).resolve().is_relative_to(home)
        ):
            update["state_sha256"] = state
        return sample.model_copy(update=update) if update else sample
