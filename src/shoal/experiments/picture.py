"""An experiment's picture, drawn by matplotlib where that is installed (extra ``report``)."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from shoal.experiments.claims import Outcome

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SIZE = 7.2, 4.2
"""Inches."""
LARGEST = 200_000
"""Bytes of a drawing; one with more strokes is stored as pixels."""
STYLE: dict[Any, Any] = {
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.25,
    "font.size": 9.0,
    "svg.fonttype": "none",
    # Equal pictures are equal files.
    "svg.hashsalt": "shoal",
}


def save(outcome: Outcome, path: Path) -> Path | None:
    """Draw the outcome's picture; the ending of ``path`` says the format.

    Returns:
        The file written (``.png`` instead of an ``.svg`` above ``LARGEST``), or None if matplotlib is not
        installed.

    Raises:
        OSError: the file cannot be written.
    """
    assert outcome.draw is not None
    try:
        import matplotlib
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        return None
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=SIZE, layout="constrained")
        FigureCanvasAgg(figure)
        outcome.draw(figure)
        _raise_legends(figure)
        path.parent.mkdir(parents=True, exist_ok=True)
        plain = {"Date": None} if path.suffix == ".svg" else None
        figure.savefig(path, metadata=plain, dpi=110)
        if path.suffix == ".svg" and path.stat().st_size > LARGEST:
            path.unlink()
            path = path.with_suffix(".png")
            figure.savefig(path, dpi=110)
    return path


def _raise_legends(figure: Figure) -> None:
    """Above their axes they hide no data."""
    for axes in figure.axes:
        if legend := axes.get_legend():
            legend.set_loc("lower left")
            legend.set_bbox_to_anchor((0.0, 1.0), axes.transAxes)
            legend.set_frame_on(False)
