"""`/admin/...`: the answers of 2014, presence, and sending a device away; `/`, `/healthz`, `/readyz`, `/metrics`."""

import logging

from prometheus_client import CollectorRegistry, generate_latest

import pere
from pere.audience import Member
from pere.errors import NotFound, Unavailable
from pere.event import format_id, timestamp
from pere.handlers.base import Handler, number
from pere.handlers.events import MAX_PAGE, PAGE
from pere.hub import Hub
from pere.names import device_name
from pere.storage import Store

log = logging.getLogger("pere.admin")


class Connections(Handler):
    """`GET /admin/connections`: open feeds by channel; a feed of many channels counts on each, and once in the total."""

    hub: Hub

    def get(self) -> None:
        feeds: dict[str, int] = {name: channel.feeds for name, channel in sorted(self.hub.channels.items())}
        self.answer(feeds | {"total number": len(self.hub.feeds)})


class AdminEvents(Handler):
    """`GET /admin/events/{channel}`: the payloads that are kept, as in 2014."""

    store: Store

    def get(self, channel: str) -> None:
        shelf = self.store.shelf(self.channel(channel))
        self.answer([event.payload() for event in shelf.backlog] if shelf is not None else [])


class ChannelDevices(Handler):
    """`GET /admin/devices/{channel}`: its devices, as in 2014: what each did last, when and with which event; and whether it is online."""

    store: Store

    def get(self, channel: str) -> None:
        shelf = self.store.shelf(self.channel(channel))
        self.answer({member.device: self._told(member) for member in shelf.audience} if shelf is not None else {})

    def _told(self, member: Member) -> dict[str, object]:
        device = self.store.devices.get(member.device)
        return {
            "op": "feedback" if member.answered > member.since else "feed",
            "at": timestamp(max(member.since, member.answered) or member.seen),
            "Last-Event-Id": format_id(member.last_id) if member.last_id else None,
            "online": device is not None and bool(device.feeds),
        }


class AllDevices(Handler):
    """`GET /admin/devices?after=&limit=`: every device by name, with its channels and feeds."""

    store: Store

    def get(self) -> None:
        after = self.query.one("after") or ""
        limit = number(self.query.one("limit") or str(PAGE), "limit", 1, MAX_PAGE)
        devices = list(self.store.devices.after(after, limit))
        self.answer({
            "devices": [
                {"device": device.name, "online": bool(device.feeds), "feeds": len(device.feeds), "channels": sorted(device.channels),
                 "patterns": sorted(device.patterns)}
                for device in devices
            ],
            "after": devices[-1].name if len(devices) == limit else None,
        })


class OneDevice(ChannelDevices):
    """`DELETE /admin/devices/{device}`: close its feeds and forget it. GET of the same address asks for a channel."""

    methods = "GET, HEAD, DELETE, OPTIONS"
    hub: Hub

    async def delete(self, name: str) -> None:
        device = self.store.devices.get(device_name(name))
        if device is None:
            raise NotFound("unknown_device", f"no device {name} is registered")
        self._check_store()
        self.hub.kick(device)
        self.store.remove(name)
        # Who is told that it is gone does not see it come back.
        await self.store.settle()
        self._check_store()
        log.info("device removed", extra={"facts": {"device": name, "channels": len(device.channels)}})
        self.set_status(204)
        self.finish()

    def _check_store(self) -> None:
        if (trouble := self.store.trouble()) is not None:
            raise Unavailable("store_failed", trouble, retry_after=5)


class Home(Handler):
    """`GET /`: that it is running, in the words of 2014."""

    def get(self) -> None:
        self.answer({"message": "PERE server up and running", "version": pere.__version__})


class Health(Handler):
    """`GET /healthz`: alive, as whoever can answer is."""

    def get(self) -> None:
        self.answer({"status": "alive"})


class Ready(Handler):
    """`GET /readyz`: whether requests should be sent here: not while draining, nor while the store can keep nothing."""

    store: Store

    def get(self) -> None:
        trouble = "the server is draining" if self.settings["is_draining"]() else self.store.trouble()
        if trouble is not None:
            raise Unavailable("not_ready", trouble, retry_after=5)
        self.answer({"status": "ready"})


class Metrics(Handler):
    """`GET /metrics`: for Prometheus."""

    registry: CollectorRegistry

    def get(self) -> None:
        self.set_header("Content-Type", "text/plain; version=0.0.4; charset=utf-8")
        self.finish(generate_latest(self.registry))
