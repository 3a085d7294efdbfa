"""Real nginx for tests, as a process of its own that writes only into a folder of the test."""

import os
import pwd
import signal
import socket
import subprocess
import time
from pathlib import Path
from typing import Self

from programs import needed


class Nginx:
    """One that listens on `ports` with what stands in `http`, which is put into the smallest configuration around it:

        with Nginx(tmp_path, f"server {{ listen 127.0.0.1:{port}; location / {{ proxy_pass http://unix:{path}; }} }}", port):

    or, where the text has an `http {}` itself, with that as it is. What it complains of is in `log`, what it was asked in `access_log`
    where the text says so."""

    def __init__(self, folder: Path, text: str, *ports: int):
        self._folder = folder
        self._ports = ports
        self._process: subprocess.Popen[bytes] | None = None
        if "http {" not in text:
            temporary = "".join(f"{kind}_temp_path {folder}/{kind};\n" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi"))
            text = f"user {pwd.getpwuid(os.getuid()).pw_name};\nevents {{ worker_connections 1024; }}\nhttp {{\naccess_log off;\n{temporary}{text}\n}}\n"
        (folder / "nginx.conf").write_text(text)

    @property
    def log(self) -> str:
        return (self._folder / "nginx.log").read_text()

    def start(self) -> Self:
        command = [needed("nginx", "nginx"), "-p", str(self._folder), "-c", str(self._folder / "nginx.conf"), "-e", "stderr", "-g", f"daemon off; pid {self._folder}/nginx.pid;"]
        with open(self._folder / "nginx.log", "ab") as out:
            self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=out, stderr=out)
        deadline = time.monotonic() + 20
        for port in self._ports:
            while not is_open(port):
                assert self._process.poll() is None and time.monotonic() < deadline, self.log
                time.sleep(0.01)
        return self

    def signal(self, how: signal.Signals) -> None:
        """SIGHUP reads the configuration again, SIGQUIT ends it when what is under way is done."""
        assert self._process is not None
        self._process.send_signal(how)

    def stop(self) -> None:
        """At once. A SIGKILL would leave its workers behind."""
        if self._process is not None:
            self._process.terminate()
            self._process.wait(20)
            self._process = None

    def __enter__(self) -> Self:
        try:
            return self.start()
        except BaseException:
            self.stop()
            raise

    def __exit__(self, *exc_info: object) -> None:
        self.stop()


def is_open(port: int) -> bool:
    with socket.socket() as visitor:
        visitor.settimeout(5)
        return visitor.connect_ex(("127.0.0.1", port)) == 0
