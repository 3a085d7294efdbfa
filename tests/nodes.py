"""Node, and the packages of `tests/foreign/package.json` as its lock file pins them, installed beside the virtual environment."""

import fcntl
import hashlib
import shutil
import subprocess
import sys
from pathlib import Path

from programs import needed

FOREIGN = Path(__file__).parent / "foreign"


def packages() -> Path:
    """A folder in which scripts find them."""
    npm = needed("npm", "npm")
    wanted = b"".join((FOREIGN / name).read_bytes() for name in ("package.json", "package-lock.json"))
    folder = Path(sys.prefix, f"foreign-{hashlib.sha256(wanted).hexdigest()[:12]}")
    folder.mkdir(exist_ok=True)
    # Several runs of the tests may want them at once.
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / "ready").exists():
            for name in ("package.json", "package-lock.json"):
                shutil.copy(FOREIGN / name, folder)
            told = subprocess.run([npm, "ci", "--no-audit", "--no-fund", "--ignore-scripts"], cwd=folder, capture_output=True, text=True, timeout=900, check=False)
            assert told.returncode == 0, told.stdout + told.stderr
            (folder / "ready").touch()
    for script in FOREIGN.glob("*.mjs"):
        # Node looks for packages beside the script.
        shutil.copy(script, folder)
    return folder
