"""`httpx-sse`. It opens a feed once, so coming back is done here. A line of JSON for each event, until one says "end"."""

import json
import sys
import time

import httpx
from httpx_sse import connect_sse

last, retry, over = "", 1.0, False
with httpx.Client(timeout=httpx.Timeout(10, read=60)) as client:
    while not over:
        try:
            with connect_sse(client, "GET", sys.argv[1], headers={"Last-Event-ID": last} if last else {}) as source:
                for event in source.iter_sse():
                    if event.retry is not None:
                        # It makes an event of `retry:` alone, which a browser does not.
                        retry = event.retry / 1000
                        continue
                    if event.event == "pere.hello":
                        print('"open"', flush=True)
                        continue
                    last = event.id
                    print(json.dumps([event.id, event.event, event.data]), flush=True)
                    if over := event.data == "end":
                        break
        except httpx.HTTPError as error:
            print(repr(error), file=sys.stderr)
        time.sleep(0 if over else retry)
