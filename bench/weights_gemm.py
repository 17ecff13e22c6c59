# SPDX-License-Identifier: Apache-2.0
"""A busy engine: publishes weights through an agent and multiplies matrices without a pause.

weights_gemm.py SOCKET GIB. For each line on stdin, a number of seconds, it prints as JSON how long one
product took on average meanwhile, in milliseconds. It ends with its input.
"""

import json
import sys
import time

import torch

import relight.torch

SIZE = 8192
BATCH = 8

agent, gibibytes = sys.argv[1], int(sys.argv[2])
torch.cuda.set_device(0)
relight.torch.reserve(2**30)


class Weights(torch.nn.Module):
    def __init__(self):
        super().__init__()
        for index in range(16 * gibibytes):
            self.register_buffer(f"block{index}", torch.zeros(2**26, dtype=torch.uint8, device="cuda"))


model = Weights()
publication = relight.torch.publish(model, model="gemm", socket=agent)
a = torch.randn(SIZE, SIZE, dtype=torch.bfloat16, device="cuda")
b = torch.randn(SIZE, SIZE, dtype=torch.bfloat16, device="cuda")
out = torch.empty_like(a)
for _ in range(20):
    torch.mm(a, b, out=out)
torch.cuda.synchronize()
print(json.dumps({"key": publication.key}), flush=True)

for line in sys.stdin:
    began = time.perf_counter()
    products = 0
    while time.perf_counter() - began < float(line):
        for _ in range(BATCH):
            torch.mm(a, b, out=out)
        torch.cuda.synchronize()
        products += BATCH
    seconds = time.perf_counter() - began
    print(json.dumps({"ms": 1000 * seconds / products, "products": products}), flush=True)
