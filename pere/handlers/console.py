"""`/`: the console for a browser, for others that PERE is running; the files that it is made of; and `/pere.js`.

Nothing builds these files: they are read once, and served as they were written. Only of `pere.js`, which strangers' pages load, the
comments and the indentation stay here, a fifth of it.
"""

import re
from functools import cache
from pathlib import Path

import pere
from pere.auth import ANYBODY
from pere.errors import NotFound
from pere.handlers.base import Handler, Page
from pere.names import shown

HOUSE = Path(pere.__file__).parent
TYPES = {
    ".css": "text/css; charset=utf-8", ".html": "text/html; charset=utf-8", ".js": "text/javascript; charset=utf-8", ".svg": "image/svg+xml",
    ".ts": "text/plain; charset=utf-8", ".woff2": "font/woff2",
}

MODULE = "pere.js"
UNSAID = re.compile(rb"^[ \t]*//.*\n|^\t+|[ \t]*// .*$|^\n", re.MULTILINE)


@cache
def files(folder: str) -> dict[str, bytes]:
    """All that may be asked for of a folder of ours, by name: no path is ever made of what somebody asks for."""
    found = {path.name: path.read_bytes() for path in (HOUSE / folder).iterdir() if path.suffix in TYPES}
    return found | ({MODULE: UNSAID.sub(b"", found[MODULE])} if MODULE in found else {})


class File(Handler):
    """`GET /pere.js`, `/pere.d.ts`, `/console/{name}`."""

    needs = ANYBODY

    folder: str
    name: str

    def get(self, name: str = "") -> None:
        content = files(self.folder).get(name := name or self.name)
        if content is None:
            raise NotFound("not_found", f"there is nothing at {shown(self.request.path)}")
        self.set_header("Content-Type", TYPES[Path(name).suffix])
        # Another version may be there at any time, whose files must not be mixed with these: asking whether it is costs a 304.
        self.set_header("Cache-Control", "no-cache")
        self.finish(content)


class Home(Page):
    """`GET /`: the console for who takes HTML, and for others, in the words of 2014, that it is running."""

    needs = ANYBODY

    def get(self) -> None:
        self.add_header("Vary", "Accept")
        if "text/html" in self.request.headers.get("Accept", ""):
            self.set_header("Cache-Control", "no-cache")
            self.show(files("console")["index.html"])
        else:
            self.set_header("Content-Security-Policy", Handler.policy)
            self.answer({"message": "PERE server up and running", "version": pere.__version__})
