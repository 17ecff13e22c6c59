# SPDX-License-Identifier: Apache-2.0
"""One rank of an expert-parallel group, for tests and benches: abi.h as ctypes, windows, launches.

The structs are read from kernels/include/relight/abi.h, so they cannot drift from it. Windows are
cuMem allocations exported as POSIX file descriptors and fetched with pidfd_getfd.
"""
import ctypes
import os
import struct
import sys
from pathlib import Path

import torch
from cuda.bindings import driver as cuda

ROOT = Path(__file__).resolve().parents[1]
os.environ.setdefault("RELIGHT_KERNELS", str(ROOT))
sys.path.insert(0, str(Path(os.environ.get("RELIGHT_PYTHON") or ROOT.parent / "python")))
from relight.ep_abi import C, NEVER, S, State, align, groups_of, needs  # noqa: E402

CUBIN = Path(os.environ.get("RELIGHT_CUBIN", ROOT / "build/relight.sm_90.cubin"))
FORMATS = {"bf16": 0, "fp8": 1, "fp8_pow2": 2, "fp8_ue8m0": 3}


def check(result):
    if result[0] != cuda.CUresult.CUDA_SUCCESS:
        raise RuntimeError(f"Cannot continue: {result[0]}")
    return result[1] if len(result) == 2 else result[1:]


class Kernels:
    def __init__(self):
        torch.cuda.current_stream().synchronize()
        self.module = check(cuda.cuModuleLoadData(CUBIN.read_bytes()))
        self.known = {}

    def function(self, name, shared):
        if name not in self.known:
            found = check(cuda.cuModuleGetFunction(self.module, name.encode()))
            attribute = cuda.CUfunction_attribute.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
            check(cuda.cuFuncSetAttribute(found, attribute, shared))
            self.known[name] = found
        return self.known[name]

    def launch(self, name, args, blocks, threads, shared=0):
        holder = (ctypes.c_void_p * 1)(ctypes.addressof(args))
        check(cuda.cuLaunchKernel(self.function(name, shared), blocks, 1, 1, threads, 1, 1, shared,
                                  torch.cuda.current_stream().cuda_stream,
                                  ctypes.addressof(holder), 0))


class Memory:
    """cuMem memory on the current device, exportable, or mapped from another process."""

    def __init__(self, size=None, device=0, fd=None, bytes_mapped=None):
        kind = cuda.CUmemAllocationHandleType.CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR
        self.fd = None
        if fd is None:
            self.bytes = align(size, 2 << 20)
            prop = cuda.CUmemAllocationProp()
            prop.type = cuda.CUmemAllocationType.CU_MEM_ALLOCATION_TYPE_PINNED
            prop.location.type = cuda.CUmemLocationType.CU_MEM_LOCATION_TYPE_DEVICE
            prop.location.id = device
            prop.requestedHandleTypes = kind
            handle = check(cuda.cuMemCreate(self.bytes, prop, 0))
            self.fd = int(check(cuda.cuMemExportToShareableHandle(handle, kind, 0)))
        else:
            self.bytes = bytes_mapped
            handle = check(cuda.cuMemImportFromShareableHandle(fd, kind))
            os.close(fd)
        self.address = int(check(cuda.cuMemAddressReserve(self.bytes, 0, 0, 0)))
        check(cuda.cuMemMap(self.address, self.bytes, 0, handle, 0))
        access = cuda.CUmemAccessDesc()
        access.location.type = cuda.CUmemLocationType.CU_MEM_LOCATION_TYPE_DEVICE
        access.location.id = torch.cuda.current_device()
        access.flags = cuda.CUmemAccess_flags.CU_MEM_ACCESS_FLAGS_PROT_READWRITE
        check(cuda.cuMemSetAccess(self.address, self.bytes, [access], 1))
        check(cuda.cuMemRelease(handle))

    def fill(self, byte):
        check(cuda.cuMemsetD8(self.address, byte, self.bytes))


_libc = ctypes.CDLL(None, use_errno=True)


def fetch_fd(pid, fd):
    """A duplicate of another process's descriptor: pidfd_open, pidfd_getfd (x86-64 numbers)."""
    holder = _libc.syscall(434, pid, 0)
    mine = _libc.syscall(438, holder, fd, 0)
    if holder < 0 or mine < 0:
        raise OSError(ctypes.get_errno(), "pidfd")
    os.close(holder)
    return mine


class Rank:
    """A member. `connect` maps peers; `dispatch` and `combine` launch on torch's current stream."""

    def __init__(self, rank, config, timeout_ms=2000, blocks=132, trace=0, incarnation=1):
        self.rank, self.config, self.blocks = rank, config, blocks
        self.kernels = Kernels()
        window, scratch = needs(config)
        self.window = Memory(window, torch.cuda.current_device())
        self.window.fill(0xFF)
        self.scratch = torch.zeros(scratch, dtype=torch.uint8, device="cuda")
        self.owners = torch.full((config["experts_max"],), -1, dtype=torch.int32, device="cuda")
        self.host_record = torch.zeros(ctypes.sizeof(S["RelightEpHostRecord"]), dtype=torch.uint8).pin_memory()
        self.state = torch.zeros(ctypes.sizeof(State), dtype=torch.uint8, device="cuda")
        self.trace = torch.zeros(max(trace, 1) * 2, dtype=torch.int64, device="cuda")
        first = State()
        for key in ("ranks_max", "tokens_max", "hidden", "topk", "experts_max", "local_experts_max",
                    "parities", "select_rows"):
            setattr(first, key, config[key])
        first.abi_version, first.rank = C["ABI_VERSION"], rank
        first.window_bytes, first.scratch_bytes = self.window.bytes, scratch
        first.scratch, first.host_record = self.scratch.data_ptr(), self.host_record.data_ptr()
        first.trace, first.trace_entries = (self.trace.data_ptr() if trace else 0), trace
        first.timeout_ns = timeout_ms * 1_000_000
        first.owner[0] = self.owners.data_ptr()
        for slot in range(C["EP_RANKS_MAX"]):
            first.on_at[slot], first.off_at[slot] = NEVER, NEVER
            first.incarnation[slot] = incarnation
        first.window[rank] = self.window.address
        self.state.copy_(torch.frombuffer(bytearray(first), dtype=torch.uint8))
        self.stream_control = torch.cuda.Stream()
        self.poked = torch.zeros(8, dtype=torch.uint8).pin_memory()
        self._call("relight_ep_init", S["RelightEpInitArgs"](self.state.data_ptr()), 1, 32)
        torch.cuda.synchronize()
        status = self.read().init_status
        if status:
            raise RuntimeError(f"Cannot lay out the window: check {status} failed")

    def _call(self, name, args, blocks, threads, shared=0):
        self.kernels.launch(name, args, blocks, threads, shared)

    # ---- control: what the host writes, also while kernels run, from a stream of its own ----

    def read(self):
        with torch.cuda.stream(self.stream_control):
            copy = self.state.cpu()
        return State.from_buffer_copy(copy.numpy().tobytes())

    def poke(self, field, value, index=None):
        at = getattr(State, field).offset + (0 if index is None else index * 8)
        if field == "incarnation":
            at = State.incarnation.offset + 4 * index
        size = 4 if field in ("active", "suspect", "incarnation") else 8
        self.poked[:size] = torch.frombuffer(
            bytearray(struct.pack("<I" if size == 4 else "<Q", value)), dtype=torch.uint8)
        with torch.cuda.stream(self.stream_control):
            self.state[at:at + size].copy_(self.poked[:size], non_blocking=True)
            self.stream_control.synchronize()

    def card(self):
        """What a peer needs to map this rank's window."""
        return (os.getpid(), self.window.fd, self.window.bytes)

    def connect(self, slot, card):
        pid, fd, size = card
        memory = Memory(fd=fetch_fd(pid, fd), bytes_mapped=size)
        self.poke("window", memory.address, slot)
        return memory

    def activate(self, mask, epoch, off=NEVER):
        for slot in range(self.config["ranks_max"]):
            if mask >> slot & 1:
                self.poke("on_at", epoch, slot)
                self.poke("off_at", off, slot)
        self.poke("active", mask)

    def own(self, table):
        """table[expert] = (rank, local), or None."""
        packed = [0xFFFFFFFF if o is None else o[0] << 16 | o[1] for o in table]
        signed = [v - (1 << 32) if v >= 1 << 31 else v for v in packed]
        self.owners.copy_(torch.tensor(signed, dtype=torch.int32))

    def record(self):
        return S["RelightEpHostRecord"].from_buffer_copy(self.host_record.numpy().tobytes())

    # ---- data path ----

    def outputs(self, fmt):
        c = self.config
        slots, hidden, local = c["ranks_max"] * c["tokens_max"], c["hidden"], c["local_experts_max"]
        words = groups_of(hidden)
        if fmt == "fp8_ue8m0":
            words = (words + 3) // 4
        size = 2 if fmt == "bf16" else 1
        out = {
            "x": torch.empty(local, slots, hidden * size, dtype=torch.uint8, device="cuda"),
            "scales": torch.empty(local, words, slots, dtype=torch.int32, device="cuda"),
            "source": torch.empty(local, slots, dtype=torch.int32, device="cuda"),
            "range": torch.empty(local, c["ranks_max"], dtype=torch.int64, device="cuda"),
            "count": torch.zeros(local, dtype=torch.int32, device="cuda"),
        }
        return out

    def dispatch_args(self, x, topk, weights, out, fmt, flags=3, tokens=None, tokens_at=0):
        args = S["RelightEpDispatchArgs"]()
        args.state, args.x, args.topk_index = self.state.data_ptr(), x.data_ptr(), topk.data_ptr()
        args.topk_weights = 0 if weights is None else weights.data_ptr()
        args.token_count = x.shape[0] if tokens is None else tokens
        args.token_count_at, args.format = tokens_at, FORMATS[fmt]
        args.flags = flags | (C["EP_INDEX_64"] if topk.dtype == torch.int64 else 0)
        args.slots = out["source"].shape[1]
        args.out_x, args.out_scales = out["x"].data_ptr(), out["scales"].data_ptr()
        args.out_source, args.out_range = out["source"].data_ptr(), out["range"].data_ptr()
        args.out_count = out["count"].data_ptr()
        return args

    def dispatch(self, args, select=False):
        kind = "bf16" if args.format == 0 else "fp8"
        name = f"relight_ep_select_dispatch_{kind}" if select else f"relight_ep_dispatch_{kind}"
        self._call(name, args, self.blocks, C["EP_THREADS"], C["EP_DISPATCH_SHARED"])

    def combine_args(self, y, out, weights=None, flags=3):
        args = S["RelightEpCombineArgs"]()
        args.state, args.y, args.out = self.state.data_ptr(), y.data_ptr(), out.data_ptr()
        args.slots = self.config["ranks_max"] * self.config["tokens_max"]
        args.flags = flags | (0 if weights is None else C["EP_WEIGHTS"])
        args.topk_weights = 0 if weights is None else weights.data_ptr()
        return args

    def combine(self, args):
        self._call("relight_ep_combine", args, self.blocks, C["EP_THREADS"], C["EP_COMBINE_SHARED"])

    def select_combine(self, y, topk, weights, out, dispatched):
        args = S["RelightEpSelectArgs"](
            self.state.data_ptr(), y.data_ptr(), topk.data_ptr(), weights.data_ptr(),
            out.data_ptr(), dispatched["source"].data_ptr(), dispatched["count"].data_ptr(),
            self.config["ranks_max"] * self.config["tokens_max"], 0)
        return args

    def run_select_combine(self, args):
        self._call("relight_ep_select_combine", args, self.blocks, C["EP_THREADS"],
                   C["EP_COMBINE_SHARED"])

    def barrier(self):
        self._call("relight_ep_barrier", S["RelightEpBarrierArgs"](self.state.data_ptr()), 1, 32)
