# SPDX-License-Identifier: Apache-2.0
"""The benchmark's own client of the API server: requests on one connection per thread, and watches that note when each event came."""
import http.client
import json
import ssl
import threading
import time
import urllib.parse

MODELS = "/apis/serving.rempart.dev/v1alpha1"
# The API server closes what was idle for longer than a minute and a half.
IDLE_S = 60
METADATA_ONLY = "application/json;as=PartialObjectMetadata{list};g=meta.k8s.io;v=v1"


class Kube:
    def __init__(self, port: int, authority: str, token: str):
        self.port, self.token = port, token
        self.context = ssl.create_default_context(cafile=authority)
        self.local = threading.local()

    def connect(self, timeout: float | None) -> http.client.HTTPSConnection:
        return http.client.HTTPSConnection("127.0.0.1", self.port, context=self.context, timeout=timeout)

    def send(self, method: str, path: str, body=None, kind: str = "application/json", accept: str = "application/json") -> dict:
        """The answer; anything but 2xx is an error."""
        if time.monotonic() - getattr(self.local, "used", -IDLE_S) >= IDLE_S:
            self.local.connection = self.connect(60)
        self.local.used = time.monotonic()
        headers = {"Authorization": f"Bearer {self.token}", "Accept": accept, "Content-Type": kind}
        self.local.connection.request(method, path, None if body is None else json.dumps(body), headers)
        answer = self.local.connection.getresponse()
        text = answer.read()
        if not 200 <= answer.status < 300:
            raise RuntimeError(f"{method} {path}: {answer.status} {text[:500].decode(errors='replace')}")
        return json.loads(text)

    def list(self, path: str, accept: str = "application/json") -> tuple:
        """All pages: the items, and the version to watch from."""
        items, token = [], ""
        join = "&" if "?" in path else "?"
        while True:
            page = self.send("GET", f"{path}{join}limit=500&continue={urllib.parse.quote(token)}", accept=accept)
            items += page["items"] or []
            token = page["metadata"].get("continue", "")
            if not token:
                return items, page["metadata"]["resourceVersion"]


class Watch(threading.Thread):
    """Calls `on_event(time, type, object)` for what is there and all that follows, on a thread of its own. Ends with the process."""

    def __init__(self, kube: Kube, path: str, on_event, metadata_only: bool = False):
        super().__init__(daemon=True)
        self.kube, self.path, self.on_event, self.metadata_only = kube, path, on_event, metadata_only
        self.version, self.broken, self.heard = "", None, False
        self.begin()
        self.start()

    def begin(self) -> None:
        items, self.version = self.kube.list(self.path, METADATA_ONLY.format(list="List") if self.metadata_only else "application/json")
        for item in items:
            self.on_event(time.monotonic(), "ADDED", item)

    def run(self) -> None:
        try:
            while True:
                self.follow()
        except (OSError, RuntimeError, http.client.HTTPException) as error:
            self.broken = error

    def follow(self) -> None:
        connection = self.kube.connect(None)
        join = "&" if "?" in self.path else "?"
        accept = METADATA_ONLY.format(list="") if self.metadata_only else "application/json"
        connection.request("GET", f"{self.path}{join}watch=1&allowWatchBookmarks=true&timeoutSeconds=3600&resourceVersion={self.version}",
                           headers={"Authorization": f"Bearer {self.kube.token}", "Accept": accept})
        answer = connection.getresponse()
        for line in answer:
            at = time.monotonic()
            event = json.loads(line)
            if event["type"] == "ERROR" and event["object"].get("code") == 410 and not self.heard:
                # The server's own watch of a kind that is new begins later than the list.
                time.sleep(0.2)
                self.begin()
                break
            if event["type"] == "ERROR":
                raise RuntimeError(f"watch of {self.path}: {event['object']}")
            self.version = event["object"]["metadata"]["resourceVersion"]
            self.heard = True
            if event["type"] != "BOOKMARK":
                self.on_event(at, event["type"], event["object"])
        connection.close()
