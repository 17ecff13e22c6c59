# SPDX-License-Identifier: Apache-2.0
"""Times dispatch and combine, one process a GPU, against NCCL, the per-selection baseline and a push roofline.

    NCCL_NVLS_ENABLE=0 python3 kernels/bench/ep_bench.py --out bench/results/ep.json

Kernel time is what the GPU's clock says between the first block's entry and the last block's exit;
of each step the slowest rank counts; p50 and p99 are over steps. A barrier of all ranks on the GPU
stands directly before each kernel. `profiler` rows are CUPTI's durations of the same kernels (what
others publish); they include the launch's own start and end.
"""
import argparse
import ctypes
import json
import os
import sys
import time
import traceback
from pathlib import Path

import torch
import torch.distributed as dist

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "test"))
import ep_check  # noqa: E402
import ep_reference as reference  # noqa: E402
import rendezvous  # noqa: E402
from cuda.bindings import driver as cuda  # noqa: E402
from relight_host import C, Memory, align, check, groups_of  # noqa: E402

HIDDEN, TOPK, EXPERTS = 7168, 8, 256
SWEEP = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096)


class PushArgs(ctypes.Structure):
    _fields_ = [("to", ctypes.c_uint64 * 32), ("masks", ctypes.c_uint64), ("rows", ctypes.c_uint32),
                ("row_bytes", ctypes.c_uint32), ("row_stride", ctypes.c_uint32),
                ("trace_at", ctypes.c_uint32), ("trace", ctypes.c_uint64), ("left", ctypes.c_uint64),
                ("ranks", ctypes.c_uint32), ("rank", ctypes.c_uint32)]


def row_bytes(fmt):
    """What travels: weights, payload, scales."""
    return 4 * TOPK + (2 * HIDDEN if fmt == "bf16" else HIDDEN + align(groups_of(HIDDEN) * 4, 16))


def routing(kind, seed, rank, tokens, world):
    g = torch.Generator().manual_seed(seed * 100 + rank)
    if kind == "perfect":  # every rank gets the same number of rows, every expert the same selections
        t = torch.arange(tokens)[:, None] + rank * 31
        k = torch.arange(TOPK)[None]
        local = EXPERTS // world
        index = ((t + k) % world) * local + (t * TOPK + k) // world % local
        return index.int()
    score = torch.rand(tokens, EXPERTS, generator=g)
    if kind == "skewed":  # a choice is drawn with probability falling as rank^-0.5 over the experts
        order = torch.randperm(EXPERTS, generator=torch.Generator().manual_seed(1))
        score = score.log() * (order + 1).float().sqrt()
    return score.topk(TOPK, dim=1).indices.int()


def masks_of(index, world):
    """Ranks each token goes to, as bits."""
    owner = (index.long() // (EXPERTS // world))
    hit = torch.zeros(len(index), world, dtype=torch.bool)
    hit.scatter_(1, owner, True)
    return hit


def spread(samples):
    ordered = sorted(samples)
    pick = lambda q: ordered[min(len(ordered) - 1, int(q * len(ordered)))]  # noqa: E731
    return {"p50_us": round(pick(0.5), 2), "p99_us": round(pick(0.99), 2), "min_us": round(ordered[0], 2),
            "steps": len(ordered)}


class Bench:
    def __init__(self, rank, world, meeting, options):
        self.rank, self.world, self.meeting, self.options = rank, world, meeting, options
        self.turn, self.results, self.members = 0, {}, {}

    def gather(self, value):
        self.turn += 1
        got = self.meeting.gather(value, range(self.world), f"bench/{self.turn}")
        return [got[r] for r in range(self.world)]

    def sync(self):
        torch.cuda.synchronize()
        self.turn += 1
        self.meeting.barrier(range(self.world), f"bench/{self.turn}")

    def slowest(self, mine):
        """Each step's slowest rank."""
        return [max(step) for step in zip(*self.gather(mine))]

    def member(self, tokens_max, select):
        key = (tokens_max, select)
        if key not in self.members:
            config = {"ranks_max": self.world, "tokens_max": tokens_max, "hidden": HIDDEN, "topk": TOPK,
                      "experts_max": EXPERTS, "local_experts_max": EXPERTS // self.world,
                      "parities": 1, "select_rows": int(select)}
            m = ep_check.join_all(self.rank, self.world, self.meeting, config, f"member{key}",
                                  timeout_ms=5000, trace=4096)
            m.own(ep_check.placement(EXPERTS, self.world, EXPERTS // self.world, False))
            m.activate((1 << self.world) - 1, 1)
            m.outs = {}
            m.y = torch.empty(EXPERTS // self.world, self.world * tokens_max, HIDDEN,
                              dtype=torch.bfloat16, device="cuda").normal_()
            m.x = torch.randn(tokens_max, HIDDEN, device="cuda").bfloat16()
            m.weights = torch.rand(tokens_max, TOPK, device="cuda")
            m.result = torch.empty(tokens_max, HIDDEN, dtype=torch.bfloat16, device="cuda")
            self.members[key] = m
            self.sync()
        return self.members[key]

    def captured(self, body, count):
        stream = torch.cuda.Stream()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=stream):
            for _ in range(count):
                body()
        return graph

    def traces(self, m, graph, replays, skip=1):
        for _ in range(skip):
            graph.replay()
        self.sync()
        m.poke("trace_count", 0)
        for _ in range(replays):
            graph.replay()
        torch.cuda.synchronize()
        count = m.read().trace_count
        if m.record().fault.count:
            f = m.record().fault
            raise RuntimeError(f"fault: peer {f.peer} phase {f.phase} epoch {f.epoch}")
        spans = m.trace.view(-1, 2)[:count]
        return ((spans[:, 1] - spans[:, 0]).double() / 1e3).cpu().tolist()

    def pair(self, tokens, fmt="fp8", route="random", blocks=132, cold=False, select=False,
             flags=0, replays=10, count=20):
        tokens_max = 128 if tokens <= 128 else 1024 if tokens <= 1024 else 4096
        m = self.member(tokens_max, select)
        m.blocks = blocks
        out = m.outs.setdefault(fmt, None) or m.outputs(fmt)
        m.outs[fmt] = out
        index = routing(route, 7, self.rank, tokens, self.world)
        m.index = index.cuda()
        x = m.x[:tokens]
        dispatch = m.dispatch_args(x, m.index, None if select else m.weights, out, fmt, 3 | flags)
        combine = m.combine_args(m.y, m.result)
        home = m.select_combine(m.y, m.index, m.weights, m.result, out)
        junk = torch.empty(256 << 20, dtype=torch.uint8, device="cuda") if cold else None

        def step():
            for half in (0, 1):
                if cold:
                    junk.zero_()
                if select and half == 0:
                    out["count"].zero_()
                m.barrier()
                if half == 0:
                    m.dispatch(dispatch, select)
                elif select:
                    m.run_select_combine(home)
                else:
                    m.combine(combine)

        graph = self.captured(step, count)
        times = self.traces(m, graph, replays)
        d, c = self.slowest(times[0::2]), self.slowest(times[1::2])
        self.last = (m, graph, fmt, index)
        row = {"tokens": tokens, "dispatch": spread(d), "combine": spread(c)}
        row.update(self.bytes_row(index, fmt, row, select))
        return row

    def bytes_row(self, index, fmt, row, select):
        hits = self.gather(masks_of(index, self.world).sum(0).tolist() if not select else
                           torch.bincount(index.long().flatten() // (EXPERTS // self.world),
                                          minlength=self.world).tolist())
        out_rows = [sum(h) - h[r] for r, h in enumerate(hits)]
        in_rows = [sum(h[r] for h in hits) - hits[r][r] for r in range(self.world)]
        most = max(out_rows + in_rows)
        found = {"rows_out_max": max(out_rows), "rows_in_max": max(in_rows)}
        for half, size in (("dispatch", row_bytes(fmt)), ("combine", 2 * HIDDEN)):
            gbs = most * size / row[half]["p50_us"] / 1e3
            found[half + "_wire_gbs"] = round(gbs, 1)
            if "push" in self.results:
                found[half + "_share_of_push"] = round(gbs / self.results["push"]["gbs"], 3)
        logical = len(index) * TOPK
        found["dispatch_logical_gbs"] = round(logical * (HIDDEN + 240) / row["dispatch"]["p50_us"] / 1e3, 1)
        found["combine_logical_gbs"] = round(logical * 2 * HIDDEN / row["combine"]["p50_us"] / 1e3, 1)
        return found

    # ---- Roofline ----

    def push(self, tokens, size, blocks=132, rounds=20, only=None):
        if not hasattr(self, "push_function"):
            module = check(cuda.cuModuleLoadData((ROOT / "build/bench.sm_90.cubin").read_bytes()))
            self.push_function = check(cuda.cuModuleGetFunction(module, b"push"))
            self.pushed = Memory(4096 * align(2 * HIDDEN, 128) * self.world, torch.cuda.current_device())
            cards = self.gather((os.getpid(), self.pushed.fd, self.pushed.bytes))
            self.push_to = [self.pushed if r == self.rank else
                            Memory(fd=ep_check_fetch(cards[r]), bytes_mapped=cards[r][2])
                            for r in range(self.world)]
        hit = masks_of(routing("random", 7, self.rank, tokens, self.world), self.world)
        hit[:, self.rank] = False
        if only is not None:
            hit[:] = False
            hit[:, (self.rank + only) % self.world] = True
        packed = (hit.long() << torch.arange(self.world)).sum(1).int().cuda()
        trace = torch.zeros(rounds + 2, 2, dtype=torch.int64, device="cuda")
        trace[:, 0] = (1 << 62)
        left = torch.zeros(1, dtype=torch.int32, device="cuda")
        m = self.member(128, False)
        stride = align(size, 128)
        for i in range(rounds + 2):
            args = PushArgs()
            for r in range(self.world):
                args.to[r] = self.push_to[r].address + self.rank * 4096 * stride
            args.masks, args.rows, args.row_bytes = packed.data_ptr(), tokens, size
            args.row_stride, args.trace_at = stride, i
            args.trace, args.left = trace.data_ptr(), left.data_ptr()
            args.ranks, args.rank = self.world, self.rank
            m.barrier()
            holder = (ctypes.c_void_p * 1)(ctypes.addressof(args))
            check(cuda.cuLaunchKernel(self.push_function, blocks, 1, 1, 32, 1, 1, size,
                                      torch.cuda.current_stream().cuda_stream,
                                      ctypes.addressof(holder), 0))
        torch.cuda.synchronize()
        times = self.slowest(((trace[2:, 1] - trace[2:, 0]).double() / 1e3).cpu().tolist())
        rows = max(self.gather(int(hit.sum())))
        p50 = spread(times)["p50_us"]
        return {"us": p50, "gbs": round(rows * size / p50 / 1e3, 1)}

    # ---- NCCL ----

    def nccl(self, tokens, fmt="fp8", count=20):
        """Pre-packed rows, known splits, captured in a graph: the wire and nothing else."""
        index = routing("random", 7, self.rank, tokens, self.world)
        found = {"tokens": tokens}
        tables = {"per_rank": masks_of(index, self.world).sum(0).tolist(),
                  "per_selection": torch.bincount(index.long().flatten() // (EXPERTS // self.world),
                                                  minlength=self.world).tolist()}
        for name, mine in tables.items():
            table = self.gather(mine)
            into = [table[s][self.rank] for s in range(self.world)]
            for half, size in (("dispatch", row_bytes(fmt)), ("combine", 2 * HIDDEN)):
                ours, theirs = (mine, into) if half == "dispatch" else (into, mine)
                a = torch.zeros(sum(ours), size, dtype=torch.uint8, device="cuda")
                b = torch.zeros(sum(theirs), size, dtype=torch.uint8, device="cuda")
                call = lambda: dist.all_to_all_single(b, a, theirs, ours)  # noqa: E731,B023
                for _ in range(3):
                    call()
                torch.cuda.synchronize()
                graph = self.captured(call, count)
                found[f"{name}_{half}_us"] = self.wall(graph.replay, count, 10)
        return found

    def wall(self, body, count, repeat):
        """Events around `count` calls, the slowest rank, the median of `repeat`."""
        for _ in range(2):
            body()
        times = []
        for _ in range(repeat):
            self.sync()
            a, b = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            a.record()
            body()
            b.record()
            torch.cuda.synchronize()
            times.append(a.elapsed_time(b) * 1e3 / count)
        return spread(self.slowest(times))["p50_us"]

    def end_to_end(self, tokens, repeat=20):
        """What a program does with torch and NCCL: sort, exchange counts, rows, scales and experts,
        group by expert; and back with the weighted sum. Already quantised input: that is given away."""
        index = routing("random", 7, self.rank, tokens, self.world).cuda().long()
        q = torch.zeros(tokens, HIDDEN, dtype=torch.uint8, device="cuda")
        scales = torch.zeros(tokens, groups_of(HIDDEN), device="cuda")
        weights = torch.rand(tokens, TOPK, device="cuda")
        local, world = EXPERTS // self.world, self.world

        def call():
            flat = index.flatten()
            order = flat.argsort(stable=True)
            token = order // TOPK
            counts = torch.bincount(flat // local, minlength=world)
            theirs = torch.empty_like(counts)
            dist.all_to_all_single(theirs, counts)
            send, receive = torch.stack([counts, theirs]).tolist()
            rows = torch.empty(sum(receive), HIDDEN, dtype=torch.uint8, device="cuda")
            marks = torch.empty(sum(receive), groups_of(HIDDEN), device="cuda")
            experts = torch.empty(sum(receive), dtype=torch.int64, device="cuda")
            dist.all_to_all_single(rows, q[token], receive, send)
            dist.all_to_all_single(marks, scales[token], receive, send)
            dist.all_to_all_single(experts, flat[order], receive, send)
            grouped = experts.argsort(stable=True)
            rows, marks = rows[grouped], marks[grouped]
            y = self.fake_y[:len(rows)]
            back = torch.empty_like(y)
            back[grouped] = y
            home = torch.empty(len(flat), HIDDEN, dtype=torch.bfloat16, device="cuda")
            dist.all_to_all_single(home, back, send, receive)
            out = torch.zeros(tokens, HIDDEN, device="cuda")
            out.index_add_(0, token, home.float() * weights.flatten()[order][:, None])
            return out.bfloat16()

        self.fake_y = torch.zeros(tokens * TOPK * 2 + 4096, HIDDEN, dtype=torch.bfloat16, device="cuda")
        return {"tokens": tokens, "pair_us": self.wall(call, 1, repeat)}

    def pair_wall(self, tokens, eager=False, count=20):
        """Our pair by events, as the NCCL rows are taken: no barrier, launches included."""
        self.pair(tokens, replays=2)
        m, _, fmt, _ = self.last
        dispatch = m.dispatch_args(m.x[:tokens], m.index, m.weights, m.outs[fmt], fmt)
        combine = m.combine_args(m.y, m.result)

        def step():
            m.dispatch(dispatch)
            m.combine(combine)
        graph = self.captured(step, count)
        found = {"tokens": tokens, "graph_us": self.wall(graph.replay, count, 10)}
        found["eager_us"] = self.wall(lambda: [step() for _ in range(count)], count, 10)
        return found

    # ---- CUPTI ----

    def profiled(self, tokens, select=False):
        self.pair(tokens, replays=1, select=select)
        _, graph, _, _ = self.last
        self.sync()
        from torch.profiler import ProfilerActivity, profile
        with profile(activities=[ProfilerActivity.CUDA]) as seen:
            for _ in range(5):
                graph.replay()
            torch.cuda.synchronize()
        found = {"tokens": tokens}
        events = sorted((e for e in seen.events() if e.name.startswith("relight_ep")),
                        key=lambda e: e.time_range.start)
        for half in ("dispatch", "combine"):
            mine = [e.time_range.elapsed_us() for e in events if half in e.name]
            found[half] = spread(self.slowest(mine))
            found[half + "_mean_us"] = round(sum(map(float, self.gather(sum(mine) / len(mine)))) / self.world, 2)
        return found

    # ---- Correct on this machine, with these links ----

    def verify(self, tokens, fmt):
        self.pair(tokens, fmt=fmt, replays=1, count=2)
        m, _, _, _ = self.last
        out = m.outs[fmt]
        table = ep_check.tables(ep_check.placement(EXPERTS, self.world, EXPERTS // self.world, False))
        everyone = {r: reference.inputs(5, r, tokens, HIDDEN, TOPK, EXPERTS) for r in range(self.world)}
        x, index, weights = everyone[self.rank]
        alive, outcomes = (1 << self.world) - 1, set()
        for _ in range(20):
            ep_check.poison(out)
            self.sync()
            m.dispatch(m.dispatch_args(x, index, weights, out, fmt))
            torch.cuda.synchronize()
            if not outcomes:
                ep_check.assert_dispatched(m, out, fmt, everyone, table, alive)
                y = ep_check.expert_outputs(m, out, fmt, table)
            self.sync()
            result = torch.full((tokens, HIDDEN), float("nan"), dtype=torch.bfloat16, device="cuda")
            m.combine(m.combine_args(y, result))
            torch.cuda.synchronize()
            words = [out["x"], out["source"], result]
            outcomes.add(tuple(int(w.view(torch.uint8).view(-1).view(torch.int32).long().sum()) for w in words))
        worst = ep_check.assert_home(result, everyone[self.rank], table, fmt, alive, "verify")
        assert len(outcomes) == 1, f"{len(outcomes)} different outcomes"
        return {"tokens": tokens, "format": fmt, "row_error_max": max(self.gather(worst)), "equal_repeats": 20}

    def run(self):
        o = self.options
        plan = [("push", lambda: {**self.push(4096, 7392), "one_peer": self.push(4096, 7392, only=1),
                                  "combine_rows": self.push(4096, 2 * HIDDEN),
                                  "at_128_fp8": self.push(128, 7392),
                                  "at_128_bf16": self.push(128, 2 * HIDDEN),
                                  "blocks_16": self.push(4096, 7392, 16),
                                  "blocks_64": self.push(4096, 7392, 64)})]
        plan += [(f"verify_{t}_{f}", lambda t=t, f=f: self.verify(t, f))
                 for t, f in ((128, "fp8"), (128, "bf16"), (1024, "fp8_ue8m0"))]
        plan += [(f"pair_{t}", lambda t=t: self.pair(t)) for t in o["sweep"]]
        plan += [(f"select_{t}", lambda t=t: self.pair(t, select=True))
                 for t in o["sweep"] if t in (1, 8, 32, 128, 512, 1024)]
        plan += [("pair_128_perfect", lambda: self.pair(128, route="perfect")),
                 ("pair_128_skewed", lambda: self.pair(128, route="skewed")),
                 ("pair_128_cold", lambda: self.pair(128, cold=True)),
                 ("select_128_cold", lambda: self.pair(128, cold=True, select=True)),
                 ("pair_128_bf16", lambda: self.pair(128, fmt="bf16")),
                 ("pair_128_ue8m0", lambda: self.pair(128, fmt="fp8_ue8m0")),
                 ("pair_128_zero_copy", lambda: self.pair(128, flags=C["EP_ZERO_COPY"])),
                 ("pair_128_blocks_64", lambda: self.pair(128, blocks=64)),
                 ("pair_128_blocks_32", lambda: self.pair(128, blocks=32)),
                 ("pair_4096_blocks_64", lambda: self.pair(4096, blocks=64)),
                 ("profiler_1", lambda: self.profiled(1)), ("profiler_128", lambda: self.profiled(128)),
                 ("profiler_select_128", lambda: self.profiled(128, True))]
        plan += [(f"wall_{t}", lambda t=t: self.pair_wall(t)) for t in (1, 128, 1024)]
        if o["nccl"]:
            plan += [(f"nccl_{t}", lambda t=t: self.nccl(t)) for t in (1, 128, 1024, 4096)]
            plan += [(f"end_to_end_{t}", lambda t=t: self.end_to_end(t)) for t in (1, 128, 1024)]
        for name, body in plan:
            if o["only"] and not any(name.startswith(p) for p in o["only"].split(",")):
                continue
            try:
                self.results[name] = body()
            except Exception:
                self.results[name] = {"error": traceback.format_exc()[-600:]}
                if self.rank == 0:
                    print(name, "FAILED", self.results[name]["error"], flush=True)
                break
            if self.rank == 0:
                print(name, json.dumps(self.results[name]), flush=True)
                if o["out"]:
                    Path(o["out"]).write_text(json.dumps(self.results, indent=1))


def ep_check_fetch(card):
    from relight_host import fetch_fd
    return fetch_fd(card[0], card[1])


def body(rank, world, meeting, options):
    if options["nccl"]:
        dist.init_process_group("nccl", store=dist.PrefixStore("nccl", meeting.store), rank=rank,
                                world_size=world, device_id=torch.device("cuda", rank))
    Bench(rank, world, meeting, options).run()
    meeting.barrier(range(world), "bench/over")


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--ranks", type=int, default=torch.cuda.device_count())
    parser.add_argument("--out", default="")
    parser.add_argument("--only", default="", help="beginnings of measurement names, by comma")
    parser.add_argument("--sweep", default=",".join(map(str, SWEEP)))
    parser.add_argument("--no-nccl", action="store_true")
    parser.add_argument("--limit-s", type=int, default=200)
    o = parser.parse_args()
    options = {"out": o.out, "only": o.only, "nccl": not o.no_nccl,
               "sweep": [int(t) for t in o.sweep.split(",")]}
    began = time.time()
    rendezvous.run(o.ranks, body, (options,), limit_s=o.limit_s)
    print(f"{time.time() - began:.0f} s on {torch.cuda.device_count()} x {torch.cuda.get_device_name(0)}")


if __name__ == "__main__":
    main()
