"""Which signals of a dataset's net can be replayed, as SUMO reads them."""

from __future__ import annotations

from pathlib import Path

from tsc.errors import ReplayProcessDied, TscError
from tsc.junction.signal_control import Signals
from tsc.processes import forbid_writing, limit_memory
from tsc.sumo.fork import in_fork
from tsc.sumo.sumo_input import SumoInput


def signals_of(sumo: SumoInput, folder: Path) -> Signals | str:
    """The signals of the net and additional files of `sumo`, or why SUMO cannot read them.

    folder: of the dataset file. SUMO runs in a process of its own, which may not write: the files may be anybody's.
    """

    def read() -> Signals:
        limit_memory()
        forbid_writing()
        # loads libsumo, which does not get on with pyarrow in one process for long
        from tsc.replays.replay import replayed_signals

        return replayed_signals(sumo, folder)

    try:
        return in_fork(read)
    except ReplayProcessDied:
        return f"SUMO crashes while it opens {folder / sumo.net_file}"
    except TscError as error:
        return str(error)
