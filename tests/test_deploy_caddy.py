"""deploy/Caddyfile in a real Caddy, before a real server: nothing of it is changed but addresses, and that it signs its certificate itself."""

import asyncio
import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from nginxes import is_open
from programs import needed
from processes import SECONDS, free_port
from test_deploy_nginx import answer_in_a_browser, browser

TEXT = (Path(__file__).parent.parent / "deploy" / "Caddyfile").read_text()


@pytest.fixture
def caddy(tmp_path: Path) -> Iterator:
    """`port = caddy(server.port)`: Caddy before this server; its other node is away."""
    running: list[subprocess.Popen[bytes]] = []

    def caddy(pere: int) -> int:
        tls = free_port()
        text = TEXT
        for old, new in {"pere.example {": f"localhost:{tls} {{\n\ttls internal", "pere-1:4567": f"127.0.0.1:{pere}", "pere-2:4567": f"127.0.0.1:{free_port()}"}.items():
            assert text.count(old) == 1, old
            text = text.replace(old, new)
        (tmp_path / "Caddyfile").write_text(f"{{\n\tadmin off\n\tskip_install_trust\n\tauto_https disable_redirects\n\tstorage file_system {tmp_path}/kept\n}}\n{text}")
        with open(tmp_path / "caddy.log", "wb") as out:
            running.append(subprocess.Popen([needed("caddy", "caddy"), "run", "--config", tmp_path / "Caddyfile", "--adapter", "caddyfile"], stdout=out, stderr=out,
                                            env=os.environ | {"HOME": str(tmp_path)}))
        deadline = time.monotonic() + 30
        while not (tmp_path / "kept/certificates/local/localhost/localhost.crt").exists() or not is_open(tls):
            assert running[-1].poll() is None and time.monotonic() < deadline, (tmp_path / "caddy.log").read_text()
            time.sleep(0.05)
        return tls

    yield caddy
    for each in running:
        each.kill()
        each.wait(SECONDS)


async def test_by_http_2_a_feed_and_its_receipts_are_on_one_connection_and_a_node_that_is_away_is_left_out(tmp_path, start, caddy):
    server = await start(trusted_proxies="127.0.0.1/32", peer_pushes="0.001/3", max_batch=1, limits_exempt="127.0.0.1/32")
    port = await asyncio.to_thread(caddy, server.port)
    async with browser(f"https://localhost:{port}", str(tmp_path / "kept/pki/authorities/local/root.crt")) as visitor:
        await answer_in_a_browser(visitor)


async def test_the_configuration_is_as_caddy_itself_would_write_it():
    told = subprocess.run([needed("caddy", "caddy"), "fmt", "-"], input=TEXT, capture_output=True, text=True, timeout=SECONDS, check=False)
    assert told.stdout == TEXT, told.stderr
