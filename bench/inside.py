"""What is in a server, as it sees itself while it runs: is what lies there more each hour, or only kept for later?

    python -m bench.inside told.jsonl serve --port 4567

Whatever stands behind the file is said to `pere`. A line of JSON every minute: `rss_kib` is what the system counts, `malloc_kib` and `free_kib` what malloc has given out and keeps,
`sqlite_kib` what SQLite holds of that, `blocks` how many small pieces Python has given out, `objects` those that can refer to others, and `types` the most of these. It is a thread that
counts for some milliseconds, so it is for soaks, not for speed. Needs Linux with glibc 2.33.
"""

import collections
import ctypes
import gc
import sys
import threading
import time
from pathlib import Path
from typing import Any

import _sqlite3
import orjson

from pere.cli import main

EVERY = 60.0
TYPES = 12


class Malloc(ctypes.Structure):
    """mallinfo2(3)."""

    _fields_ = [(name, ctypes.c_size_t) for name in ("arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "uordblks", "fordblks", "keepcost")]


libc = ctypes.CDLL(None)
libc.mallinfo2.restype = Malloc
sqlite = ctypes.CDLL(_sqlite3.__file__)
sqlite.sqlite3_memory_used.restype = ctypes.c_int64


def look() -> dict[str, Any]:
    malloc, objects = libc.mallinfo2(), gc.get_objects()
    types = collections.Counter(type(each).__name__ for each in objects)
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return {"rss_kib": int(status["VmRSS"].split()[0]), "malloc_kib": (malloc.uordblks + malloc.hblkhd) // 1024, "free_kib": malloc.fordblks // 1024,
            "sqlite_kib": sqlite.sqlite3_memory_used() // 1024, "blocks": sys.getallocatedblocks(), "objects": len(objects), "types": dict(types.most_common(TYPES))}


def watch(path: str) -> None:
    began = time.monotonic()
    with open(path, "ab", buffering=0) as told:
        while True:
            at = time.monotonic() - began
            told.write(orjson.dumps({"minutes": round(at / 60, 2)} | look()) + b"\n")
            time.sleep(EVERY - (time.monotonic() - began) % EVERY)


if __name__ == "__main__":
    if len(sys.argv) < 3:
        sys.exit(__doc__)
    path = sys.argv.pop(1)
    threading.Thread(target=watch, args=(path,), daemon=True).start()
    main(prog_name="pere")
