"""`sseclient-py` on `requests`. It reads a feed once, so coming back is done here. A line of JSON for each event, until one says "end"."""

import json
import sys
import time

import requests
from sseclient import SSEClient

last, over = "", False
with requests.Session() as session:
    while not over:
        try:
            response = session.get(sys.argv[1], headers={"Last-Event-ID": last} if last else {}, stream=True, timeout=(10, 60))
            for event in SSEClient(response).events():
                if event.event == "pere.hello":
                    print('"open"', flush=True)
                if event.id is None:
                    continue
                last = event.id
                print(json.dumps([event.id, event.event, event.data]), flush=True)
                if over := event.data == "end":
                    break
        except requests.RequestException as error:
            print(repr(error), file=sys.stderr)
        time.sleep(0.1)
