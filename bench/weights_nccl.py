# SPDX-License-Identifier: Apache-2.0
"""The rival's way: one NCCL broadcast for each tensor between two processes of one machine.

Reads a JSON list of sizes in bytes on stdin; prints the best of five rounds in milliseconds as JSON.
"""

import json
import os
import sys
import time

import torch
import torch.distributed as dist
import torch.multiprocessing as mp


def worker(rank, sizes, results):
    torch.cuda.set_device(rank)
    dist.init_process_group("nccl", rank=rank, world_size=2, device_id=torch.device("cuda", rank))
    tensors = [torch.empty(size, dtype=torch.uint8, device="cuda") for size in sizes]
    rounds = []
    for _ in range(6):
        dist.barrier()
        torch.cuda.synchronize()
        began = time.perf_counter()
        for tensor in tensors:
            dist.broadcast(tensor, 0)
        torch.cuda.synchronize()
        rounds.append(1000 * (time.perf_counter() - began))
    if rank == 1:
        results.put(min(rounds[1:]))
    dist.destroy_process_group()


if __name__ == "__main__":
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT="29511", NCCL_NVLS_ENABLE="0")
    sizes = json.load(sys.stdin)
    context = mp.get_context("spawn")
    results = context.Queue()
    mp.spawn(worker, args=(sizes, results), nprocs=2)
    print(json.dumps({"ms": results.get(timeout=10), "version": str(torch.cuda.nccl.version())}))
