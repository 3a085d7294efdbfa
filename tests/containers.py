"""A Dockerfile carried out without an engine: each stage is a root of its own, laid over this machine's with an overlay, and each of its
steps is run there as it is written, by the user that it names. What it starts is a process like any other, on this machine's network.

It stands in for the two things that cannot be had without a registry: the base image, for which this machine's own programs do (`python`
and `pip` of the Python that runs the tests), and the cache that BuildKit mounts, which is pip's own."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

from programs import lacking


def needed() -> None:
    """Root and mounts; without them a test is skipped, unless it is run where everything must be there."""
    told = subprocess.run(["unshare", "--mount", "mount", "-t", "tmpfs", "none", "/mnt"], capture_output=True, text=True, timeout=60, check=False) if shutil.which("unshare") else None
    if told is None or told.returncode:
        lacking(f"this needs root and mounts (unshare --mount): {told.stderr.strip() if told else 'no unshare'}")


class Step(NamedTuple):
    word: str
    rest: str

    def flags(self) -> tuple[dict[str, str], str]:
        """`--from=build /a /b` is {"from": "build"} and `/a /b`."""
        flags, rest = {}, self.rest
        while (found := re.match(r"--([\w-]+)=(\S+)\s+", rest)) is not None:
            flags[found[1]], rest = found[2], rest[found.end():]
        return flags, rest

    def words(self) -> list[str]:
        """What is written as a JSON array, or as words."""
        return json.loads(self.rest) if self.rest.startswith("[") else shlex.split(self.rest)


def steps(dockerfile: str) -> list[Step]:
    lines = re.sub(r"\\\n\s*", "", re.sub(r"^#.*\n", "", dockerfile, flags=re.M)).splitlines()
    return [Step(*line.split(None, 1)) for line in lines if line.strip()]


class Image:
    """What is built: `script` lays the roots and runs the steps in bash, in a mount namespace of its own, and becomes what the image starts.
    `health` is the command of its HEALTHCHECK, `user` who runs, and `workdir` where."""

    def __init__(self, dockerfile: Path, folder: Path):
        self._context = folder / "context"
        self._copy_context(dockerfile)
        self.health: list[str] = []
        self.user = "0:0"
        self.environment: dict[str, str] = {}
        self.exposed: list[int] = []
        self.workdir = "/"
        self._entrypoint: list[str] = []
        self._command: list[str] = []
        self._root = ""
        self._lines = ["set -euo pipefail", f"T={folder}/roots", 'mkdir "$T"', 'mount -t tmpfs none "$T"']
        for step in steps(dockerfile.read_text()):
            self._take(step)
        self._run([*self._entrypoint, *self._command], "exec ")
        self.script = "\n".join(self._lines)

    def _copy_context(self, dockerfile: Path) -> None:
        """What the .dockerignore lets through."""
        house, ignored = dockerfile.parent.parent, Path(f"{dockerfile}.dockerignore").read_text().split("\n")
        self._context.mkdir()
        assert "*" in ignored
        for name in (line[1:] for line in ignored if line.startswith("!")):
            if (house / name).is_dir():
                shutil.copytree(house / name, self._context / name, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                shutil.copy(house / name, self._context / name)

    def _take(self, step: Step) -> None:
        match step.word:
            case "ARG":
                pass  # the version of a base image
            case "FROM":
                self._begin(step.rest.partition(" AS ")[2] or "final")
            case "WORKDIR":
                self.workdir = step.rest
                self._lines.append(f'mkdir -p "{self._root}{step.rest}"')
            case "USER":
                self.user = step.rest
            case "ENV":
                for pair in shlex.split(step.rest):
                    name, _, value = pair.partition("=")
                    self.environment[name] = value.replace("$PATH", self.environment["PATH"])
            case "COPY":
                self._copy(*step.flags())
            case "RUN":
                self._run(["/bin/sh", "-c", step.flags()[1]])
            case "EXPOSE":
                self.exposed += map(int, step.words())
            case "HEALTHCHECK":
                self.health = Step("", step.flags()[1].removeprefix("CMD ")).words()
            case "ENTRYPOINT":
                self._entrypoint = step.words()
            case "CMD":
                self._command = step.words()
            case "VOLUME":
                pass  # where somebody else's disk may be
            case other:
                raise AssertionError(f"nobody has thought of {other} here")

    def _begin(self, name: str) -> None:
        """A root that has nothing of ours, and `python` and `pip` where the base image has them."""
        self._root = root = f"$T/{name}/root"
        self.user, self.workdir = "0:0", "/"
        self.environment = {"PATH": "/usr/local/bin:/usr/local/sbin:/usr/bin:/usr/sbin:/bin:/sbin", "LANG": "C.UTF-8"}
        python = Path(sys.base_prefix) / "bin" / f"python3.{sys.version_info.minor}"
        self._lines += [
            f'mkdir -p "$T/{name}"/{{up,work,root}}',
            f'mount -t overlay overlay -o "lowerdir=/,upperdir=$T/{name}/up,workdir=$T/{name}/work" "{root}"',
            f'for made in /opt/pere /src /wheels /var/lib/pere; do rm -rf "{root}$made"; done',
            # The Python of the tests may be in somebody's home.
            f'for above in {" ".join(str(above) for above in python.parents)}; do chmod o+x "{root}$above"; done',
            *(f'printf \'#!/bin/sh\\nexec {python}{more} "$@"\\n\' > "{root}/usr/local/bin/{word}"; chmod 755 "{root}/usr/local/bin/{word}"'
              for word, more in (("python", ""), ("pip", " -m pip"))),
            f'mount --bind /dev "{root}/dev"; mount -t proc proc "{root}/proc"']

    def _copy(self, flags: dict[str, str], rest: str) -> None:
        *sources, target = rest.split()
        origin = f"$T/{flags['from']}/root" if "from" in flags else str(self._context)
        place = target if target.startswith("/") else f"{self.workdir}/{target}"
        for source in sources:
            is_file = "from" not in flags and (self._context / source).is_file()
            # Docker copies what is in a folder, not the folder.
            self._lines.append(f'cp "{origin}/{source}" "{self._root}{place}"' if is_file else f'mkdir -p "{self._root}{place}"; cp -a "{origin}/{source}/." "{self._root}{place}"')

    def _run(self, command: list[str], become: str = "") -> None:
        said = {name: value for name, value in os.environ.items() if name.startswith("PIP_")} | {"HOME": "/root"} | self.environment
        words = ["env", "-i", *(f"{name}={value}" for name, value in said.items()), "chroot", f"--userspec={self.user}"]
        inside = ["/bin/sh", "-c", f'cd {self.workdir} && exec "$@"', "sh", *command]
        extra = ' "${SAID[@]}"' if become else ""  # what `docker run -e` would say
        self._lines.append(f'{become}{shlex.join(words[:2])}{extra} {shlex.join(words[2:])} "{self._root}" {shlex.join(inside)}')
