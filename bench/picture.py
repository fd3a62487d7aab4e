"""The bench's picture: who was answered, and how quickly, around one release of each way, side by side."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import matplotlib as mpl

mpl.use("svg")

from matplotlib import pyplot as plt
from matplotlib.axes import Axes

from bench.measure import BUCKET, UnderLoad

SHOWN = (-1.0, 4.0)
"""Seconds around the release's beginning: the quickest way's next release begins soon after."""
GOOD, BAD, LATENCY = "#2a9d8f", "#e63946", "#264653"


def draw(loads: Sequence[UnderLoad], title: str, file: Path) -> None:
    """Draw the release whose gap is each way's median, to an SVG file whose texts stay texts."""
    mpl.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "esteira", "font.size": 9})
    figure, axes = plt.subplots(
        2, len(loads), figsize=(4 * len(loads), 5), sharex=True, sharey="row", squeeze=False
    )
    for column, load in enumerate(loads):
        rows = load.timeline(load.usual())
        _availability(axes[0][column], load, rows)
        _latency(axes[1][column], rows)
    axes[0][0].set_ylabel("requests a second")
    axes[1][0].set_ylabel("slowest answer, ms")
    figure.suptitle(title)
    figure.legend(*axes[0][0].get_legend_handles_labels(), loc="lower center", ncols=2, frameon=False)
    figure.tight_layout(rect=(0, 0.05, 1, 1))
    figure.savefig(file, metadata={"Date": None})
    plt.close(figure)


def _availability(axes: Axes, load: UnderLoad, rows: Sequence[tuple[int, int, int, float]]) -> None:
    times = [at / 1000 for at, *_ in rows]
    good = [count / BUCKET for _, count, _, _ in rows]
    bad = [count / BUCKET for _, _, count, _ in rows]
    all_ = [one + more for one, more in zip(good, bad, strict=True)]
    axes.fill_between(times, good, step="post", color=GOOD, linewidth=0, label="answered")
    axes.fill_between(times, good, all_, step="post", color=BAD, linewidth=0, label="failed")
    axes.set_title(f"{load.title}: {len(load.result.failures):,} failed in {len(load.deployed)} releases")
    axes.set_xlim(*SHOWN)


def _latency(axes: Axes, rows: Sequence[tuple[int, int, int, float]]) -> None:
    answered = [(at / 1000, worst) for at, good, _, worst in rows if good]
    axes.plot(*zip(*answered, strict=True), ".", color=LATENCY, markersize=3)
    axes.set_yscale("log")
    axes.set_xlabel("seconds after the release began")
    axes.grid(axis="y", alpha=0.3)
