"""A small server of models that speaks as much of the Hugging Face hub's protocol as downloads and commits need."""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

COMMIT = "0123456789abcdef" * 2 + "01234567"
JSON = {"Content-Type": "application/json"}


@contextmanager
def served(handler: type[BaseHTTPRequestHandler]) -> Iterator[str]:
    """The address of a server."""
    server = ThreadingHTTPServer(("localhost", 0), handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://localhost:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@contextmanager
def taking_hub(name: str, token: str, *, private: bool = False) -> Iterator[tuple[str, dict[str, bytes]]]:
    """(address, files that it was given) of a hub that makes one model's repository, for whoever has the token.

    Asked for one that is private, or is not, otherwise than `private` says, it makes none.
    """
    given: dict[str, bytes] = {}

    def is_private(body: bytes) -> bool:
        """Whether a repository is to be private, as earlier and as later versions of huggingface_hub say it."""
        asked = json.loads(body)
        return bool(asked.get("private")) or asked.get("visibility") == "private"

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            if self.headers["Authorization"] != f"Bearer {token}":
                self.answer(401, {"error": "Invalid credentials"})
            elif self.path == "/api/repos/create" and is_private(body) == private:
                self.answer(200, {"url": f"http://{self.headers['Host']}/{name}"})
            elif self.path == f"/api/models/{name}/preupload/main":
                files = [
                    {"path": each["path"], "uploadMode": "regular", "shouldIgnore": False}
                    for each in json.loads(body)["files"]
                ]
                self.answer(200, {"files": files})
            elif self.path == f"/api/models/{name}/commit/main":
                lines = [json.loads(line) for line in body.splitlines()]
                files = [line["value"] for line in lines if line["key"] == "file"]
                given.update({file["path"]: base64.b64decode(file["content"]) for file in files})
                url = f"http://{self.headers['Host']}/{name}/commit/{COMMIT}"
                self.answer(200, {"success": True, "commitUrl": url, "commitOid": COMMIT, "hookOutput": ""})
            else:
                self.answer(404, {"error": "not found"})

        def answer(self, status: int, said: dict[str, Any]) -> None:
            content = json.dumps(said).encode()
            self.send_response(status)
            for header, value in {**JSON, "Content-Length": str(len(content))}.items():
                self.send_header(header, value)
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: Any) -> None:
            pass

    with served(Handler) as address:
        yield address, given


@contextmanager
def hub(name: str, folder: Path) -> Iterator[tuple[str, list[str]]]:
    """(address, files that were asked for) of a hub that has one model."""
    files = {file.name: file.read_bytes() for file in folder.iterdir()}
    asked: list[str] = []
    about = {"id": name, "modelId": name, "sha": COMMIT, "private": False, "tags": [], "downloads": 0}
    about |= {"siblings": [{"rfilename": file} for file in files]}
    tree = [{"type": "file", "path": file, "size": len(data), "oid": COMMIT} for file, data in files.items()]

    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.answer(body=False)

        def do_GET(self) -> None:
            self.answer(body=True)

        def answer(self, *, body: bool) -> None:
            path = self.path.split("?")[0]
            if path.startswith(f"/api/models/{name}"):
                self.send(json.dumps(tree if "/tree/" in path else about).encode(), body, JSON)
                return
            file = path.removeprefix(f"/{name}/resolve/").split("/", 1)[-1]
            if not path.startswith(f"/{name}/resolve/") or file not in files:
                self.send_error(404)
                return
            if body:
                asked.append(file)
            etag = hashlib.sha256(files[file]).hexdigest()
            self.send(files[file], body, {"ETag": f'"{etag}"', "X-Repo-Commit": COMMIT})

        def send(self, content: bytes, body: bool, headers: dict[str, str]) -> None:
            self.send_response(200)
            for header, value in {**headers, "Content-Length": str(len(content))}.items():
                self.send_header(header, value)
            self.end_headers()
            if body:
                self.wfile.write(content)

        def log_message(self, *_: Any) -> None:
            pass

    with served(Handler) as address:
        yield address, asked
