# SPDX-License-Identifier: Apache-2.0
"""A served Python engine on the fake GPU, under `relight run --weights`.

serving_engine.py [WIDTH] PORT DIRECTORY SALT: takes its weights from a live replica, else "loads them from
disk" (the salt's values) and offers them. WIDTH: of the embedding, 16 unless it is said. Over HTTP:
/health, /weights (how they came, and whether they are SALT's), /update?SALT (new values, announced),
/corrupt (a byte changed behind everybody's back). ENGINE_IMPORT_S: seconds that its imports take.
"""

import hashlib
import http.server
import json
import os
import sys
import time

import relight.torch
from stubs import FakeGpu, Model, Tensor, stub_torch

time.sleep(float(os.environ.get("ENGINE_IMPORT_S", "0")))
*width, port, directory, salt = sys.argv[1:]
gpu = FakeGpu(directory)
model = Model(gpu)
if width:
    model.embed = Tensor(model.embed.data_ptr(), (8, int(width[0])))
regions = [(model.embed.data_ptr(), 640), (model.attention.weight.data_ptr(), 2048 + 4 * 40 - 10)]


def values(index, count, of):
    return hashlib.shake_128(f"{of} {index}".encode()).digest(count)


def fill(of):
    for index, (address, count) in enumerate(regions):
        gpu.write(address, values(index, count, of))


def holds(of):
    return [gpu.read(a, n)[:256] == values(i, n, of)[:256] for i, (a, n) in enumerate(regions)]


def start():
    """The weights, and what keeps them offered."""
    loaded = relight.torch.load_into(model, model="m", driver=gpu)
    state = {"warm": loaded.warm, "code": loaded.code, "message": loaded.message}
    if loaded.warm:
        return {**state, "sources": loaded.report["sources"]}, loaded.publication
    fill(salt)
    try:
        return state, relight.torch.publish(model, model="m", driver=gpu)
    except relight.torch.AgentError as error:
        return {**state, "unpublished": error.code}, None


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        path, _, query = self.path.partition("?")
        if path == "/update":
            with publication.changing():
                fill(query)
        if path == "/corrupt":
            gpu.write(model.attention.weight.data_ptr() + 7, b"\xee")
        body = json.dumps({**state, "holds": holds(query or salt)}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


with stub_torch():
    state, publication = start()
    http.server.HTTPServer(("127.0.0.1", int(port)), Handler).serve_forever()
