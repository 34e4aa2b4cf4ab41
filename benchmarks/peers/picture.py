"""The contest as a picture: how many times as fast as each peer, by job."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.peers.record import Cell
from benchmarks.peers.roster import LLAMA, PEERS, THRESHOLDS
from shoal.bench.jobs import JOBS
from shoal.experiments import picture
from shoal.experiments.claims import Outcome, Trial

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def save(cells: list[Cell], path: Path) -> Path | None:
    """Draw the cells of ``llama135m`` that have figures; None if there are none, or no matplotlib."""
    shown = [cell for cell in cells if cell.model == LLAMA and cell.pairs and not cell.void]
    if not shown:
        return None
    return picture.save(Outcome("contest", Trial(), (), (), lambda figure: _draw(figure, shown), 0.0), path)


def _draw(figure: Figure, cells: list[Cell]) -> None:
    axes = figure.subplots()
    jobs = [job for job in JOBS if any(cell.job == job for cell in cells)]
    peers = [peer for peer in PEERS if any(cell.peer == peer for cell in cells)]
    width = 0.8 / len(peers)
    for number, peer in enumerate(peers):
        found = {cell.job: cell.ratios for cell in cells if cell.peer == peer}
        places = [jobs.index(job) - 0.4 + (number + 0.5) * width for job in found]
        medians = [median for median, _, _ in found.values()]
        spread = [
            [median - least for median, least, _ in found.values()],
            [largest - median for median, _, largest in found.values()],
        ]
        # On a logarithmic axis a bar from 1 is as long upwards as its reciprocal is downwards.
        axes.bar(places, [m - 1 for m in medians], width, bottom=1, yerr=spread, label=peer, ecolor="#555555")
    for place, job in enumerate(jobs):
        threshold = THRESHOLDS[LLAMA][job]
        label = "wanted of the best" if not place else None
        axes.plot([place - 0.4, place + 0.4], [threshold] * 2, "--", color="black", linewidth=1, label=label)
    axes.axhline(1, color="black", linewidth=0.8)
    axes.set_yscale("log")
    axes.set_xticks(range(len(jobs)), jobs)
    axes.set_ylabel(f"times as fast as the peer, {LLAMA}")
    axes.yaxis.set_major_formatter("{x:g}x")
    axes.legend(ncols=min(4, len(peers) + 1))
