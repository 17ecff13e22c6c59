# SPDX-License-Identifier: Apache-2.0
"""relight.ep.Buffer under a torch mixture-of-experts layer: one captured graph through 2 -> 4 ranks, a
SIGKILL, and 4 again, every output row against the layer without any exchange.

    python3 kernels/test/ep_buffer_check.py [--format bf16|fp8|ue8m0] [--hook]

Process 4 is rank 3 started again. With fewer than 4 GPUs several ranks share one.
"""
import argparse
import os
import signal
import sys
import tempfile
import threading
import time

import torch

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "../../python"))
import ep_reference as reference  # noqa: E402
import rendezvous  # noqa: E402
from relight.ep import Buffer  # noqa: E402

RANKS, LOCAL, HIDDEN, INNER, TOPK, TOKENS = 4, 8, 2048, 512, 4, 64
EXPERTS = RANKS * LOCAL
ROW_ERROR_MAX = 1.2e-2
VICTIM, AGAIN = 3, 4


def random(*size, seed, scale):
    generator = torch.Generator("cuda").manual_seed(seed)
    return (torch.rand(size, generator=generator, device="cuda") * 2 - 1).mul(scale).bfloat16()


def expert(number):
    up = random(2 * INNER, HIDDEN, seed=2 * number, scale=3 / HIDDEN**0.5)
    return up, random(HIDDEN, INNER, seed=2 * number + 1, scale=3 / INNER**0.5)


def feed_forward(x, up, down):
    """x [experts, rows, hidden] -> the same, by each expert's own weights."""
    gate, value = torch.bmm(x, up.transpose(1, 2)).chunk(2, dim=-1)
    return torch.bmm((torch.nn.functional.silu(gate.float()) * value.float()).bfloat16(), down.transpose(1, 2))


class Layer:
    """What an engine keeps at fixed addresses, and the step that it captures."""

    def __init__(self, buffer, options):
        self.buffer, self.format, self.hook = buffer, options["format"], options["hook"]
        mine = [expert(buffer.rank * LOCAL + local) for local in range(LOCAL)]
        self.up, self.down = (torch.stack(w) for w in zip(*mine))
        everyone = [expert(number) for number in range(EXPERTS)]
        self.all_up, self.all_down = (torch.stack(w) for w in zip(*everyone))
        self.x = torch.zeros(TOKENS, HIDDEN, dtype=torch.bfloat16, device="cuda")
        self.index = torch.zeros(TOKENS, TOPK, dtype=torch.int64, device="cuda")
        self.weights = torch.zeros(TOKENS, TOPK, device="cuda")
        self.received = torch.zeros(LOCAL, dtype=torch.int32, device="cuda")

    def step(self):
        fp8 = self.format != "bf16"
        received, self.count, handle, _, hook = self.buffer.low_latency_dispatch(
            self.x, self.index, TOKENS, EXPERTS, use_fp8=fp8, use_ue8m0=self.format == "ue8m0",
            round_scale=self.format == "ue8m0", return_recv_hook=self.hook,
            cumulative_local_expert_recv_stats=self.received)
        if hook:
            hook()
        y = feed_forward(self.dequantised(received) if fp8 else received, self.up, self.down)
        staging = self.buffer.get_next_low_latency_combine_buffer(handle)
        staging.copy_(y)
        self.out, _, hook = self.buffer.low_latency_combine(
            y, self.index, self.weights, handle, zero_copy=True, return_recv_hook=self.hook)
        if hook:
            hook()

    def dequantised(self, received):
        rows, scales = received
        if self.format == "ue8m0":
            words = scales.contiguous().view(torch.uint8).int() << 23
            scales = words.view(torch.float32)
        return (rows.float() * scales.repeat_interleave(128, dim=2)[..., :HIDDEN]).bfloat16()

    def load(self, seed):
        x, index, weights = reference.inputs(seed, self.buffer.rank, TOKENS, HIDDEN, TOPK, EXPERTS, holes=6)
        for to, value in ((self.x, x), (self.index, index.long()), (self.weights, weights)):
            to.copy_(value)

    def check(self, alive, where):
        kind = {"bf16": "bf16", "fp8": "fp8", "ue8m0": "fp8_ue8m0"}[self.format]
        x = reference.quantise(self.x, kind)[2].bfloat16()
        each = feed_forward(x.expand(EXPERTS, -1, -1), self.all_up, self.all_down).double()
        wanted = torch.zeros(TOKENS, HIDDEN, dtype=torch.float64, device="cuda")
        for k in range(TOPK):
            chosen = self.index[:, k]
            counts = (chosen >= 0) & (alive >> (chosen.clamp(min=0) // LOCAL) & 1).bool()
            rows = each[chosen.clamp(min=0), torch.arange(TOKENS, device="cuda")]
            wanted += torch.where(counts[:, None], rows * self.weights[:, k, None].double(), 0.0)
        size = wanted.norm(dim=1)
        error = (self.out.double() - wanted).norm(dim=1)
        error = torch.where(size > 0, error / size.clamp(min=1e-30), error)
        worst = float(error.max())
        assert worst < ROW_ERROR_MAX, f"{where}: relative error of a row is {worst}"
        return worst


def body(process, world, meeting, options):
    rank = VICTIM if process == AGAIN else process
    torch.cuda.set_device(rank % torch.cuda.device_count())
    on_one_gpu = torch.cuda.device_count() < RANKS
    buffer = Buffer(rank=rank, timeout_ms=20_000, directory=options["directory"], blocks=32 if on_one_gpu else None)
    size = Buffer.get_rdma_size_hint(TOKENS, HIDDEN, RANKS, EXPERTS)
    everybody = list(range(world))
    worst, checked = 0.0, 0

    def start():
        buffer.update_memory_buffers(RANKS, LOCAL, size)
        return Layer(buffer, options)

    def replay(turns, alive, processes, name):
        nonlocal worst, checked
        for turn in range(turns):
            layer.load(1000 * len(name) + turn)
            torch.cuda.synchronize()
            meeting.barrier(processes, f"{name}/{turn}")
            graph.replay()
            torch.cuda.synchronize()
            worst = max(worst, layer.check(alive, f"{name} {turn}"))
            assert buffer.last_failed() == (0, 0), buffer.last_failed()
            checked += TOKENS

    def capture():
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            layer.step()
        return graph

    # Two ranks run and capture.
    if process < 2:
        layer = start()
        buffer.connect_ranks([0, 1])
        layer.load(1)
        layer.step()  # The first dispatch lays the window out.
        torch.cuda.synchronize()
        worst = layer.check(0b11, "eager")
        graph = capture()
        replay(3, 0b11, [0, 1], "two")
    meeting.barrier(everybody, "joining")
    # Two more: connected while masked, let in by all at the same point.
    if process in (2, 3):
        layer = start()
    if process < 4:
        began = time.time()
        buffer.connect_ranks(range(RANKS), activate=False)
        connect_ms = (time.time() - began) * 1e3
        status = torch.zeros(RANKS, dtype=torch.int32, device="cuda")
        buffer.query_mask_buffer(status)
        assert status[3 if process < 3 else 0] == 1, "connected, and still masked"
        began = time.time()
        new = [2, 3] if process < 2 else [r for r in range(RANKS) if r != rank]
        for other in new:
            buffer.update_mask_buffer(other, False)
        let_in_ms = (time.time() - began) * 1e3
        layer.load(1)
        layer.step() if process >= 2 else graph.replay()
        torch.cuda.synchronize()
        worst = max(worst, layer.check(0b1111, "first of four"))
        if process >= 2:
            graph = capture()
        replay(3, 0b1111, range(4), "four.")
    # One is killed; the host's mask frees the others' kernels.
    if process == VICTIM:
        os.kill(os.getpid(), signal.SIGKILL)
    survivors = [0, 1, 2]
    if process < 3:
        time.sleep(0.5)
        layer.load(7)
        torch.cuda.synchronize()
        meeting.barrier(survivors, "crash")
        threading.Timer(0.3, buffer.update_mask_buffer, (VICTIM, True)).start()
        began = time.time()
        graph.replay()
        torch.cuda.synchronize()
        freed_ms = (time.time() - began) * 1e3
        assert buffer.last_failed() != (0, 0), "the step must tell that it lacked somebody"
        worst = max(worst, layer.check(0b0111, "crash"))
        replay(2, 0b0111, survivors, "three..")
        buffer.disconnect_ranks([VICTIM])
    meeting.barrier([0, 1, 2, AGAIN], "again")
    # The same rank comes back as another process.
    if process == AGAIN:
        layer = start()
    if process != VICTIM:
        buffer.connect_ranks(range(RANKS))
        layer.load(1)
        layer.step() if process == AGAIN else graph.replay()
        torch.cuda.synchronize()
        worst = max(worst, layer.check(0b1111, "first of four again"))
        if process == AGAIN:
            graph = capture()
        replay(3, 0b1111, [0, 1, 2, AGAIN], "four again")
        meeting.barrier([0, 1, 2, AGAIN], "done")
        if process == 0:
            kind = f"{options['format']}{', hook' if options['hook'] else ''}"
            print(f"ok   buffer, {kind}: one graph through 2 -> 4 -> crash -> 4; {checked} rows a rank, worst "
                  f"{worst:.1e}; connect {connect_ms:.0f} ms, let in {let_in_ms:.0f} ms, mask freed the kernel "
                  f"after {freed_ms:.0f} ms (set at 300)", flush=True)
        buffer.destroy()


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--format", default="fp8", choices=("bf16", "fp8", "ue8m0"))
    parser.add_argument("--hook", action="store_true")
    parser.add_argument("--limit-s", type=int, default=100)
    o = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        options = {"format": o.format, "hook": o.hook, "directory": directory}
        rendezvous.run(RANKS + 1, body, (options,), may_die=(VICTIM,), limit_s=o.limit_s)


if __name__ == "__main__":
    main()
