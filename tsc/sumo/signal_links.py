"""The links of the signals of a net, read from its file without a simulation."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import sumolib


@dataclass(frozen=True, kw_only=True)
class Link:
    """A connection that a signal controls. Its letter is at `index` of the state of a phase.

    crossing: the edge of the pedestrian crossing; empty for a movement of vehicles. direction: SUMO's letter.
    """

    index: int
    from_lane: Any
    to_lane: Any
    via_lane: str
    direction: str
    crossing: str

    @property
    def from_edge(self) -> str:
        return str(self.from_lane.getEdge().getID())

    @property
    def to_edge(self) -> str:
        return str(self.to_lane.getEdge().getID())

    @property
    def movement(self) -> tuple[str, str]:
        return self.from_edge, self.to_edge


def read_net(path: Path) -> Any:
    """sumolib's net with the inside of its junctions."""
    return sumolib.net.readNet(str(path), withInternal=True, withPedestrianConnections=True)


def signal_links(net: Any) -> dict[str, list[Link]]:
    """The links of each signal, sorted by index. One index may control several connections."""
    found: dict[str, list[Link]] = {}
    for edge in net.getEdges():
        for lane in edge.getLanes():
            for connection in lane.getOutgoing():
                if connection.getTLSID():
                    ends = (edge, connection.getTo())
                    link = Link(
                        index=connection.getTLLinkIndex(),
                        from_lane=lane,
                        to_lane=connection.getToLane(),
                        via_lane=connection.getViaLaneID() or "",
                        direction=connection.getDirection(),
                        crossing=next((end.getID() for end in ends if end.getFunction() == "crossing"), ""),
                    )
                    found.setdefault(connection.getTLSID(), []).append(link)
    return {name: sorted(links, key=lambda link: link.index) for name, links in found.items()}
