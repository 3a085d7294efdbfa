"""The results as pictures and tables: what each server cost, and how long which share of its deliveries took.

    python -m bench.pictures          draws all of bench/results, and writes their tables into bench/README.md
"""

from pathlib import Path
from statistics import median
from typing import Any

import matplotlib
import orjson

matplotlib.use("Agg")  # no window, wherever this runs

from matplotlib import pyplot

from bench.rounds import HERE, RESULTS, rows, values
from pere.load.picture import save


BEGIN, END = "<!-- what follows is written by bench/pictures.py -->", "<!-- until here -->"


def draw(result: dict[str, Any], path: Path) -> Path:
    """Bars of the first figure, with the least and the most; beside them the latencies of the last round, if there are any."""
    curves = [(server, name, points) for server, told in result["curves"].items() for name, points in told.items()]
    figure, axes = pyplot.subplots(1, 2 if curves else 1, figsize=(11 if curves else 6, 3.6), layout="constrained", squeeze=False)
    bars = axes[0][0]
    names = list(result["runs"])
    found = [values(result["runs"][name], result["shows"][0]) or [0.0] for name in names]
    middles = [median(each) for each in found]
    bars.barh(names, middles, xerr=[[m - min(f) for m, f in zip(middles, found, strict=True)], [max(f) - m for m, f in zip(middles, found, strict=True)]],
              color=["#999999" if name == result["floor"] else "#4477aa" for name in names], ecolor="#333333", capsize=3)
    bars.invert_yaxis()
    bars.set_xlabel(result["shows"][0])
    bars.set_title(f"{result['name']} ({result['rounds']} rounds)", fontsize=10)
    if curves:
        lines = axes[0][1]
        for server, name, points in curves:
            lines.plot(range(len(points)), [max(ms, 0.01) for _, ms in points], marker="o", markersize=2, label=f"{server}: {name}")
        lines.set_xticks(range(len(curves[0][2])), [f"{100 * share:g}" for share, _ in curves[0][2]], fontsize=6)
        lines.set_yscale("log")
        lines.set_xlabel("share of all, %")
        lines.set_ylabel("latency at most, ms")
        lines.grid(True, alpha=0.3)
        lines.legend(fontsize=6)
    save(figure, str(path))
    pyplot.close(figure)
    return path


def table(result: dict[str, Any], path: Path) -> str:
    """A result as a table, with what it was measured on and its picture."""
    head, lines = rows(result)
    sizes = result["arguments"]
    told = [
        f"### {result['name']}",
        f"{result['rounds']} rounds, commit {result['commit']}, {result['when'][:10]}, {result['processor']}; {sizes['feeds']:,} feeds, {sizes['events']:,} events of "
        f"{sizes['bytes']} bytes.",
        "\n".join(["| " + " | ".join(head) + " |", "|---" + "|---:" * (len(head) - 1) + "|", *("| " + " | ".join(line) + " |" for line in lines)]),
    ]
    if any(each["version"] for each in result["servers"].values()):
        told.append("Versions: " + "; ".join(each["version"] for each in result["servers"].values() if each["version"]) + ".")
    told += [f"Failed: {failure}." for failure in result.get("failures", {}).values()]
    return "\n\n".join([*told, f"![{result['name']}](results/{path.name})"])


def main() -> None:
    tables = []
    for path in sorted(RESULTS.glob("*.json")):
        result = orjson.loads(path.read_bytes())
        picture = draw(result, path.with_suffix(".png"))
        tables.append(table(result, picture))
        print(picture)
    readme = HERE / "README.md"
    before, _, rest = readme.read_text("utf-8").partition(BEGIN)
    readme.write_text(before + BEGIN + "\n\n" + "\n\n".join(tables) + "\n\n" + END + rest.partition(END)[2], "utf-8")


if __name__ == "__main__":
    main()
