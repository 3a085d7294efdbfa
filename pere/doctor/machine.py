"""The machine: its Python, open files, what the kernel allows, the addresses to listen on, and the clock."""

import ctypes
import errno
import os
import platform
import resource
import socket
import stat
import sys
import sysconfig
import time
from collections.abc import Callable
from pathlib import Path

from pere.config import Config
from pere.doctor import Finding, Findings, advice, ok, wrong
from pere.gate import SPARE, most_connections
from pere.listening import BACKLOG, bound

FEW = 1024  # what a shell gives unless told otherwise
KERNEL = Path("/proc/sys/net")
STEP = 0.2  # seconds by which a clock may move against the time that passes, while we look
TIME_ERROR = 5  # of adjtimex(2): nobody keeps this clock right
MAX_PATH = 107  # unix(7)
TYPED = 80  # characters of a command line that are shown
PROFILED = "--enable-optimizations"  # of Python's ./configure
SYSTEM = "/usr"  # where the Python of a system is, which Debian builds so too, and does not say it


def interpreter(prefix: str = sys.base_prefix, built: str | None = sysconfig.get_config_var("CONFIG_ARGS")) -> Findings:
    """Whether this Python was built with a profile of what Python does. `prefix` is where it is, `built` how, as far as it says that."""
    version, is_profiled = platform.python_version(), PROFILED in (built or "")
    if is_profiled or built is None or prefix == SYSTEM:
        yield ok("python", f"{version}, built with a profile (PGO)" if is_profiled else version)
    else:
        yield advice("python", f"{version} was built without a profile (PGO): all that is Python takes up to half as long again",
                     f"the Python of the system or of Docker's image; or, with pyenv: PYTHON_CONFIGURE_OPTS='{PROFILED} --with-lto' pyenv install {version}")


def files(config: Config) -> Findings:
    """Whether as many feeds may be open as are wanted."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft - SPARE >= max(config.max_feeds, config.max_connections):
        yield ok("open files", f"{'no limit' if soft == resource.RLIM_INFINITY else f'{soft:,}'}, which is enough for --max-feeds {config.max_feeds:,}")
        return
    wanted = max(config.max_feeds, config.max_connections) + SPARE
    what = f"{soft:,} files may be open, so there is room for {most_connections(config):,} connections, and not for --max-feeds {config.max_feeds:,}"
    remedy = f"`ulimit -n {wanted}` in the shell that starts the server, or `LimitNOFILE={wanted}` in its unit"
    if hard != resource.RLIM_INFINITY and hard < wanted:
        remedy += f"; the hard limit is {hard:,}, which only root can raise (/etc/security/limits.conf, the unit, `docker run --ulimit nofile={wanted}`)"
    yield (wrong if soft < FEW else advice)("open files", what, remedy)


def kernel(config: Config, folder: Path = KERNEL) -> Findings:
    """What Linux allows a listener; `folder` is where it tells."""
    if not folder.is_dir():
        yield ok("kernel", "its limits are not looked at on this system")
        return
    poor = []
    for name, key, why in (("core/somaxconn", "net.core.somaxconn", "connections may wait to be accepted"),
                           ("ipv4/tcp_max_syn_backlog", "net.ipv4.tcp_max_syn_backlog", "connections may be half open")):
        value = _number(folder / name)
        if value is not None and value < BACKLOG:
            poor.append(advice("kernel", f"{key} is {value:,}: so many {why}; a fleet that comes back at once takes {BACKLOG:,}", f"sysctl -w {key}={BACKLOG}"))
    ports = _numbers(folder / "ipv4/ip_local_port_range")
    if len(ports) == 2 and config.proxies[0] and (count := ports[1] - ports[0] + 1) < config.max_feeds:
        # A connection is two addresses and two ports, and between a proxy and one port of ours only its own port varies.
        poor.append(advice("kernel", f"a proxy on one address can have {count:,} connections to one port (net.ipv4.ip_local_port_range), and --max-feeds is {config.max_feeds:,}",
                           "let the proxy come by a Unix socket (--unix PATH), or on the proxy: sysctl -w net.ipv4.ip_local_port_range='1024 65535'"))
    tracked = _number(folder / "netfilter/nf_conntrack_max")
    if tracked is not None and tracked < config.max_feeds:
        poor.append(advice("kernel", f"the firewall tracks {tracked:,} connections at most, and --max-feeds is {config.max_feeds:,}: further ones are dropped without a word",
                           f"sysctl -w net.netfilter.nf_conntrack_max={2 * config.max_feeds}"))
    yield from poor or [ok("kernel", f"queues of {BACKLOG:,} connections are allowed")]


def addresses(config: Config) -> Findings:
    """Whether the addresses to listen on can be had."""
    if config.tcp:
        yield _address("--host" if config.port == 0 else "--port", config.host, config.port, config.reuse_port)
    if config.admin_port >= 0:
        yield _address("--admin-port", config.admin_host, config.admin_port, config.reuse_port)
    if config.unix:
        yield _socket(config.unix)


def _address(flag: str, host: str, port: int, is_shared: bool) -> Finding:
    named = f"{f'[{host}]' if ':' in host else host}:{port}"
    try:
        for tried in bound(host, port, is_shared):
            tried.close()  # nobody was let in
    except PermissionError:
        return wrong("address", f"{named} is for root: a port below 1024", f"{flag} 4567 behind a proxy, or `AmbientCapabilities=CAP_NET_BIND_SERVICE` in the unit")
    except OSError as error:
        if (error.errno or 0) < 0:  # of getaddrinfo(3)
            return wrong("address", f"{host} is no name of this machine: {error.strerror}", "name an address of this machine: --host 127.0.0.1, or 0.0.0.0 for all of them")
        if error.errno == errno.EADDRNOTAVAIL:
            return wrong("address", f"{named} cannot be had: {host} is no address of this machine", "name one that is: --host 127.0.0.1, or 0.0.0.0 for all of them")
        if error.errno == errno.EADDRINUSE and (whose := takers(port)):
            return wrong("address", f"{named} is taken by {whose}", f"end that, or take another one: {flag} {port + 1}. If it is the server that you mean, visit it: pere doctor --url http://{named}")
        return wrong("address", f"{named} cannot be had: {error.strerror}", f"take another one ({flag}); who has it: `ss -ltnp` as root")
    return ok("address", f"{named} can be had")


def _socket(path: str) -> Finding:
    named, folder = f"--unix {path}", os.path.dirname(os.path.abspath(path))
    if len(os.fsencode(path)) > MAX_PATH:
        return wrong("address", f"{named} is longer than the {MAX_PATH} bytes that a Unix socket may have", "name a shorter path, such as /run/pere/pere.sock")
    if not os.access(folder, os.W_OK | os.X_OK):
        return wrong("address", f"{named} cannot be made: {'this user may not write to' if os.path.isdir(folder) else 'there is no folder'} {folder}",
                     "make the folder and give it to this user (`RuntimeDirectory=pere` in the unit)")
    try:
        if not stat.S_ISSOCK(os.lstat(path).st_mode):
            return wrong("address", f"{named} is there, and is no socket", "name another path, or remove that file")
        with socket.socket(socket.AF_UNIX) as visitor:
            visitor.setblocking(False)
            visitor.connect(path)
    except FileNotFoundError:
        return ok("address", f"unix:{path} can be had")
    except ConnectionRefusedError:
        return ok("address", f"unix:{path} can be had: a process left it behind")
    except OSError:
        pass  # its queue is full, or it is not ours to visit: somebody has it
    return wrong("address", f"{named} is taken: somebody listens there", f"end that, or name another path. If it is the server that you mean, visit it: pere doctor --url unix:{path}")


def takers(port: int) -> str:
    """Who listens on a port, as far as Linux tells us: `pid 7 (nginx -g daemon off;)`; "" if nobody is found."""
    inodes = set()
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        for line in _lines(table)[1:]:
            parts = line.split()
            if len(parts) > 9 and parts[3] == "0A" and int(parts[1].rpartition(":")[2], 16) == port:
                inodes.add(f"socket:[{parts[9]}]")
    found = []
    for pid in sorted(int(name) for name in os.listdir("/proc") if name.isdigit()) if inodes else ():
        try:
            if any(os.readlink(f"/proc/{pid}/fd/{each}") in inodes for each in os.listdir(f"/proc/{pid}/fd")):
                found.append(f"pid {pid} ({_typed(pid)})")
        except OSError:
            continue  # it has ended, or is somebody else's
    return " and ".join(found) or ("another process, which only root can see" if inodes else "")


def _typed(pid: int) -> str:
    """Its command line, without the folders in it."""
    words = Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").split("\0")
    return " ".join(word.rpartition("/")[2] if word.startswith("/") else word for word in words).strip()[:TYPED]


def clock(now: Callable[[], float] = time.time, passing: Callable[[], float] = time.monotonic, watch: float = 0.5) -> Findings:
    """Whether it goes evenly, and whether somebody keeps it right."""
    first = now() - passing()
    time.sleep(watch)
    stepped = now() - passing() - first
    if abs(stepped) > STEP:
        yield advice("clock", f"it moved by {stepped:+.1f} s while {watch:g} s passed", "let one program set it, and that one slew it instead of stepping (chrony, systemd-timesyncd)")
    elif _is_astray():
        yield advice("clock", "nobody keeps it right (the kernel says that it is not synchronised): tokens and times go by it", "install chrony, or `timedatectl set-ntp true`")
    else:
        yield ok("clock", f"{time.strftime('%Y-%m-%dT%H:%M:%SZ', time.gmtime(now()))}, and it goes evenly")


def _is_astray() -> bool:
    if not sys.platform.startswith("linux"):
        return False
    try:
        # What it would fill in is larger on no system; nothing is asked to be changed.
        return bool(ctypes.CDLL(None).adjtimex(ctypes.create_string_buffer(1024)) == TIME_ERROR)
    except (OSError, AttributeError):
        return False


def _lines(path: str) -> list[str]:
    try:
        return Path(path).read_text().splitlines()
    except OSError:
        return []


def _numbers(path: Path) -> list[int]:
    try:
        return [int(word) for word in path.read_text().split()]
    except (OSError, ValueError):
        return []


def _number(path: Path) -> int | None:
    return next(iter(_numbers(path)), None)
