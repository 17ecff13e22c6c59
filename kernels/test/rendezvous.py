# SPDX-License-Identifier: Apache-2.0
"""How test processes meet: a TCPStore in the parent, so that a killed rank takes nothing with it."""
import os
import pickle
import time
import traceback

import torch
import torch.multiprocessing as mp
from torch.distributed import TCPStore


class Meeting:
    def __init__(self, rank, port):
        self.rank, self.turn = rank, 0
        self.store = TCPStore("127.0.0.1", port, is_master=False)

    def barrier(self, ranks, name):
        key = f"b/{name}"
        self.store.add(key, 1)
        limit = time.time() + 120
        while self.store.add(key, 0) < len(ranks):
            if time.time() > limit:
                raise TimeoutError(f"Cannot pass barrier {name}")
            time.sleep(0.0005)

    def gather(self, value, ranks, name):
        self.store.set(f"g/{name}/{self.rank}", pickle.dumps(value))
        return {r: pickle.loads(self.store.get(f"g/{name}/{r}")) for r in ranks}


def _child(rank, world, port, body, arguments, failures):
    try:
        torch.set_num_threads(4)
        torch.cuda.set_device(rank % torch.cuda.device_count())
        body(rank, world, Meeting(rank, port), *arguments)
    except BaseException:
        failures.put((rank, traceback.format_exc()))
        failures.close()
        failures.join_thread()
        os._exit(1)
    os._exit(0)


def run(world, body, arguments=(), may_die=(), limit_s=240):
    """Runs body(rank, world, meeting, *arguments) in `world` processes; raises what one raised."""
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    context = mp.get_context("spawn")
    failures = context.Queue()
    children = [context.Process(target=_child, args=(r, world, store.port, body, arguments, failures))
                for r in range(world)]
    for child in children:
        child.start()
    until = time.time() + limit_s
    while any(c.is_alive() for c in children) and time.time() < until and failures.empty():
        time.sleep(0.02)
    time.sleep(0.3)
    found = [] if failures.empty() else [failures.get()]
    stuck = [r for r, c in enumerate(children) if c.is_alive()]
    for child in children:
        if child.is_alive():
            child.kill()
        child.join()
    if found:
        raise RuntimeError(f"rank {found[0][0]} failed:\n{found[0][1]}")
    bad = [r for r, c in enumerate(children) if c.exitcode != 0 and r not in may_die]
    if bad or [r for r in stuck if r not in may_die]:
        raise RuntimeError(f"ranks {bad} did not end well, {stuck} were stuck")
