"""Latencies as a picture: how long which share of all took. Needs matplotlib (`pip install 'pere[bench]'`)."""

from typing import Any

FORMS = (".png", ".svg", ".pdf")


def draw(path: str, title: str, curves: dict[str, list[tuple[float, float]]]) -> None:
    """Each curve is shares and the milliseconds that these did not exceed. Raises ImportError without matplotlib, OSError where nothing can be written."""
    import matplotlib

    matplotlib.use("Agg")  # no window, wherever this runs
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(8, 4.5), layout="constrained")
    for label, points in curves.items():
        axes.plot(range(len(points)), [max(ms, 0.001) for _, ms in points], marker="o", markersize=3, label=label)
    shares = next(iter(curves.values()))
    axes.set_xticks(range(len(shares)), [f"{100 * share:g}" for share, _ in shares])
    axes.set_xlabel("share of all, %")
    axes.set_ylabel("at most, ms")
    axes.set_yscale("log")
    axes.set_title(title)
    axes.grid(True, alpha=0.3)
    axes.legend()
    save(figure, path)
    pyplot.close(figure)


def save(figure: Any, path: str) -> None:
    """Without what differs from run to run, so that the same figures are the same file."""
    figure.savefig(path, dpi=110, metadata={"Software": None} if path.endswith(".png") else None)
