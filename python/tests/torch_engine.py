# SPDX-License-Identifier: Apache-2.0
"""An engine with real torch modules on a GPU: torch_engine.py publish|load SOCKET DEVICE SALT [SOURCE].

With RELIGHT_TEST_RESERVE set it reserves its memory first.

Prints one JSON line and stays until its input ends, or updates its weights on the word "update".
"""

import json
import os
import sys

import torch

import relight.torch
from relight.memory import Driver

role, agent, device, salt, *sources = sys.argv[1:]
torch.cuda.set_device(int(device))
if "RELIGHT_TEST_RESERVE" in os.environ:
    relight.torch.reserve(2**28)


class Attention(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.kv_b = torch.nn.Linear(512, 1024, bias=False, dtype=torch.bfloat16, device="cuda")
        self.register_buffer("cos", torch.empty(4096, 32, device="cuda"))
        self.scale = torch.empty(1024, device="cuda", dtype=torch.float32)
        # Derived and strided: a transposed view of memory that no parameter names.
        self.w_uk_t = torch.empty(16, 64, 512, dtype=torch.bfloat16, device="cuda").transpose(1, 2)


class Model(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = torch.nn.Embedding(32000, 1024, dtype=torch.bfloat16, device="cuda")
        self.layers = torch.nn.ModuleList(Attention() for _ in range(4))
        self.experts = torch.nn.Parameter(
            torch.empty(8, 2048, 1024, device="cuda").to(torch.float8_e4m3fn), requires_grad=False
        )
        self.head = torch.nn.Linear(1024, 32000, bias=False, dtype=torch.bfloat16, device="cuda")
        self.head.weight = self.embed.weight  # tied
        self.nothing = torch.nn.Parameter(torch.empty(0, 8, device="cuda"))
        padded = torch.empty(64, 40, dtype=torch.uint8, device="cuda")
        self.register_buffer("padded", padded[:, :30])


def fill(module, seed):
    generator = torch.Generator(device="cuda").manual_seed(seed)
    for _, tensor in relight.torch.live_tensors(module).values():
        values = torch.randn(tensor.shape, generator=generator, device="cuda") * 4
        tensor.copy_(values.to(tensor.dtype) if tensor.dtype.is_floating_point else values.abs())


def allocation_count(module):
    """Of the tensors that torch does not take from its pool for small ones."""
    driver = Driver()
    tensors = [tensor for _, tensor in relight.torch.live_tensors(module).values()]
    large = [tensor for tensor in tensors if tensor.untyped_storage().nbytes() > 2**20]
    return len({driver.range_of(tensor.data_ptr())[0] for tensor in large})


def checksums(module):
    return {
        name: float(tensor.double().abs().sum())
        for name, (_, tensor) in sorted(relight.torch.live_tensors(module).items())
    }


with torch.no_grad():
    model = Model()
    fill(model, int(salt))
    if role == "publish":
        try:
            publication = relight.torch.publish(model, model="m", socket=agent)
            print(json.dumps({"content": publication.content, "sums": checksums(model)}), flush=True)
        except relight.torch.AgentError as error:
            print(json.dumps({"code": error.code, "message": error.message}), flush=True)
        for line in sys.stdin:
            with publication.changing():
                fill(model, int(line))
            print(json.dumps({"content": publication.content, "sums": checksums(model)}), flush=True)
    else:
        pointers = [tensor.data_ptr() for _, tensor in relight.torch.live_tensors(model).values()]
        start = relight.torch.load_into(model, model="m", socket=agent, sources=sources)
        after = [tensor.data_ptr() for _, tensor in relight.torch.live_tensors(model).values()]
        print(
            json.dumps(
                {
                    "warm": start.warm,
                    "code": start.code,
                    "message": start.message,
                    "sums": checksums(model),
                    "kept": pointers == after,
                    "allocations": allocation_count(model),
                    "copyMs": start.report.get("copyMs"),
                    "bytes": start.report.get("bytes"),
                }
            ),
            flush=True,
        )
        sys.stdin.read()
