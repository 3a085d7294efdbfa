"""Hostile bytes for minutes or hours, to each part that reads what strangers say. Coverage decides what is tried next (atheris).

    python -m tests.fuzz --minutes 10 --seed 7 --target http

Each target of `targets.py` has its share of the time, in a process of its own. What was tried and led somewhere new is kept in
`.fuzz/`, and the next run goes on from there. What fails is printed, to be kept in `test_fuzz.py`, and ends it with exit code 1.
"""

import random
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path

import atheris
import click

# pytest finds the words of the tests beside this file, and so must `python -m tests.fuzz`.
sys.path.insert(0, str(Path(__file__).parent))

# What is watched must be so from its first line on; whoever only starts others watches nothing.
with atheris.instrument_imports(include=["pere"]) if "--alone" in sys.argv else nullcontext():
    from targets import TARGETS

from grammar import RIGHT, WRONG

KEPT = Path(__file__).parent.parent / ".fuzz"
DICTIONARY = KEPT / "dictionary.txt"
LONGEST = 4000  # bytes


def words(path: Path) -> None:
    """What requests are made of, for the fuzzer to put in."""
    parts = {part.replace(b"%d", b"4").replace(b"%x", b"4") for table in (RIGHT, WRONG) for parts in table.values() for part in parts} - {b""}
    keys = {b"channel", b"data", b"type", b"receipts", b"event_id", b"state", b"status", b"up_to", b"device", b"from=all", b"Last-Event-ID: ", b"Device: ", b"event: ", b"retry: ", b"\xef\xbb\xbf"}
    path.write_text("".join('"{}"\n'.format("".join(f"\\x{byte:02x}" for byte in part)) for part in sorted(parts | keys)))


def fuzz(name: str, seconds: int, seed: int) -> None:
    """Fuzz one target for so long; this does not return."""
    corpus = KEPT / name
    corpus.mkdir(parents=True, exist_ok=True)
    words(DICTIONARY)
    target = TARGETS[name]()
    for number, said in enumerate(target.seeds):
        (corpus / f"seed-{number}").write_bytes(said)
    atheris.Setup([sys.argv[0], str(corpus), f"-max_total_time={seconds}", f"-seed={seed}", f"-max_len={LONGEST}", f"-dict={DICTIONARY}", f"-artifact_prefix={KEPT}/{name}-",
                   "-timeout=60", "-rss_limit_mb=1024", "-print_final_stats=1"], target)
    atheris.Fuzz()


@click.command()
@click.option("--minutes", default=10.0, help="How long to go on, all targets together.")
@click.option("--seed", default=0, help="Decides what is tried; 0 takes one by chance.")
@click.option("--target", "only", type=click.Choice(sorted(TARGETS)), help="This target only.")
@click.option("--alone", is_flag=True, hidden=True)
def main(minutes: float, seed: int, only: str | None, alone: bool) -> None:
    """Say hostile bytes to PERE until the time is over or something breaks."""
    seed = seed or random.randrange(1, 2**31)
    names = [only] if only else sorted(TARGETS)
    seconds = max(1, round(60 * minutes / len(names)))
    if alone:
        fuzz(names[0], seconds, seed)
    for name in names:
        print(f"--seed {seed} --target {name}, for {seconds} s", flush=True)
        command = [sys.executable, "-m", "tests.fuzz", "--alone", "--minutes", str(seconds / 60), "--seed", str(seed), "--target", name]
        ended = subprocess.run(command, cwd=KEPT.parent, stderr=subprocess.PIPE, text=True, errors="replace", check=False)
        if ended.returncode:
            print(ended.stderr[-6000:])
            for found in sorted(KEPT.glob(f"{name}-*")):
                print(f'"": ("{name}", {found.read_bytes()!r}),')
            sys.exit(1)
        tried = next((line.split()[-1] for line in ended.stderr.splitlines() if "number_of_executed_units" in line), "?")
        print(f"  {tried} tried, {len(list((KEPT / name).iterdir()))} kept", flush=True)


if __name__ == "__main__":
    main()
