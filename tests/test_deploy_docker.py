"""deploy/Dockerfile: its steps are run as they are written, what they make serves, and Docker would find it healthy."""

import os
import shlex
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import wire
from containers import Image, needed
from minting import SECRET, bearer
from processes import Process, free_port, pere
from redises import common

DOCKERFILE = Path(__file__).parent.parent / "deploy" / "Dockerfile"


class Container(Process):
    """What the image starts, with these variables, as `docker run -e` would."""

    command = ["unshare", "--mount", "--propagation", "private", "--", "bash", "-c"]

    def __init__(self, image: Image, **variables: str):
        self.image = image
        self.told = variables
        super().__init__(f"SAID=({shlex.join(f'{name}={value}' for name, value in variables.items())})\n{image.script}")

    def inside(self, *command: str, **variables: str) -> subprocess.CompletedProcess[str]:
        """A command in the same root, by the same user, in the same folder: `docker exec`."""
        said = [f"{name}={value}" for name, value in (self.image.environment | variables).items()]
        user, group = self.image.user.split(":")
        enter = ["nsenter", "--target", str(self.pid), "--mount", "--root", f"--wdns={self.image.workdir}", f"--setuid={user}", f"--setgid={group}", "--"]
        return subprocess.run([*enter, "env", "-i", *said, *command], capture_output=True, text=True, timeout=30, check=False)


@pytest.fixture(scope="module")
def container(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Container]:
    needed()
    image, port = Image(DOCKERFILE, tmp_path_factory.mktemp("image")), free_port()
    with Container(image, PERE_PORT=str(port), PERE_JWT_SECRET=SECRET) as container:
        container.until('"message": ?"listening"', 300)
        yield container


async def test_what_the_steps_of_the_dockerfile_make_serves_as_nobody_is_healthy_and_ends(container):
    assert (os.stat(f"/proc/{container.pid}").st_uid, os.stat(f"/proc/{container.pid}").st_gid) == (4567, 4567)
    port, health = int(container.told["PERE_PORT"]), container.image.health
    assert container.image.exposed == [4567]
    assert container.inside(*health, **container.told).returncode == 0
    assert container.inside(*health, PERE_PORT=str(free_port())).returncode == 1

    shop, till = bearer("shop", push=["**"]), bearer("till", feed=["orders"])
    feed = await wire.Feed.open(port)
    await feed.start("/feed/orders", till)
    pushed = await wire.request(port, "POST", "/push/orders", b"[1]", **shop)
    assert (pushed.status, pushed.json["audience"], (await feed.event()).data) == (201, 1, "[1]")
    assert (await wire.request(port, "POST", "/feedback/orders", {"event_id": pushed.json["id"]}, **till)).status == 200
    feed.close()

    # What is no Python is in the wheel too.
    assert (await wire.request(port, "GET", "/pere.js")).status == 200

    # It keeps what it is told where a volume may be, and can change nothing of what it is.
    assert container.inside("stat", "-c", "%A %U %G", "/var/lib/pere", "/var/lib/pere/pere.db").stdout.splitlines() == ["drwx------ pere pere", "-rw-r--r-- pere pere"]
    assert container.inside("find", "/opt/pere", "-writable", "-not", "-type", "l").stdout == ""
    assert container.inside("python", "-c", "import pip").returncode == 1
    assert container.inside("pere", "--version").stdout == pere("--version").stdout != ""
    assert container.inside("python", "-c", f"import pere.storage.redis, redis; redis.Redis.from_url('{common().url}').ping()").stderr == ""
    assert container.end(signal.SIGTERM) == 0


def test_a_server_that_everybody_reaches_and_that_has_no_keys_does_not_start():
    """What the image says of itself: all addresses, so keys."""
    variables = dict(line.strip(" \\").split("=", 1) for line in DOCKERFILE.read_text().splitlines() if line.startswith("    PERE_"))
    assert variables["PERE_HOST"] == "0.0.0.0"
    with Process("serve", **variables) as refused:
        assert refused.end() == 2
        assert "no keys are set" in refused.err
