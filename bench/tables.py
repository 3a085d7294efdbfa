"""The results as text: what bench/README.md and README.md say of them, between two marks, is written here and nowhere else.

`<!-- what follows is written by bench/pictures.py: goals -->` begins a part, and `<!-- until here -->` ends it.
"""

import re
from pathlib import Path
from statistics import median
from typing import Any

import orjson

from bench import goals
from bench.rounds import RESULTS, rows, values

MARKED = re.compile(r"(<!-- what follows is written by bench/pictures\.py: (\w+) -->\n).*?(<!-- until here -->)", re.S)


def results() -> list[tuple[Path, dict[str, Any]]]:
    return [(path, orjson.loads(path.read_bytes())) for path in sorted(RESULTS.glob("*.json"))]


def written(text: str) -> str:
    """A document with its marked parts written anew."""
    parts = {"goals": lambda: _as_table(goals.lines(), "|---"), "measured": lambda: _as_table([line[:3] for line in goals.lines()], "|---"), "results": lambda: "\n\n".join(table(result, path.with_suffix(".png")) for path, result in results()),
             "peers": _peers}
    return MARKED.sub(lambda found: f"{found[1]}\n{parts[found[2]]()}\n\n{found[3]}", text)


def sizes(scenario: str, o: dict[str, Any]) -> str:
    """What a story made use of: `5,000 feeds, 60 events of 150 bytes`."""
    if scenario == "micro":
        return "single operations in one process"
    if scenario == "nodes":
        return f"{o['pushes']:,} events of {o['bytes']} bytes, {o['rate']:,} a second, on a channel of which the newest {o['kept']:,} are kept"
    feeds, events = f"{o['feeds']:,} feeds", f"{o['events']:,} events of {o['bytes']} bytes"
    if scenario == "idle":
        return f"{feeds}, {o['seconds']:g} s"
    if scenario in ("mixed", "soak"):
        return f"{feeds}, an event every {o['every']:g} s, {o['seconds']:g} s"
    if scenario == "reconnect":
        return f"{feeds}, {o['behind']} events of {o['bytes']} bytes behind"
    if scenario == "receipts":
        return f"{o['feeds']:,} devices, {o['events']:,} events" + (f", {o['batch']:,} receipts in a request" if o["batch"] else "")
    if scenario == "slow":
        return f"{feeds}, turns of {events}"
    return events if scenario == "push" else f"{feeds}, {events}"


def table(result: dict[str, Any], path: Path) -> str:
    """A result as a table, with what it was measured on and its picture."""
    head, lines = rows(result)
    told = [
        f"### {result['name']}",
        f"{'One round' if result['rounds'] == 1 else str(result['rounds']) + ' rounds'}, commit {result['commit']}, {result['when'][:10]}, "
        f"{result['processor']}, Python {result['python']}; {sizes(result['scenario'], result['arguments'])}.",
        _as_table([head, *lines]),
    ]
    if any(each["version"] for each in result["servers"].values()):
        told.append("Versions: " + "; ".join(each["version"] for each in result["servers"].values() if each["version"]) + ".")
    told += [_inside(runs[-1]["inside"]) for runs in result["runs"].values() if runs and "inside" in runs[-1]]
    told += [f"{each}." for each in result.get("absent", ())]
    told += [f"Failed: {failure}." for failure in result.get("failures", {}).values()]
    return "\n\n".join([*told, *([f"![{result['name']}](results/{path.name})"] if result["scenario"] != "micro" else [])])


INSIDE = {"rss_kib": "memory, as the system counts it, KiB", "malloc_kib": "of which malloc has given out", "free_kib": "and keeps for later", "sqlite_kib": "SQLite has of it",
          "blocks": "pieces that Python has given out", "objects": "objects that refer to others"}


def _inside(looks: list[dict[str, Any]]) -> str:
    """What was in a server a quarter through, then half, and so on."""
    chosen = [looks[(len(looks) - 1) * quarter // 4] for quarter in range(1, 5)]
    types = [name for name in chosen[-1]["types"] if all(name in look["types"] for look in chosen)]
    lines = [["", *(f"{look['minutes']:.0f} min" for look in chosen)], *([label, *(f"{look[name]:,}" for look in chosen)] for name, label in INSIDE.items()),
             *([f"`{name}`", *(f"{look['types'][name]:,}" for look in chosen)] for name in types)]
    return _as_table(lines)


def _as_table(lines: list[list[str]], column: str = "|---:") -> str:
    head, *rest = ["| " + " | ".join(line) + " |" for line in lines]
    return "\n".join([head, "|---" + column * (len(lines[0]) - 1) + "|", *rest])


PEERS = (
    ("peers-fanout", "Broadcast, the server's processor for a delivery"),
    ("peers-mission", "Acknowledged deliveries, the same"),
)


def _peers() -> str:
    """The pictures for who compares, and in words what is in them."""
    told = []
    for name, what in PEERS:
        result = orjson.loads((RESULTS / f"{name}.json").read_bytes())
        costs = sorted((median(values(runs, "server_us")), server) for server, runs in result["runs"].items() if runs)
        words = [f"{server.removeprefix('floor: ')} {cost:.0f} us" for cost, server in costs]
        told.append(f"![{what}: {', '.join(words)}](bench/results/{name}.png)")
    return "\n\n".join(told)
