"""The Hub and W&B, as servers on loopback that take everything, or do not."""

import base64
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import yaml

SITE = "https://huggingface.co/someone/names"  # the Hub's client takes no other
# W&B's answers, by what the question has in it.
RUN = {"id": "0", "name": "run", "project": {"id": "0", "name": "p", "entity": {"id": "0", "name": "e"}}}
WANDB = {
    b"UpsertBucket": {"upsertBucket": {"bucket": RUN}},
    b"CreateRunFiles": {"createRunFiles": {"runID": "0", "uploadHeaders": [], "files": []}},
}


def errors_of(card: str) -> list[str]:
    """What the Hub finds wrong with a card's metadata, by its documentation (hub-docs: modelcard.md, licenses)."""
    if not card.startswith("---\n"):
        return []
    head = yaml.safe_load(card.split("---\n")[1])
    errors = [name for name in ("tags", "datasets", "metrics") if not isinstance(head.get(name, []), list)]
    errors += ["license"] * (head.get("license", "mit") not in ("mit", "apache-2.0"))
    errors += ["pipeline_tag"] * (
        head.get("pipeline_tag", "fill-mask") not in ("fill-mask", "text-classification", "feature-extraction")
    )
    for model in head.get("model-index", []):
        errors += ["model-index: name"] * (not model.get("name"))
        for result in model["results"]:
            needed = [("task", "type"), ("dataset", "type"), ("dataset", "name")]
            errors += [f"{part}.{name}" for part, name in needed if not result[part].get(name)]
            errors += ["metrics"] * (not result["metrics"])
            errors += ["metric"] * any(not (each.get("type") and "value" in each) for each in result["metrics"])
    return errors


class Server:
    """Takes what a Hub or W&B is sent.

    Args:
        statuses: of its answers, in turn; None never answers. After the last one all is well.
        refusal: of every request to make a repository, or of W&B's.
        takes_logs: else W&B's are not taken.
        private: whether the repository, once it is made, is.
    """

    def __init__(self, *statuses, refusal=None, takes_logs=True, private=True):
        self.requests, self.over = [], threading.Event()
        server, statuses = self, iter(statuses)

        class Handler(BaseHTTPRequestHandler):
            def handle_any(self):
                body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                server.requests.append((self.command, self.path, body))
                status = next(statuses, 200)
                if status is None:
                    server.over.wait(5)
                    return
                if "/file_stream" in self.path and not takes_logs:
                    status = 503
                if refusal and self.path.endswith(("/create", "/graphql")):
                    status = refusal
                elif refusal and self.command == "GET":  # is the repository there already?
                    status = 404
                answer = {"url": SITE, "commitUrl": f"{SITE}/commit/0", "commitOid": "0"}
                answer |= {"id": "someone/names", "private": private}
                if self.path == "/api/validate-yaml":
                    answer["errors"] = [{"message": each} for each in errors_of(json.loads(body)["content"])]
                    status = 400 if answer["errors"] else status
                answer["data"] = next((told for name, told in WANDB.items() if name in body), {})
                if "/preupload/" in self.path:
                    answer["files"] = [
                        file | {"uploadMode": "regular", "shouldIgnore": False} for file in json.loads(body)["files"]
                    ]
                answer = json.dumps(answer).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(answer)))
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(answer)

            do_HEAD = do_GET = do_POST = handle_any

            def log_message(self, *args):
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.http.server_port}"
        threading.Thread(target=self.http.serve_forever, args=(0.05,), daemon=True).start()

    def uploaded(self) -> dict[str, bytes]:
        """The files of all commits, by path."""
        bodies = [body for _, path, body in self.requests if "/commit/" in path]
        told = [json.loads(line) for body in bodies for line in body.splitlines()]
        return {
            each["value"]["path"]: base64.b64decode(each["value"]["content"]) for each in told if each["key"] == "file"
        }

    def count(self, part: str) -> int:
        return sum(part in f"{command} {path}" for command, path, _ in self.requests)

    def close(self):
        self.over.set()
        self.http.shutdown()
        self.http.server_close()
