"""The results as pictures and tables: what each server cost, and how long which share of its deliveries took.

    python -m bench.pictures          draws all of bench/results, and writes what they say into bench/README.md and README.md
"""

import argparse
from pathlib import Path
from statistics import median
from typing import Any

from bench import program, tables
from bench.rounds import HERE, often, share, title, values
from pere.cli.bench import SHOWN
from pere.load.picture import save


def draw(result: dict[str, Any], path: Path) -> Path:
    """Bars of the first figure, with the least and the most; beside them the latencies of the last round, or the memory where it was watched."""
    import matplotlib  # which takes a second, and most who import this draw nothing

    matplotlib.use("Agg")  # no window, wherever this runs
    from matplotlib import pyplot

    watched = {server: (runs[-1]["memory_kib"], runs[-1]["memory_every"]) for server, runs in result["runs"].items() if runs and "memory_kib" in runs[-1]}
    curves = {server: told for server, told in result["curves"].items() if told}
    is_wide = bool(watched or curves)
    figure, axes = pyplot.subplots(1, 2 if is_wide else 1, figsize=(12 if is_wide else 6, 3.8), layout="constrained", squeeze=False)
    _bars(axes[0][0], result)
    if watched:
        _memory(axes[0][1], watched)
    elif curves:
        _latencies(axes[0][1], curves)
    save(figure, str(path))
    pyplot.close(figure)
    return path


def _bars(axes: Any, result: dict[str, Any]) -> None:
    names, name = list(result["runs"]), result["shows"][0]
    found = [[value * 100 if share(name) else value for value in values(result["runs"][server], name)] or [0.0] for server in names]
    middles = [median(each) for each in found]
    axes.barh(names, middles, xerr=[[m - min(f) for m, f in zip(middles, found, strict=True)], [max(f) - m for m, f in zip(middles, found, strict=True)]],
              color=["#999999" if server == result["floor"] else "#4477aa" for server in names], ecolor="#333333", capsize=3)
    axes.invert_yaxis()
    axes.set_xlabel("{}, {}".format(*SHOWN[name]) if name in SHOWN else title(name))
    axes.set_title(f"{result['name']}: {often(result)}", fontsize=10)


def _latencies(axes: Any, curves: dict[str, dict[str, Any]]) -> None:
    """A colour for each server, and a kind of line for each of its latencies."""
    kinds = dict(zip(dict.fromkeys(name for told in curves.values() for name in told), ("-", "--", ":"), strict=False))
    for place, (server, told) in enumerate(curves.items()):
        for name, points in told.items():
            axes.plot(range(len(points)), [max(ms, 0.01) for _, ms in points], color=f"C{place}", linestyle=kinds[name], linewidth=1.2, label=f"{server}: {name}")
            shares = points
    axes.set_xticks(range(len(shares)), [f"{100 * part:g}" for part, _ in shares], fontsize=6)
    axes.set_yscale("log")
    axes.set_xlabel("share of all, %")
    axes.set_ylabel("latency at most, ms")
    axes.grid(True, alpha=0.3)
    axes.legend(fontsize=6, loc="center left", bbox_to_anchor=(1.0, 0.5))


def _memory(axes: Any, watched: dict[str, tuple[list[float], float]]) -> None:
    for server, (memory, every) in watched.items():
        axes.plot([place * every / 60 for place in range(len(memory))], [kib / 1024 for kib in memory], label=server)
    axes.set_ylim(bottom=0)
    axes.set_xlabel("minutes")
    axes.set_ylabel("memory of the server, MiB")
    axes.grid(True, alpha=0.3)
    axes.legend(fontsize=6, loc="lower right")


def main() -> None:
    argparse.ArgumentParser(prog=program(), description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    for path, result in tables.results():
        if result["scenario"] != "micro":
            print(draw(result, path.with_suffix(".png")))
    for readme in (HERE / "README.md", HERE.parent / "README.md"):
        readme.write_text(tables.written(readme.read_text("utf-8")), "utf-8")
        print(readme)


if __name__ == "__main__":
    main()
