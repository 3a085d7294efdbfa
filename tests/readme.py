"""The README as its readers use it: its blocks of code, taken out as they stand.

A block is a program where its first line is a comment that names its file, such as `# till.py`; `snippet("till.py")` is that. Whoever runs
one against a server on another port puts that in the place of the one that the README names, and changes nothing else.
"""

import re
from dataclasses import dataclass
from pathlib import Path

README = Path(__file__).parent.parent / "README.md"
FENCED = re.compile(r"^```(\w*)[^\n]*\n(.*?)^```$", re.M | re.S)
INDENTED = re.compile(r"(?<=\n\n)((?:    .*\n)+)")
NAME = re.compile(r"(?:#|//) ([\w.-]+\.\w+)$", re.M)
SERVER = "127.0.0.1:4567"


@dataclass(frozen=True)
class Block:
    """`name` is that of the file that it calls itself, "" if it is none; `line` is where it begins in the README."""

    language: str
    name: str
    code: str
    line: int

    def against(self, port: int) -> str:
        """The code, for a server on this port of this machine."""
        # Once, for a port may have these digits in it too.
        return self.code.replace("4567", str(port))


def blocks(text: str = "") -> list[Block]:
    """Every fenced block, in order."""
    text = text or README.read_text("utf-8")
    found = []
    for match in FENCED.finditer(text):
        named = NAME.match(match[2])
        found.append(Block(match[1], named[1] if named else "", match[2], text.count("\n", 0, match.start()) + 1))
    return found


def commands(text: str = "") -> list[Block]:
    """Every block of what is typed in a shell, in order: those that show what is answered, programs of the shell, and those that are only indented."""
    text = text or README.read_text("utf-8")
    rest = FENCED.sub(lambda match: "\n" * match[0].count("\n"), text)
    indented = [Block("", "", re.sub(r"^    ", "", match[1], flags=re.M), rest.count("\n", 0, match.start(1)) + 1) for match in INDENTED.finditer(rest)]
    return sorted([block for block in blocks(text) if block.language in ("console", "sh")] + indented, key=lambda block: block.line)


def section(title: str) -> str:
    """What stands below this heading of the second order."""
    return README.read_text("utf-8").partition(f"\n## {title}\n")[2].partition("\n## ")[0]


def snippet(name: str) -> Block:
    """The program of this name. Raises LookupError if there is none, or more than one."""
    found = [block for block in blocks() if block.name == name]
    if len(found) != 1:
        raise LookupError(f"the README has {len(found)} programs that call themselves {name}")
    return found[0]
