"""Programs of the system that tests run beside the server: without one a test is skipped, unless it is run where everything must be there."""

import os
import shutil
from typing import NoReturn

import pytest


def needed(name: str, package: str, *others: str) -> str:
    """The program of this name, of Debian's package `package`; or one of the `others`, which do as well."""
    path = f"{os.environ.get('PATH', '')}:/usr/sbin"  # where some are that only root runs otherwise
    program = next(filter(None, (shutil.which(each, path=path) for each in (name, *others))), None)
    return program if program is not None else lacking(f"{name} is not installed (apt-get install {package})")


def lacking(reason: str) -> NoReturn:
    """`.ci/run` installs all that there is to be had, so a skip there would hide that a test is never run."""
    if os.environ.get("CI"):
        pytest.fail(reason)
    pytest.skip(reason)
