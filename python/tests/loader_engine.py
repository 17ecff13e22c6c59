# SPDX-License-Identifier: Apache-2.0
"""A served engine whose loader is Relight's, on the fake GPU, under `relight run --weights`.

loader_engine.py vllm|sglang PORT DIRECTORY SALT: the salt is the checkpoint on its disk. Over HTTP:
/health and /weights?SALT, both answer which loaders built what, and whether the values are SALT's.
"""

import http.server
import json
import sys

import relight.sglang
import relight.vllm
from engine_stubs import (
    Config,
    LoadFormat,
    SglangStub,
    VllmStub,
    stubbed,
    values_of,
    vllm_configs,
)
from stubs import FakeGpu

name, port, directory, salt = sys.argv[1:]
gpu = FakeGpu(directory)
stub = VllmStub(gpu, salt) if name == "vllm" else SglangStub(gpu, salt)


def load_by_vllm():
    relight.vllm.register()
    config, model = vllm_configs()
    load_config = Config(load_format="relight", model_loader_extra_config={})
    return stub.registry["relight"](load_config).load_model(vllm_config=config, model_config=model)


def load_by_sglang():
    load_config = Config(load_format=LoadFormat.AUTO, model_loader_extra_config={})
    loader = relight.sglang.choose_loader(stub.get_model_loader, load_config)
    model = Config(model_path="org/other", revision="main", is_draft_model=False)
    return loader.load_model(model_config=model, device_config=None)


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        _, _, query = self.path.partition("?")
        holds = network.values() == values_of(gpu, query or salt)
        body = json.dumps({"built": stub.built, "holds": holds}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


with stubbed(gpu, stub):
    network = load_by_vllm() if name == "vllm" else load_by_sglang()
    http.server.HTTPServer(("127.0.0.1", int(port)), Handler).serve_forever()
