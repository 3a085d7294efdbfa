"""`/admin/...`: the answers of 2014, presence, and sending a device away; `/healthz`, `/readyz`, `/metrics`."""

import asyncio
import logging

from pere.audience import Member
from pere.auth import ADMIN, ANYBODY
from pere.errors import BadRequest, NotFound, Refusal, Unavailable
from pere.event import format_id, timestamp
from pere.followers import Followers
from pere.handlers.base import Handler, number
from pere.handlers.events import MAX_PAGE, PAGE
from pere.hub import Hub
from pere.metrics import Scrape
from pere.names import device_name, shown
from pere.revocations import Revocations
from pere.storage import Store
from pere.storage.settling import telling
from pere.watchdog import Watchdog

log = logging.getLogger("pere.admin")


class Connections(Handler):
    """`GET /admin/connections`: open feeds by channel; a feed of many channels counts on each, and once in the total."""

    needs = ADMIN
    hub: Hub

    def get(self) -> None:
        feeds: dict[str, int] = {name: channel.feeds for name, channel in sorted(self.hub.channels.items())}
        self.answer(feeds | {"total number": len(self.hub.feeds)})


class AdminEvents(Handler):
    """`GET /admin/events/{channel}`: the payloads that are kept, as in 2014."""

    needs = ADMIN
    store: Store

    async def get(self, channel: str) -> None:
        await self.store.reach(0, self.channel(channel))
        shelf = self.store.shelf(channel)
        self.answer([event.payload() for event in shelf.backlog] if shelf is not None else [])


class ChannelDevices(Handler):
    """`GET /admin/devices/{channel}`: its devices, as in 2014: what each did last, when and with which event; and whether it is online."""

    needs = ADMIN
    store: Store

    async def get(self, channel: str) -> None:
        self.channel(channel)
        await self.store.reach(0)  # who is online on another node is told by and by, to nobody who follows a channel
        shelf = self.store.shelf(channel)
        self.answer({member.device: self._told(member) for member in shelf.audience} if shelf is not None else {})

    def _told(self, member: Member) -> dict[str, object]:
        device = self.store.devices.get(member.device)
        return {
            "op": "feedback" if member.answered > member.since else "feed",
            "at": timestamp(max(member.since, member.answered) or member.seen),
            "Last-Event-Id": format_id(member.last_id) if member.last_id else None,
            "online": device is not None and device.is_online,
        }


class AllDevices(Handler):
    """`GET /admin/devices?after=&limit=`: every device by name, with its channels and feeds."""

    needs = ADMIN
    store: Store

    async def get(self) -> None:
        await self.store.reach(0)
        after = self.query.one("after") or ""
        limit = number(self.query.one("limit", str(PAGE)), "limit", 1, MAX_PAGE)
        devices = list(self.store.devices.after(after, limit))
        self.answer({
            "devices": [
                {"device": device.name, "online": device.is_online, "feeds": len(device.feeds), "channels": sorted(device.channels),
                 "patterns": sorted(device.patterns)}
                for device in devices
            ],
            "after": devices[-1].name if len(devices) == limit else None,
        })


class OneDevice(ChannelDevices):
    """`DELETE /admin/devices/{device}`: close its feeds and forget it; with `?revoke=true` its tokens are not good any more. GET of the
    same address asks for a channel."""

    methods = "GET, HEAD, DELETE, OPTIONS"
    hub: Hub
    followers: Followers
    revocations: Revocations | None

    async def delete(self, name: str) -> None:
        device_name(name)
        await self.store.reach(0)
        device = self.store.devices.get(name)
        is_revoked = self._is_revoked()
        if device is None and not is_revoked:
            raise NotFound("unknown_device", f"no device {name} is registered")
        self._check_store()
        # Before its feeds are closed, or it could be back with the same token.
        kept = self._revoke(name) if is_revoked else None
        if device is not None:
            self.hub.kick(device)
            self.store.remove(name)
        if kept is not None and (refusal := await kept) is not None:
            raise refusal
        # Who is told that it is gone does not see it come back.
        await self.store.settle()
        self._check_store()
        log.info("device removed", extra={"facts": {"device": name, "channels": len(device.channels) if device is not None else 0, "revoked": is_revoked}})
        self.set_status(204)
        self.finish()

    def _is_revoked(self) -> bool:
        said = self.query.one("revoke", "false")
        if said not in ("true", "false"):
            raise BadRequest("bad_revoke", f"revoke is true or false, not {shown(said)}")
        if said == "true" and self.revocations is None:
            raise BadRequest("bad_revoke", "there are no tokens to revoke: this server has no keys")
        return said == "true"

    def _revoke(self, name: str) -> "asyncio.Future[Refusal | None]":
        assert self.revocations is not None
        done: asyncio.Future[Refusal | None] = asyncio.get_running_loop().create_future()
        self.revocations.revoke(name, telling(done))
        self.followers.kick(name)
        return done

    def _check_store(self) -> None:
        if (trouble := self.store.trouble()) is not None:
            raise Unavailable("store_failed", trouble, retry_after=5)


class Health(Handler):
    """`GET /healthz`: alive, as whoever can answer is, unless nothing can be written any more."""

    needs = ANYBODY
    watchdog: Watchdog

    def get(self) -> None:
        if self.watchdog.is_writer_stuck():
            raise Unavailable("stuck", "a commit of the store does not end: the disk does not answer, or somebody holds the file", retry_after=5)
        self.answer({"status": "alive"})


class Ready(Handler):
    """`GET /readyz`: whether requests should be sent here: not while draining, nor while the store can keep nothing."""

    needs = ANYBODY
    store: Store

    def get(self) -> None:
        trouble = "the server is draining" if self.settings["is_draining"]() else self.store.trouble()
        if trouble is not None:
            raise Unavailable("not_ready", trouble, retry_after=5)
        self.answer({"status": "ready"})


class Metrics(Handler):
    """`GET /metrics`: for Prometheus."""

    needs = ADMIN
    scrape: Scrape

    async def get(self) -> None:
        told = await self.scrape.told()
        self.set_header("Content-Type", "text/plain; version=0.0.4; charset=utf-8")
        self.finish(told)
