# SPDX-License-Identifier: Apache-2.0
"""Dispatch and combine against the reference, in several processes on one GPU or more.

    python3 kernels/test/ep_check.py [--ranks 4] [--only NAME]

Payload, scales, lists, counts: bit for bit. Combine: each row's relative L2 error against f64 of the
dequantised inputs < 4e-3, no NaN. Windows start as NaN, outputs are NaN before each step, rows
beyond the count must stay so. Every failure ends the run with its case.
"""
import argparse
import ctypes
import os
import signal
import sys
import time

import torch
from cuda.bindings import driver as cuda

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import ep_reference as reference  # noqa: E402
import rendezvous  # noqa: E402
from relight_host import C, Rank, align, check  # noqa: E402

ROW_ERROR_MAX = 4e-3


def config_of(world, tokens_max=128, hidden=7168, topk=8, experts=256, parities=1, **_):
    return {"ranks_max": world, "tokens_max": tokens_max, "hidden": hidden, "topk": topk,
            "experts_max": experts, "local_experts_max": (experts + world - 1) // world,
            "parities": parities, "select_rows": 0}


def placement(experts, world, local, shuffled):
    order = torch.arange(world * local)
    if shuffled:
        order = order[torch.randperm(world * local, generator=torch.Generator().manual_seed(5))]
    return [(int(p) // local, int(p) % local) for p in order[:experts]]


def tables(table):
    return (torch.tensor([o[0] for o in table], device="cuda"),
            torch.tensor([o[1] for o in table], device="cuda"))


def join_all(rank, world, meeting, config, name, **options):
    member = Rank(rank, config, **options)
    cards = meeting.gather(member.card(), range(world), f"{name}/cards")
    member.peers = [member.connect(r, cards[r]) for r in range(world) if r != rank]
    return member


def poison(out):
    for key in ("x", "scales", "source", "range"):
        out[key].view(torch.uint8).fill_(0xFF)


def quantised(config, everyone, fmt):
    """Payload and scale words by source * tokens_max + token."""
    payload = scales = None
    for source, (x, _, _) in everyone.items():
        rows, words, _ = reference.quantise(x, fmt)
        if payload is None:
            total = config["ranks_max"] * config["tokens_max"]
            payload = torch.zeros(total, rows.shape[1], dtype=torch.uint8, device="cuda")
            if words is not None:
                scales = torch.zeros(total, words.shape[1], dtype=torch.int32, device="cuda")
        first = source * config["tokens_max"]
        payload[first:first + len(x)] = rows
        if words is not None:
            scales[first:first + len(x)] = words
    return payload, scales


def assert_dispatched(member, out, fmt, everyone, table, alive, zero_copy=False):
    config = member.config
    tokens_max, local = config["tokens_max"], config["local_experts_max"]
    rows = reference.expected_rows(member.rank, table, everyone, tokens_max, local, alive)
    payload, scales = quantised(config, everyone, fmt)
    counts = out["count"].tolist()
    assert counts == [len(r) for r in rows], f"counts {counts} want {[len(r) for r in rows]}"
    for l, wanted in enumerate(rows):
        n = len(wanted)
        assert torch.equal(out["source"][l, :n].long(), wanted), f"rows of expert {l}"
        per_source = [(wanted // tokens_max == s).sum().item() for s in range(config["ranks_max"])]
        first = 0
        for s, (have, want) in enumerate(zip(out["range"][l].tolist(), per_source)):
            assert have == first << 32 | want, f"range of expert {l}, source {s}"
            first += want
        if zero_copy:
            continue
        assert (out["x"][l, n:] == 0xFF).all(), f"expert {l}: rows beyond the count were written"
        if n == 0:
            continue
        assert torch.equal(out["x"][l, :n], payload[wanted]), f"payload of expert {l}"
        if fmt != "bf16":
            assert torch.equal(out["scales"][l, :, :n].T, scales[wanted]), f"scales of expert {l}"
            assert (out["scales"][l, :, n:] == -1).all(), f"scales beyond the count of expert {l}"


def assert_window_rows(member, out, fmt, everyone):
    """Zero copy: the listed rows lie in the window."""
    state, config = member.read(), member.config
    tokens_max = config["tokens_max"]
    parity = state.dispatch_received % config["parities"]
    payload, _ = quantised(config, everyone, fmt)
    bytes_row = config["hidden"] * (2 if fmt == "bf16" else 1)
    row = torch.empty(bytes_row, dtype=torch.uint8, device="cuda")
    for l, n in enumerate(out["count"].tolist()):
        for place in range(min(n, 3)):
            at = int(out["source"][l, place])
            address = member.window.address + state.row_at + (
                parity * config["ranks_max"] * tokens_max + at) * state.row_stride + align(
                4 * config["topk"], 16)
            check(cuda.cuMemcpyDtoD(row.data_ptr(), address, bytes_row))
            assert torch.equal(row, payload[at]), "row in the window"


def expert_outputs(member, out, fmt, table):
    """y = bf16(dequantised * gain) in dispatch's places; NaN where no row is."""
    config = member.config
    local, hidden = config["local_experts_max"], config["hidden"]
    slots = out["source"].shape[1]
    y = torch.full((local, slots, hidden), float("nan"), dtype=torch.bfloat16, device="cuda")
    globals_of = {}
    for expert in range(config["experts_max"]):
        if int(table[0][expert]) == member.rank:
            globals_of[int(table[1][expert])] = expert
    for l, n in enumerate(out["count"].tolist()):
        if n == 0:
            continue
        if fmt == "bf16":
            x = out["x"][l, :n].view(torch.bfloat16).float()
        else:
            q = out["x"][l, :n].view(torch.float8_e4m3fn).float()
            words = out["scales"][l, :, :n].T.contiguous()
            if fmt == "fp8_ue8m0":
                scale = (words.view(torch.uint8).int() << 23).view(torch.float32)
            else:
                scale = words.view(torch.float32)
            x = q * scale.repeat_interleave(128, dim=1)[:, :hidden]
        y[l, :n] = (x * reference.gain(torch.tensor(globals_of[l], device="cuda"))).bfloat16()
    return y


def assert_home(result, mine, table, fmt, alive, where):
    wanted = reference.expected_home(mine, table, fmt, alive)
    assert torch.isfinite(result).all(), f"{where}: NaN or infinity"
    size = wanted.norm(dim=1)
    error = (result.double() - wanted).norm(dim=1) / size.clamp(min=1e-30)
    error = torch.where(size == 0, result.double().norm(dim=1), error)
    worst = float(error.max()) if len(error) else 0.0
    assert worst < ROW_ERROR_MAX, f"{where}: relative error of a row is {worst}"
    return worst


def run_case(rank, world, meeting, name, case):
    config = config_of(world, **case)
    fmt, iterations = case.get("fmt", "fp8"), case.get("iterations", 4)
    hook, late = case.get("hook", False), case.get("late_weights", False)
    zero_copy = case.get("zero_copy", False)
    member = join_all(rank, world, meeting, config, name, timeout_ms=20_000,
                      blocks=case.get("blocks", 132))
    placed = placement(config["experts_max"], world, config["local_experts_max"],
                       case.get("shuffled", False))
    member.own(placed)
    table = tables(placed)
    alive = (1 << world) - 1
    member.activate(alive, 1)
    meeting.barrier(range(world), f"{name}/ready")
    worst = 0.0
    for turn in range(iterations):
        everyone = {}
        for r in range(world):
            tokens = case["tokens"][r % len(case["tokens"])]
            only = range(config["local_experts_max"]) if case.get("all_to_one") else None
            everyone[r] = reference.inputs(turn + 1, r, tokens, config["hidden"], config["topk"],
                                           config["experts_max"], case.get("holes", 0), only)
        if case.get("duplicates"):
            for r in range(world):
                everyone[r][1][:, 1] = everyone[r][1][:, 0]
        x, index, weights = everyone[rank]
        index = index.long() if turn % 2 else index
        out = member.outputs(fmt)
        poison(out)
        torch.cuda.synchronize()
        meeting.barrier(range(world), f"{name}/{turn}/dispatch")  # nobody spins while others prepare
        flags = C["EP_ZERO_COPY"] if zero_copy else 0
        for phase in (1, 2) if hook else (3,):
            member.dispatch(member.dispatch_args(x, index, None if late else weights, out, fmt,
                                                 flags | phase))
        torch.cuda.synchronize()
        assert_dispatched(member, out, fmt, everyone, table, alive, zero_copy)
        if zero_copy:
            assert_window_rows(member, out, fmt, everyone)
            packed = member.outputs(fmt)  # the reference's rows, so that combine has an input
            fill_packed(member, packed, out, fmt, everyone)
            y = expert_outputs(member, packed, fmt, table)
        else:
            y = expert_outputs(member, out, fmt, table)
        result = torch.full((len(x), config["hidden"]), float("nan"), dtype=torch.bfloat16,
                            device="cuda")
        torch.cuda.synchronize()
        meeting.barrier(range(world), f"{name}/{turn}/combine")
        for phase in (1, 2) if hook else (3,):
            member.combine(member.combine_args(y, result, weights if late else None, phase))
        torch.cuda.synchronize()
        worst = max(worst, assert_home(result, everyone[rank], table, fmt, alive, name))
        record = member.record()
        assert (record.dispatch.failed, record.combine.failed) == (0, 0), "a good step has no failure"
        assert record.dispatch.epoch == record.combine.epoch == turn + 1, "one epoch a step"
    if rank == 0:
        print(f"ok   {name}: worst row error {worst:.2e}", flush=True)
    meeting.barrier(range(world), f"{name}/done")


def fill_packed(member, packed, out, fmt, everyone):
    payload, scales = quantised(member.config, everyone, fmt)
    packed["count"].copy_(out["count"])
    for l, n in enumerate(out["count"].tolist()):
        rows = out["source"][l, :n].long()
        packed["x"][l, :n] = payload[rows]
        if scales is not None:
            packed["scales"][l, :, :n] = scales[rows].T


def run_stable(rank, world, meeting, name, case):
    """The same input gives the same bits, 20 times, eager and from a graph."""
    config = config_of(world, **case)
    fmt = case.get("fmt", "fp8")
    member = join_all(rank, world, meeting, config, name, timeout_ms=20_000)
    placed = placement(config["experts_max"], world, config["local_experts_max"], True)
    member.own(placed)
    member.activate((1 << world) - 1, 1)
    x, index, weights = reference.inputs(3, rank, case["tokens"][0], config["hidden"],
                                         config["topk"], config["experts_max"])
    out = member.outputs(fmt)
    y = torch.randn(out["source"].shape + (config["hidden"],), device="cuda",
                    generator=torch.Generator("cuda").manual_seed(rank)).bfloat16()
    result = torch.empty(len(x), config["hidden"], dtype=torch.bfloat16, device="cuda")
    first = None
    dispatch, combine = member.dispatch_args(x, index, weights, out, fmt), member.combine_args(y, result)
    meeting.barrier(range(world), f"{name}/ready")

    def seen():
        torch.cuda.synchronize()
        return [t.clone() for t in (out["x"], out["scales"], out["source"], out["range"], result)]

    def compare(where):
        nonlocal first
        now = seen()
        if first is None:
            first = now
        for a, b in zip(first, now):
            assert torch.equal(a.view(torch.uint8), b.view(torch.uint8)), f"bits differ in {where}"

    for turn in range(10):
        poison(out)
        torch.cuda.synchronize()
        meeting.barrier(range(world), f"{name}/eager{turn}")
        member.dispatch(dispatch)
        member.combine(combine)
        compare(f"eager {turn}")
    stream = torch.cuda.Stream()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        member.dispatch(dispatch)
        member.combine(combine)
    for turn in range(10):
        poison(out)
        torch.cuda.synchronize()
        meeting.barrier(range(world), f"{name}/graph{turn}")
        graph.replay()
        compare(f"graph {turn}")
    if rank == 0:
        print(f"ok   {name}: 20 equal outcomes, eager and graph", flush=True)
    meeting.barrier(range(world), f"{name}/done")


def run_elastic(rank, world, meeting, name, fmt):
    """One graph, captured with 2 ranks, replays with all, after a SIGKILL and after a second one.

    The first death is found by the kernels' deadline, the second by the host's mask."""
    config = config_of(world, tokens_max=64)
    member = join_all(rank, world, meeting, config, name, timeout_ms=20_000)
    placed = placement(config["experts_max"], world, config["local_experts_max"], True)
    member.own(placed)
    table = tables(placed)
    x = torch.zeros(64, config["hidden"], dtype=torch.bfloat16, device="cuda")
    index = torch.zeros(64, config["topk"], dtype=torch.int32, device="cuda")
    weights = torch.zeros(64, config["topk"], device="cuda")
    out = member.outputs(fmt)
    result = torch.empty_like(x)
    y = torch.empty(out["source"].shape + (config["hidden"],), dtype=torch.bfloat16, device="cuda")
    stream = torch.cuda.Stream()
    graphs = [torch.cuda.CUDAGraph(), torch.cuda.CUDAGraph()]
    with torch.cuda.graph(graphs[0], stream=stream):
        member.dispatch(member.dispatch_args(x, index, weights, out, fmt))
    with torch.cuda.graph(graphs[1], stream=stream):
        member.combine(member.combine_args(y, result))
    everyone = {}

    def together(members, where):
        torch.cuda.synchronize()
        meeting.barrier([r for r in range(world) if members >> r & 1], f"{name}/{where}")

    def load(turn, members):
        everyone.clear()
        for r in range(world):
            if members >> r & 1:
                everyone[r] = reference.inputs(turn, r, 64, config["hidden"], config["topk"],
                                               config["experts_max"], holes=5)
        for to, value in zip((x, index, weights), everyone[rank]):
            to.copy_(value)
        poison(out)
        result.fill_(float("nan"))
        torch.cuda.synchronize()

    def iterate(turn, members, alive, failed=0):
        load(turn, members)
        together(members, f"{turn}/dispatch")
        graphs[0].replay()
        torch.cuda.synchronize()
        assert_dispatched(member, out, fmt, everyone, table, alive)
        y.copy_(expert_outputs(member, out, fmt, table))
        together(members, f"{turn}/combine")
        graphs[1].replay()
        torch.cuda.synchronize()
        assert_home(result, everyone[rank], table, fmt, alive, f"{name} turn {turn}")
        assert member.record().dispatch.failed == failed, member.record().dispatch.failed

    two, all_of = 0b11, (1 << world) - 1
    # Phase 1: two ranks run, the others are mapped and masked.
    member.activate(two, 1)
    meeting.barrier(range(world), f"{name}/two")
    if rank < 2:
        for turn in range(1, 4):
            iterate(turn, two, two)
    meeting.barrier(range(world), f"{name}/joining")
    # Phase 2: all flip at epoch 4; joiners take over the epoch.
    if rank >= 2:
        for field in ("dispatch_sent", "dispatch_received", "combine_sent", "combine_received"):
            member.poke(field, 3)
    for r in range(2, world):
        member.activate(1 << r, 4)
    if rank >= 2:
        for r in range(2):
            member.poke("on_at", 4, r)
    member.poke("active", all_of)
    meeting.barrier(range(world), f"{name}/joined")
    for turn in range(4, 7):
        iterate(turn, all_of, all_of)
    # Phase 3: the last rank is killed; the kernels' deadline finds it.
    victim = world - 1
    alive = all_of & ~(1 << victim)
    if rank == victim:
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(0.3)
    member.poke("timeout_ns", 1_500_000_000)
    began = time.time()
    iterate(7, alive, alive, failed=1 << victim)
    found_s = time.time() - began
    fault = member.record().fault
    assert fault.count >= 1 and fault.peer == victim, (fault.count, fault.peer)
    member.poke("active", alive)
    member.poke("suspect", 0)
    member.poke("timeout_ns", 60_000_000_000)
    meeting.barrier([r for r in range(world) if alive >> r & 1], f"{name}/verdict")
    for turn in range(8, 10):
        iterate(turn, alive, alive)
    # Phase 4: another one is killed; the host masks it from a second stream while kernels spin.
    second = world - 2
    left = alive & ~(1 << second)
    if rank == second:
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(0.3)
    load(10, left)
    together(left, "10/dispatch")
    graphs[0].replay()
    time.sleep(0.2)
    spinning = not torch.cuda.current_stream().query()
    masked = time.time()
    member.poke("active", left)
    torch.cuda.synchronize()
    freed_ms = (time.time() - masked) * 1e3
    assert spinning, "the kernel must still have waited for the dead rank"
    assert_dispatched(member, out, fmt, everyone, table, left)
    y.copy_(expert_outputs(member, out, fmt, table))
    together(left, "10/combine")
    graphs[1].replay()
    torch.cuda.synchronize()
    assert_home(result, everyone[rank], table, fmt, left, name)
    for turn in range(11, 13):
        iterate(turn, left, left)
    if rank == 0:
        print(f"ok   {name}: one graph through 2 -> {world} -> {world - 1} -> {world - 2} ranks; "
              f"deadline found the death in {found_s:.2f} s (limit 1.5), the mask freed the kernel "
              f"in {freed_ms:.1f} ms", flush=True)


CASES = {
    "fp8 reference shape": {"tokens": [128]},
    "bf16": {"tokens": [128], "fmt": "bf16"},
    "fp8 powers of two, int64 and hook": {"tokens": [64], "fmt": "fp8_pow2", "hook": True,
                                          "shuffled": True},
    "ue8m0, two parities": {"tokens": [40], "fmt": "fp8_ue8m0", "parities": 2, "iterations": 5},
    "uneven tokens, none on one rank, holes": {"tokens": [128, 0, 17, 96], "holes": 10,
                                               "shuffled": True},
    "one token, weights with combine": {"tokens": [1], "late_weights": True},
    "all tokens to one rank": {"tokens": [64], "all_to_one": True},
    "duplicate choices": {"tokens": [33], "duplicates": True, "fmt": "bf16", "hidden": 4096},
    "2880 hidden, top 4 of 128": {"tokens": [77], "hidden": 2880, "topk": 4, "experts": 128},
    "2880 hidden bf16, top 1": {"tokens": [50], "hidden": 2880, "topk": 1, "experts": 64,
                                "fmt": "bf16"},
    "2048 hidden, top 16 of 512, zero copy": {"tokens": [24], "hidden": 2048, "topk": 16,
                                              "experts": 512, "zero_copy": True},
    "2048 tokens, few blocks": {"tokens": [2048, 1500], "tokens_max": 2048, "hidden": 2048,
                                "experts": 64, "blocks": 24, "iterations": 2},
}

STABLE = {"stable bits fp8": {"tokens": [100]}, "stable bits bf16": {"tokens": [100], "fmt": "bf16"}}


def run_all(rank, world, meeting, names):
    for name in names:
        body = run_stable if name in STABLE else run_case
        body(rank, world, meeting, name, {**CASES, **STABLE}[name])


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--ranks", type=int, default=4)
    parser.add_argument("--only", default="")
    options = parser.parse_args()
    world, failed = options.ranks, 0
    names = [n for n in (*CASES, *STABLE) if options.only in n]
    plan = [("cases", run_all, (names,), ())] if names else []
    if world >= 4 and options.only in "elastic":
        plan.append(("elastic", run_elastic, ("elastic", "fp8"), (world - 1, world - 2)))
    for name, body, arguments, may_die in plan:
        began = time.time()
        try:
            rendezvous.run(world, body, arguments, may_die, limit_s=120)
        except Exception as problem:
            failed += 1
            print(f"FAIL {name}: {str(problem)[-1500:]}", flush=True)
        print(f"     {name}: {time.time() - began:.1f} s", flush=True)
    print(f"{failed} failed on {torch.cuda.device_count()} x {torch.cuda.get_device_name(0)}")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
