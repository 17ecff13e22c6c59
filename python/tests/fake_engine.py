# SPDX-License-Identifier: Apache-2.0
"""A Python engine on the fake GPU, against a real agent: fake_engine.py publish|load SOCKET DIRECTORY SALT [SOURCE].

Prints one JSON line and stays until its input ends.
"""

import hashlib
import json
import sys

import relight.torch
from stubs import FakeGpu, Model, stub_torch

role, agent, directory, salt, *sources = sys.argv[1:]
gpu = FakeGpu(directory)
model = Model(gpu)
regions = [(model.embed.data_ptr(), 640), (model.attention.weight.data_ptr(), 2048 + 4 * 40 - 10)]


def values(index, count):
    return hashlib.shake_128(f"{salt} {index}".encode()).digest(count)


with stub_torch():
    if role == "publish":
        for index, (address, count) in enumerate(regions):
            gpu.write(address, values(index, count))
        publication = relight.torch.publish(model, model="m", socket=agent, driver=gpu)
        print(json.dumps({"content": publication.content}), flush=True)
    else:
        start = relight.torch.load_into(
            model, model="m", socket=agent, driver=gpu, sources=sources
        )
        equal = [gpu.read(a, n)[:256] == values(i, n)[:256] for i, (a, n) in enumerate(regions)]
        report = {"warm": start.warm, "code": start.code, "mutated": start.mutated, "equal": equal}
        print(json.dumps(report), flush=True)
sys.stdin.read()
