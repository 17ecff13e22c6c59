# SPDX-License-Identifier: Apache-2.0
"""What growing a group costs with a communicator: destroy it, make one of 4 ranks, exchange once.

    NCCL_NVLS_ENABLE=0 python3 bench/ep_nccl_recreate.py --out FILE

All processes have their context, NCCL is loaded and the store is up: nothing but the communicator is
counted. Of each round the slowest rank counts; median of the rounds.
"""
import argparse
import json
import sys
import time
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "kernels/test"))
import rendezvous  # noqa: E402

ROUNDS, BYTES = 4, 7_400_000


def make(meeting, name, rank, ranks):
    store = dist.PrefixStore(name, meeting.store)
    dist.init_process_group("nccl", store=store, rank=rank, world_size=ranks, timeout=timedelta(seconds=60),
                            device_id=torch.device("cuda", torch.cuda.current_device()))


def exchange(ranks):
    a = torch.zeros(BYTES // ranks * ranks, dtype=torch.uint8, device="cuda")
    dist.all_to_all_single(torch.empty_like(a), a)
    torch.cuda.synchronize()


def body(rank, world, meeting, out):
    torch.zeros(1, device="cuda")
    found = []
    for turn in range(ROUNDS):
        if rank < world // 2:
            make(meeting, f"{turn}/small", rank, world // 2)
            exchange(world // 2)
        meeting.barrier(range(world), f"{turn}/begin")
        began = time.perf_counter()
        if rank < world // 2:
            dist.destroy_process_group()
        destroyed = time.perf_counter()
        make(meeting, f"{turn}/large", rank, world)
        exchange(world)
        ended = time.perf_counter()
        mine = {"destroy_ms": (destroyed - began) * 1e3, "all_ms": (ended - began) * 1e3}
        every = meeting.gather(mine, range(world), f"{turn}/times")
        found.append({key: max(one[key] for one in every.values()) for key in mine})
        dist.destroy_process_group()
        meeting.barrier(range(world), f"{turn}/end")
    if rank == 0:
        found = found[1:]  # The first one loads the library's kernels.
        middle = {key: sorted(one[key] for one in found)[len(found) // 2] for key in found[0]}
        text = json.dumps({**middle, "rounds": found, "from": world // 2, "to": world})
        print(text, flush=True)
        if out:
            Path(out).write_text(text)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--ranks", type=int, default=torch.cuda.device_count())
    parser.add_argument("--out", default="")
    o = parser.parse_args()
    rendezvous.run(o.ranks, body, (o.out,), limit_s=90)


if __name__ == "__main__":
    main()
