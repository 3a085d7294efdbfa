"""Read this first: one order, followed through every room of the house, on each of the stores. The server is a process of its own, as anybody
starts it, and all that visits it here does so as anybody could.

    publisher -> push -> store -> hub -> feed -> device
    publisher <- webhook <- ledger <- receipt <- feedback <-

Whatever keeps it, its story is the same, but for what is known when the server has been killed.
"""

from contextlib import closing
from functools import partial
from typing import Any

import orjson
import pytest
import wire
from processes import Served
from redises import named
from standardwebhooks.webhooks import Webhook

ORDER = {"table": 17, "dish": "Pizza «Quattro stagioni»"}
WEBHOOKS_TO_THIS_MACHINE = ("--webhook-allow-http", "--webhook-allow-networks", "127.0.0.0/8")


def counted(status: dict[str, Any]) -> dict[str, int]:
    return {state: devices for state, devices in status["counts"].items() if devices}


@pytest.mark.parametrize("kind", ["memory", "sqlite", "redis"])
async def test_an_event_goes_to_every_device_and_its_publisher_learns_what_became_of_it(kind, receiver, tmp_path):
    flags = ("--store", named(kind, tmp_path), *WEBHOOKS_TO_THIS_MACHINE)
    with Served(*flags) as server:
        ask = partial(wire.request, server.port)
        listen = partial(wire.listen, server.port)

        # Before it begins, the office wants to be told when an order is done with, and the server looks whether it is there.
        office = receiver(204)
        endpoint = (await ask("POST", "/webhooks", {"url": office.url, "types": ["pere.event.completed"]})).json
        while (await ask("GET", f"/webhooks/{endpoint['id']}")).json["state"] != "active":
            pass

        # DEVICES. The kitchen was here, so it is known on the channel, and is switched off; the bar and the archive listen, and so does a
        # screen that has no name. The archive wants whatever there is, each in an envelope. The manager listens to the receipts alone.
        (await listen("orders", device="kitchen")).close()
        while (await ask("GET", "/admin/connections")).json["total number"]:
            pass
        with closing(await listen("orders", device="bar")) as bar, \
                closing(await listen("**", device="archive")) as archive, closing(await listen("orders")) as screen, \
                closing(await wire.opened(server.port, "/receipts/orders", {})) as manager:

            # PUSH (handlers/push.py). The waiter publishes; three devices owe a receipt for it, the screen owes nothing.
            pushed = (await ask("POST", "/push/orders?type=order&need=all", ORDER, Device="waiter")).json
            order = pushed["id"]
            assert pushed == {"id": order, "channel": "orders", "audience": 3}

            # STORE (storage/). It is kept, as it was pushed.
            kept = (await ask("GET", "/events/orders")).json["events"]
            assert [(event["id"], event["type"], event["data"]) for event in kept] == [(order, "order", ORDER)]

            # HUB (broadcast.py). The store has handed it on, and the hub to each of those who are there: three, and not the kitchen.
            # FEED (feed.py). One write to each; who asked for many channels reads an envelope.
            for feed in (bar, screen):
                message = await feed.event()
                assert (message.id, message.event, orjson.loads(message.data)) == (order, "order", ORDER)
            envelope = orjson.loads((await archive.event()).data)
            assert (envelope["id"], envelope["channel"], envelope["attempt"], envelope["data"]) == (order, "orders", 1, ORDER)
            assert (await ask("GET", "/admin/connections")).json == {"orders": 3, "total number": 3}

            # FEEDBACK (handlers/feedback.py). The bar says what became of it there, in its own words; once more, and nothing changes.
            assert bar.hello["feedback"] == "/feedback/orders"
            receipt = partial(ask, "POST", "/feedback/orders?status=on+the+counter", Device="bar", Last_Event_ID=order)
            assert (await receipt()).json == {"state": "processed", "duplicate": False}
            assert (await receipt()).json == {"state": "processed", "duplicate": True}
            told = await ask("POST", archive.hello["feedback"], {"receipts": [{"event_id": order, "state": "delivered"}]}, Device="archive")
            assert told.json["results"] == [{"event_id": order, "state": "delivered", "duplicate": False}]

            # LEDGER (ledger.py). Who has it, and who has not: the one that is switched off too.
            status = (await ask("GET", f"/events/orders/{order}")).json
            assert counted(status) == {"pending": 1, "delivered": 1, "processed": 1}
            assert (status["publisher"], status["outstanding"], status["complete"]) == ("waiter", 2, False)
            devices = (await ask("GET", f"/events/orders/{order}/devices")).json["devices"]
            assert {each["device"]: (each["state"], each["online"], each["status"]) for each in devices} == {
                "kitchen": ("pending", False, None), "archive": ("delivered", True, None), "bar": ("processed", True, "on the counter")}

            # REPLAY (replay.py). The kitchen is switched on and is sent what it owes, from the store, without having to say where it was.
            with closing(await listen("orders", device="kitchen")) as kitchen:
                assert orjson.loads((await kitchen.event()).data) == ORDER
                told = await ask("POST", "/feedback/orders?state=failed", {"status": "no more basil"}, Device="kitchen", Last_Event_ID=order)
                assert told.json == {"state": "failed", "duplicate": False}
            await ask("POST", "/feedback/orders", Device="archive", Last_Event_ID=order)

            # WEBHOOK (courier.py). Everybody has answered: the office is told, and can prove from whom it comes.
            while not office.notices():
                await ask("GET", "/healthz")
            headers, body = office.got[-1]
            notice = Webhook(endpoint["secret"]).verify(body.decode(), headers)
            known = (await ask("GET", f"/events/orders/{order}")).json
            assert known["complete"]
            for told in (known, notice["data"]):
                assert (told["id"], counted(told)) == (order, {"processed": 2, "failed": 1})

            # FOLLOWERS (followers.py). The manager has been told of each receipt that changed anything, in the order in which they came.
            receipts = [orjson.loads(data) for data in await manager.events(4)]
            assert [(told["event_id"], told["device"], told["state"], told["status"]) for told in receipts] == [
                (order, "bar", "processed", "on the counter"), (order, "archive", "delivered", None),
                (order, "kitchen", "failed", "no more basil"), (order, "archive", "processed", None)]

            # METRICS (metrics.py). All of it has been counted, what changed nothing too.
            samples = (await ask("GET", "/metrics")).body.decode().splitlines()
            assert {"pere_events_total 1.0", "pere_outstanding 0.0", 'pere_receipts_total{outcome="accepted",state="processed"} 2.0',
                    'pere_receipts_total{outcome="accepted",state="delivered"} 1.0', 'pere_receipts_total{outcome="accepted",state="failed"} 1.0',
                    'pere_receipts_total{outcome="duplicate",state="processed"} 1.0'} <= {*samples}

            # The server dies, and nobody had told it to. Its feeds break off, and whoever was answered has been told the truth.
            server.kill()
            assert [await feed.end() for feed in (bar, archive, screen, manager)] == [[], [], [], []]

    # What the next one knows is what its store is for.
    with Served(*flags) as server:
        answer = await wire.request(server.port, "GET", f"/events/orders/{order}")
        assert answer.error == (404, "unknown_event") if kind == "memory" else answer.json == known
