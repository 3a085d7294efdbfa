"""The benchmarks of PERE: what it costs, beside what nothing can cost less than. `bench/README.md` tells what is asked, and what came of it."""

import argparse
import signal
import sys

if sys.argv[0] == "-m":
    # Somebody is starting us, and what is imported takes seconds. Until there is something to put away (`rounds.ending_well`) Ctrl-C ends us without a word.
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def program() -> str:
    """How the file was started that runs: `python -m bench.load.fanout`."""
    spec = sys.modules["__main__"].__spec__
    return f"python -m {spec.name.removesuffix('.__main__')}" if spec is not None else sys.argv[0]


def words(*names: str) -> list[str]:
    """What stands behind a server that is started by hand, or it is said what is missing."""
    parser = argparse.ArgumentParser(prog=program(), description=sys.modules["__main__"].__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in names:
        parser.add_argument(name)
    asked = parser.parse_args()
    return [getattr(asked, name) for name in names]
