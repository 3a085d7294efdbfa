"""Designs that lost, kept so that the claim can be checked: each a server of a screenful, under the load that PERE is measured with.

    python -m bench.experiments --rounds 3

request_handler   Tornado as its documentation has it: RequestHandler.write() and flush() for each feed
iostream_write    Tornado's connection detached, and IOStream.write() for each feed
task_per_feed     on uvloop, a task for each feed that waits for news and reads on from what is kept
queue_per_feed    on uvloop, a queue and a task for each feed
send_per_event    PERE's own loop of writes, without joining what comes in one turn: it loses where events come together
"""

import sys

from bench.rounds import PERE, SEND, Measure, Server

NAMES = ("request_handler", "iostream_write", "task_per_feed", "queue_per_feed", "send_per_event")


def measures() -> tuple[Measure, ...]:
    servers = (PERE, *(Server(name, (sys.executable, "-m", f"bench.experiments.{name}", "{port}")) for name in NAMES), SEND)
    shows = ("server_us", "latency/delivery/p99", "open_us", "feed_kib", "load_us")
    return (Measure("experiments-fanout", "fanout", servers, "--events 30", "--events 10 --feeds 2000", shows, SEND.name),
            Measure("experiments-burst", "burst", servers, "--events 40 --every 0.4", "--events 40 --feeds 2000", shows, SEND.name))
