# SPDX-License-Identifier: Apache-2.0
"""Expert-parallel dispatch and combine on torch's current stream, with the names and meanings of
NIXL-EP's Buffer: ranks connect, disconnect and die while the others go on, and captured graphs stay valid.

What differs, and why it is safe: weights apply where the expert lives; the window is laid out by the first
dispatch, which must not be captured; nothing has to be cleared, so `clean_mask_buffer` clears masks alone.
A rank that is let in (`connect_ranks(activate=True)`, `update_mask_buffer(rank, False)`) is let in by both
sides at the same point of their loops: the call waits for the peer's. docs/operations.md has an example.
"""

import ctypes
import os

from . import ep_abi as abi
from .agent import AgentError
from .ep_memory import Cuda, Module, Slots, Window
from .ep_peers import Peers

_C, _S = abi.C, abi.S
_PARITIES = 2  # As many steps may be in flight as callers of the hook interface have.
_SEND, _RECEIVE = _C["EP_SEND"], _C["EP_RECEIVE"]
DIRECTORY_VARIABLE = "RELIGHT_EP_DIRECTORY"


class Event:
    """What is enqueued so far, as `async_finish` gives it."""

    def __init__(self, torch):
        self._torch = torch
        self._event = torch.cuda.Event()
        self._event.record()

    def current_stream_wait(self):
        self._torch.cuda.current_stream().wait_event(self._event)


class Buffer:
    """One rank's window and kernels. Bound to the current device at `update_memory_buffers`."""

    def __init__(self, disable_ll_nvlink=False, explicitly_destroy=False, rank=0, low_latency_mode=True,
                 group=None, comm=None, tcp_store_group=None, timeout_ms=30_000, directory=None, blocks=None):
        """directory: where the ranks of one group find each other; RELIGHT_EP_DIRECTORY when None.
        blocks: of each launch, one an SM when None. group, comm, tcp_store_group: not needed."""
        if disable_ll_nvlink or not low_latency_mode:
            raise AgentError("request_invalid", "Cannot make a buffer without NVLink's low-latency kernels")
        import torch

        self._torch, self.rank, self.timeout_ms, self._blocks = torch, rank, timeout_ms, blocks
        self._directory = directory or os.environ.get(DIRECTORY_VARIABLE) or "/run/relight/ep"
        self.explicitly_destroy = explicitly_destroy
        self.incarnation = 1 + int.from_bytes(os.urandom(2), "little") % 65_534  # 65535 is what an empty window holds.
        self._incarnations, self._meetings, self._active = {}, {}, 1 << rank
        self._shape = None
        self._is_open = False

    # ---- Memory and membership ----

    def update_memory_buffers(self, num_ranks, num_experts_per_rank, num_rdma_bytes, num_nvl_bytes=0):
        """Takes all the memory that the rank will ever need, for at most so many ranks. Once."""
        if self._is_open:
            raise AgentError("conflict", "Cannot size the buffer again: it has its memory already")
        torch = self._torch
        torch.cuda.init()
        self.num_ranks, self.num_local_experts = num_ranks, num_experts_per_rank
        self._cuda = Cuda(torch.cuda.current_device())
        self._blocks = self._blocks or torch.cuda.get_device_properties(None).multi_processor_count
        self._control = torch.cuda.Stream()
        self._state = torch.zeros(ctypes.sizeof(abi.State), dtype=torch.uint8, device="cuda")
        self._staged = torch.zeros(ctypes.sizeof(abi.State), dtype=torch.uint8).pin_memory()
        size = ctypes.sizeof(_S["RelightEpHostRecord"])
        self._record = torch.zeros(size, dtype=torch.uint8).pin_memory()
        image = (abi.KERNELS / "build/relight.sm_90.cubin").read_bytes()
        self._module = Module(self._cuda, image)
        self._window = Window(self._cuda, num_rdma_bytes)
        self._slots = Slots(self._cuda, num_ranks, self._window.bytes)
        experts = torch.arange(num_ranks * num_experts_per_rank)
        owners = (experts // num_experts_per_rank) << 16 | experts % num_experts_per_rank
        self._owners = owners.int().cuda()
        torch.cuda.synchronize()
        self._peers = Peers(self._directory, self.rank, self._card)
        self._is_open = True

    def connect_ranks(self, remote_ranks, activate=True):
        """Maps peers' windows; the others may run meanwhile. Known ranks and our own are left out."""
        new = [r for r in remote_ranks if r != self.rank and r not in self._incarnations]
        for rank in new:
            descriptor, size, incarnation = self._peers.window(rank, self._timeout_s)
            self._slots.fill(rank, descriptor, size)
            self._incarnations[rank], self._meetings[rank] = incarnation, 0
        if activate and new:
            self._let_in(new)

    def disconnect_ranks(self, remote_ranks):
        """Masks and unmaps; a later connect finds a rank of the same number that was started again."""
        gone = [r for r in remote_ranks if r in self._incarnations]
        self._mask(self._active & ~sum(1 << r for r in gone))
        self._torch.cuda.synchronize()
        for rank in gone:
            self._slots.empty(rank)
            del self._incarnations[rank], self._meetings[rank]
        self._forget(sum(1 << r for r in gone))

    def update_mask_buffer(self, rank, mask):
        """True: leave the rank out at once, also under a kernel that waits for it. False: let it in."""
        if mask:
            self._mask(self._active & ~(1 << rank))
        elif rank != self.rank:
            self._let_in([rank])

    def query_mask_buffer(self, mask_status):
        """int32 [ranks], not zero where a rank is left out: masked, suspected or never connected."""
        state = self._read()
        present = self._active & ~state.suspect
        status = [0 if present >> r & 1 else 1 for r in range(self.num_ranks)]
        mask_status.copy_(self._torch.tensor(status, dtype=mask_status.dtype))

    def clean_mask_buffer(self):
        """Everybody connected is in again and nobody is suspected."""
        self._torch.cuda.synchronize()
        self._forget((1 << self.num_ranks) - 1)
        self._mask(1 << self.rank | sum(1 << r for r in self._incarnations))

    def query_fault(self):
        """(faults so far, epoch, phase, rank) of the latest wait that was given up; no synchronisation."""
        fault = self._host_record().fault
        return fault.count, fault.epoch, fault.phase, fault.peer

    def last_failed(self):
        """Ranks, as a mask, that failed in the last finished dispatch and combine."""
        record = self._host_record()
        return record.dispatch.failed, record.combine.failed

    def barrier(self):
        self._call("relight_ep_barrier", _S["RelightEpBarrierArgs"](self._state.data_ptr()), 1, 32)

    def destroy(self):
        self._torch.cuda.synchronize()
        self._peers.close()
        self._slots.close()
        self._window.close()
        self._is_open = False

    # ---- Exchange ----

    @staticmethod
    def get_low_latency_buffer_size_hint(num_max_dispatch_tokens_per_rank, hidden, num_ranks, num_experts):
        """Bytes of the window, for up to 16 choices a token."""
        return abi.needs(_config(num_max_dispatch_tokens_per_rank, hidden, _C["EP_TOPK_MAX"], num_ranks,
                                 num_experts))[0]

    get_rdma_size_hint = get_low_latency_buffer_size_hint

    def low_latency_dispatch(self, x, topk_idx, num_max_dispatch_tokens_per_rank, num_experts=None,
                             cumulative_local_expert_recv_stats=None, dispatch_wait_recv_cost_stats=None,
                             use_fp8=True, round_scale=False, use_ue8m0=False, async_finish=False,
                             return_recv_hook=False):
        """-> (received, counts, handle, event, hook), expert-major as low-latency libraries give it."""
        _refuse(dispatch_wait_recv_cost_stats is not None, "cost statistics")
        torch, (tokens, hidden), topk = self._torch, x.shape, topk_idx.shape[1]
        self._lay_out(num_max_dispatch_tokens_per_rank, hidden, topk)
        local, slots = self.num_local_experts, self.num_ranks * self._shape["tokens_max"]
        groups = abi.groups_of(hidden)
        new = lambda *size, kind: torch.empty(size, dtype=kind, device="cuda")  # noqa: E731
        rows = new(local, slots, hidden, kind=torch.float8_e4m3fn if use_fp8 else torch.bfloat16)
        words = (groups + 3) // 4 if use_ue8m0 else groups
        scales = new(local, words, slots, kind=torch.int32 if use_ue8m0 else torch.float32) if use_fp8 else None
        source, ranges = new(local, slots, kind=torch.int32), new(local, self.num_ranks, kind=torch.int64)
        count = new(local, kind=torch.int32)
        args = _S["RelightEpDispatchArgs"]()
        args.state, args.x, args.topk_index = self._state.data_ptr(), x.data_ptr(), topk_idx.data_ptr()
        args.token_count, args.slots = tokens, slots
        args.format = 0 if not use_fp8 else 3 if use_ue8m0 else 2 if round_scale else 1
        args.flags = _C["EP_INDEX_64"] if topk_idx.dtype == torch.int64 else 0
        args.out_x, args.out_scales = rows.data_ptr(), scales.data_ptr() if use_fp8 else 0
        args.out_source, args.out_range = source.data_ptr(), ranges.data_ptr()
        args.out_count = count.data_ptr()
        name = f"relight_ep_dispatch_{'fp8' if use_fp8 else 'bf16'}"
        kept = (x, topk_idx, rows, scales, source, ranges, count)

        def after():
            if cumulative_local_expert_recv_stats is not None:
                cumulative_local_expert_recv_stats.add_(count)

        hook = self._halves(name, args, _C["EP_DISPATCH_SHARED"], return_recv_hook, after, kept)
        received = (rows, scales.transpose(1, 2)) if use_fp8 else rows
        handle = (source, ranges, self._shape["tokens_max"], hidden, num_experts or local * self.num_ranks)
        return received, count, handle, Event(torch) if async_finish else None, hook

    def low_latency_combine(self, x, topk_idx, topk_weights, handle, use_logfmt=False, zero_copy=False,
                            async_finish=False, return_recv_hook=False, out=None,
                            combine_wait_recv_cost_stats=None):
        """-> (combined, event, hook). A dead owner's part is missing; nothing is renormalised."""
        _refuse(use_logfmt, "LogFMT")
        _refuse(combine_wait_recv_cost_stats is not None, "cost statistics")
        torch, hidden = self._torch, handle[3]
        if out is None:
            out = torch.empty(topk_idx.shape[0], hidden, dtype=torch.bfloat16, device="cuda")
        y = self._staging if zero_copy else x
        args = _S["RelightEpCombineArgs"]()
        args.state, args.y, args.out = self._state.data_ptr(), y.data_ptr(), out.data_ptr()
        args.slots, args.flags = self.num_ranks * self._shape["tokens_max"], _C["EP_WEIGHTS"]
        args.topk_weights = topk_weights.data_ptr()
        kept = (y, topk_weights, out)
        hook = self._halves("relight_ep_combine", args, _C["EP_COMBINE_SHARED"], return_recv_hook,
                            lambda: None, kept)
        return out, Event(torch) if async_finish else None, hook

    dispatch, combine = low_latency_dispatch, low_latency_combine

    def get_next_low_latency_combine_buffer(self, handle):
        """Where experts may write their outputs for `zero_copy`: the same memory each time."""
        shape = (self.num_local_experts, self.num_ranks * handle[2], handle[3])
        if getattr(self, "_staging", None) is None or self._staging.shape != shape:
            self._staging = self._torch.empty(shape, dtype=self._torch.bfloat16, device="cuda")
        return self._staging

    get_next_combine_buffer = get_next_low_latency_combine_buffer

    def get_comm_stream(self):
        """Launches go to the caller's stream; this is that one."""
        return self._torch.cuda.current_stream()

    def get_local_buffer_tensor(self, dtype, size=None, offset=0, use_rdma_buffer=False):
        """Callers clear it between uses; ours is never to be cleared, so there is nothing to give."""
        return self._torch.empty(0, dtype=dtype, device="cuda")

    def set_tcp_store_group(self, tcp_store_group):
        """Nothing: ranks find each other by their sockets."""

    # ---- Inside ----

    @property
    def _timeout_s(self):
        return self.timeout_ms / 1000

    def _card(self):
        self._cuda.adopt()  # This is the thread that answers peers.
        card = {"bytes": self._window.bytes, "incarnation": self.incarnation}
        return card, self._window.descriptor()

    def _halves(self, name, args, shared, is_split, after, kept):
        """Launches all of it, or the sending half now and the rest when the hook is called."""
        flags = args.flags
        args.flags = flags | (_SEND if is_split else _SEND | _RECEIVE)
        self._call(name, args, self._blocks, _C["EP_THREADS"], shared)
        if not is_split:
            after()
            return None

        def hook(kept=kept):  # What the kernel still reads lives as long as the hook.
            args.flags = flags | _RECEIVE
            self._call(name, args, self._blocks, _C["EP_THREADS"], shared)
            after()

        return hook

    def _call(self, name, args, blocks, threads, shared=0):
        stream = self._torch.cuda.current_stream().cuda_stream
        self._module.launch(name, args, blocks, threads, shared, stream)

    def _lay_out(self, tokens, hidden, topk):
        """The first dispatch decides the layout of the window, the same on all ranks."""
        experts = self.num_ranks * self.num_local_experts
        config = _config(tokens, hidden, topk, self.num_ranks, experts)
        if self._shape == config:
            return
        window, scratch = abi.needs(config)
        if self._shape is not None or window > self._window.bytes:
            raise AgentError("request_invalid", f"Cannot dispatch {config}: laid out for {self._shape}, "
                                                f"{self._window.bytes} bytes of {window}")
        first = abi.State()
        for key, value in config.items():
            setattr(first, key, value)
        self._scratch = self._torch.zeros(scratch, dtype=self._torch.uint8, device="cuda")
        first.abi_version, first.rank = _C["ABI_VERSION"], self.rank
        first.window_bytes, first.scratch_bytes = self._window.bytes, scratch
        first.scratch, first.host_record = self._scratch.data_ptr(), self._record.data_ptr()
        first.owner[0], first.timeout_ns = self._owners.data_ptr(), self.timeout_ms * 1_000_000
        before = self._read()  # Members may have been let in already.
        for field in ("on_at", "off_at", "incarnation", "window"):
            ctypes.memmove(getattr(first, field), getattr(before, field), ctypes.sizeof(getattr(first, field)))
        for field in ("dispatch_sent", "dispatch_received", "combine_sent", "combine_received", "active"):
            setattr(first, field, getattr(before, field))
        if first.off_at[self.rank] == 0:  # Nobody was let in: a group of one.
            first.on_at[self.rank], first.off_at[self.rank] = 1, abi.NEVER
            first.incarnation[self.rank], first.active = self.incarnation, self._active
            first.window[self.rank] = self._window.address
        self._write(first)
        self._call("relight_ep_init", _S["RelightEpInitArgs"](self._state.data_ptr()), 1, 32)
        self._torch.cuda.synchronize()
        if self._read().init_status:
            raise AgentError("request_invalid", f"Cannot lay out {config}: check {self._read().init_status}")
        self._shape = config

    def _let_in(self, ranks):
        """Both sides meet, agree on the epoch, and count each other in from the next one on."""
        self._torch.cuda.synchronize()
        state = self._read()
        epoch = own = state.dispatch_received
        names = {rank: self._meeting(rank) for rank in ranks}
        for rank, name in names.items():
            self._peers.say(rank, name, {"epoch": own})
        for rank, name in names.items():
            epoch = max(epoch, int(self._peers.hear(rank, name, self._timeout_s)["epoch"]))
        if own != epoch:
            for field in ("dispatch_sent", "dispatch_received", "combine_sent", "combine_received"):
                setattr(state, field, epoch)
        self._active |= sum(1 << r for r in ranks)
        for rank in [self.rank, *self._incarnations]:
            is_new = rank in ranks or rank == self.rank and own != epoch or state.on_at[rank] == 0
            state.on_at[rank] = epoch + 1 if is_new else state.on_at[rank]
            state.off_at[rank] = abi.NEVER
            state.incarnation[rank] = self._incarnations.get(rank, self.incarnation)
            state.window[rank] = self._slots.address(rank) if rank != self.rank else self._window.address
        state.active, state.suspect = self._active, state.suspect & ~sum(1 << r for r in ranks)
        self._write(state)

    def _meeting(self, rank):
        """Both sides count their meetings, from the connect of these two incarnations."""
        pair = sorted([(self.rank, self.incarnation), (rank, self._incarnations[rank])])
        self._meetings[rank] += 1
        return f"{pair}/{self._meetings[rank]}"

    def _mask(self, active):
        self._active = active
        self._poke("active", active)

    def _forget(self, mask):
        self._poke("suspect", self._read().suspect & ~mask)

    def _read(self):
        with self._torch.cuda.stream(self._control):
            return abi.State.from_buffer_copy(self._state.cpu().numpy().tobytes())

    def _write(self, state):
        """All of it, while nothing runs."""
        torch = self._torch
        torch.cuda.synchronize()
        self._state.copy_(torch.frombuffer(bytearray(state), dtype=torch.uint8))
        torch.cuda.synchronize()

    def _poke(self, field, value):
        """One 32-bit word, at once, from a stream of its own."""
        torch, at = self._torch, getattr(abi.State, field).offset
        self._staged[:4] = torch.frombuffer(bytearray(value.to_bytes(4, "little")), dtype=torch.uint8)
        with torch.cuda.stream(self._control):
            self._state[at : at + 4].copy_(self._staged[:4], non_blocking=True)
            self._control.synchronize()

    def _host_record(self):
        return _S["RelightEpHostRecord"].from_buffer_copy(self._record.numpy().tobytes())


def _config(tokens, hidden, topk, ranks, experts):
    return {"ranks_max": ranks, "tokens_max": abi.align(tokens, 8), "hidden": hidden, "topk": topk,
            "experts_max": experts, "local_experts_max": -(-experts // ranks), "parities": _PARITIES,
            "select_rows": 0}


def _refuse(is_asked, what):
    if is_asked:
        raise AgentError("request_invalid", f"Cannot give {what}: these kernels do not have it")
