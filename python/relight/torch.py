# SPDX-License-Identifier: Apache-2.0
"""publish(module) and load_into(module): hand a torch module's live tensors to the local agent.

What travels is the state after the engine's post-load processing: parameters, buffers and the tensors
that it derived from them. So a target builds its structure, runs that processing on dummy weights, and
then calls load_into, which overwrites in place: captured graphs keep their pointers.
"""

import bisect
import contextlib
import ctypes
import dataclasses
import hashlib
import logging
import math

from .agent import Agent, AgentError
from .memory import Driver

_log = logging.getLogger("relight")


@dataclasses.dataclass(frozen=True)
class Place:
    """Which part of the model this worker holds. Each pair is (rank, size)."""

    role: str = "target"
    tensor: tuple = (0, 1)
    pipeline: tuple = (0, 1)
    expert: tuple = (0, 1)
    data: tuple = (0, 1)

    def wire(self):
        pairs = {
            axis: {"rank": getattr(self, axis)[0], "size": getattr(self, axis)[1]}
            for axis in ("tensor", "pipeline", "expert", "data")
        }
        return {"role": self.role, **pairs}


@dataclasses.dataclass
class Start:
    """How the weights came. Cold: load them from elsewhere, into a fresh structure when mutated."""

    warm: bool
    code: str = ""
    message: str = ""
    mutated: bool = False
    report: dict = dataclasses.field(default_factory=dict)
    publication: "Publication | None" = None


class Publication:
    """Lives as long as the tensors do; closing it withdraws them."""

    def __init__(self, agent, answer, tensors):
        self.key = answer["key"]
        self.generation = answer["generation"]
        self.content = answer["content"]
        self._agent = agent
        self._tensors = tensors  # Held, or the allocator would give the memory to somebody else.

    @contextlib.contextmanager
    def changing(self):
        """Around every change of the values: readers are let out before it, digests made after it."""
        self._agent.call("change", {"key": self.key})
        yield
        _synchronize()
        answer = self._agent.call("changed", {"key": self.key})
        self.generation, self.content = answer["generation"], answer["content"]

    def close(self):
        self._agent.close()
        self._tensors = None


def reserve(size_bytes, piece_bytes=2**30):
    """Call it before the model is built: its tensors then lie in few large pieces of GPU memory.

    torch gives every tensor above 10 MiB an allocation of its own, each of which a reader has to open;
    from large cached blocks it cuts them instead. size_bytes: what the weights will take. piece_bytes:
    larger than any tensor, and small enough that one is opened while another is read.
    """
    import torch

    sizes = [piece_bytes] * -(-size_bytes // piece_bytes)
    # Freed when the list is, and kept by torch for the model.
    [torch.empty(size, dtype=torch.uint8, device="cuda") for size in sizes]


def publish(module, *, model, revision="", place=Place(), socket=None, derived=None, driver=None):
    """Offer the module's live tensors to other replicas. Raises AgentError; the engine goes on.

    derived: more tensors by name, for state that no attribute of a submodule holds.
    """
    tensors = live_tensors(module, derived)
    layout, handles, uuid = _describe(tensors, model, revision, place, driver)
    agent = Agent.connect(socket)
    try:
        answer = agent.call("publish", {"layout": layout, "deviceUuid": uuid}, handles)
    except BaseException:
        agent.close()
        raise
    return Publication(agent, answer, tensors)


def load_into(
    module,
    *,
    model,
    revision="",
    place=Place(),
    socket=None,
    derived=None,
    sources=(),
    content=None,
    driver=None,
):
    """Overwrite the module's tensors with a live replica's, each verified. Never raises: see Start.

    sources: sockets of agents to ask, besides those that the local agent knows.
    content: accept these values only (a publication's content); None takes the first source's.
    """
    try:
        tensors = live_tensors(module, derived)
        layout, handles, uuid = _describe(tensors, model, revision, place, driver)
        args = {"layout": layout, "deviceUuid": uuid, "sources": list(sources), "content": content}
        agent = Agent.connect(socket)
        try:
            report = agent.call("load", args, handles)
            # What the engine compiles next, it reads from caches that may still be arriving.
            agent.call("warm", {})
        except BaseException:
            agent.close()
            raise
        return Start(warm=True, report=report, publication=Publication(agent, report, tensors))
    except AgentError as error:
        # Of an agent that died in the call nobody knows whether it had begun to write.
        unknown = error.code == "source_unreachable" and not error.details
        return _cold(error.code, error, error.details.get("mutated", unknown))
    except Exception as error:  # The one catch-all: a bug of ours must not stop the engine.
        return _cold("plugin_bug", error, True)


def await_caches(socket=None):
    """Returns once the agent has installed what peers had of the engine's caches, or has given up on it.

    For an engine whose weights came from elsewhere: call it before the first compilation. load_into
    does so itself.
    """
    try:
        with Agent.connect(socket) as agent:
            agent.call("warm", {})
    except AgentError as error:
        _log.warning("relight: caches are not waited for, %s: %s", error.code, error)


def live_tensors(module, derived=None):
    """Every tensor of the module by name: parameters, buffers, and what submodules keep besides."""
    import torch

    found = {}
    for kind, named in (
        ("parameter", module.named_parameters(remove_duplicate=False)),
        ("buffer", module.named_buffers(remove_duplicate=False)),
    ):
        for name, tensor in named:
            found[name] = (kind, tensor.detach())
    for prefix, part in module.named_modules():
        for attribute, value in sorted(vars(part).items()):
            for name, tensor in _tensors_in(attribute, value, torch.Tensor):
                found.setdefault(f"{prefix}.{name}".lstrip("."), ("derived", tensor.detach()))
    for name, tensor in (derived or {}).items():
        found[name] = ("derived", tensor.detach())
    return found


def _tensors_in(name, value, tensor_type):
    """A tensor, or those in a list, a mapping or an object that is no module, such as a backend."""
    if isinstance(value, tensor_type):
        yield name, value
        return
    # The private ones of a module hold its parameters, buffers and submodules.
    if name.startswith("_") or callable(value):
        return
    if isinstance(value, (list, tuple)):
        inner = enumerate(value)
    elif isinstance(value, dict) or hasattr(value, "__dict__"):
        inner = sorted((value if isinstance(value, dict) else vars(value)).items(), key=_first_text)
    else:
        return
    for key, item in inner:
        if isinstance(item, tensor_type):
            yield f"{name}.{key}", item


def _first_text(pair):
    return str(pair[0])


def _describe(tensors, model, revision, place, driver):
    import torch

    _synchronize()
    driver = driver or Driver()
    allocations, handles, entries = _Allocations(driver), [], []
    for name, (kind, tensor) in tensors.items():
        if tensor.device.type != "cuda" and tensor.numel() > 0:
            entries.append(_elsewhere(name, kind, tensor))
            continue
        index, offset = allocations.place(tensor)
        entries.append(
            {
                "name": name,
                "kind": kind,
                "dtype": str(tensor.dtype).removeprefix("torch."),
                "shape": list(tensor.shape),
                "stride": list(tensor.stride()),
                "allocation": index,
                "offsetBytes": offset,
            }
        )
    handles = allocations.handles
    major, minor = torch.cuda.get_device_capability()
    layout = {
        "version": 1,
        "model": model,
        "revision": revision,
        "state": "live",
        "arch": 10 * major + minor,
        "coordinate": place.wire(),
        "allocations": [{"bytes": size} for size in allocations.sizes],
        "tensors": entries,
    }
    return layout, handles, driver.device_uuid()


def _elsewhere(name, kind, tensor):
    """Of what is not on the GPU nothing is copied: both sides must hold the same, and the name says so."""
    if kind == "parameter" or tensor.device.type != "cpu":
        message = f'Cannot share "{name}": it is on {tensor.device}, wanted a GPU'
        raise AgentError("device_unsupported", message)
    held = tensor.contiguous()
    values = ctypes.string_at(held.data_ptr(), held.numel() * held.element_size())
    digest = hashlib.blake2b(values, digest_size=16).hexdigest()
    dtype = str(tensor.dtype).removeprefix("torch.")
    shape = "x".join(str(length) for length in tensor.shape)
    return {
        "name": f"{name} on the host, {shape}, {digest}",
        "kind": kind,
        "dtype": dtype,
        "shape": [0],
        "stride": [1],
        "allocation": 0,
        "offsetBytes": 0,
    }


class _Allocations:
    """The driver's allocations behind the tensors, each once."""

    def __init__(self, driver):
        self._driver = driver
        self._known = []  # (base, end, index), sorted
        self.handles = []
        self.sizes = []

    def place(self, tensor):
        first, end = _span(tensor)
        if first == end:
            return 0, 0
        before = bisect.bisect_right(self._known, (first, math.inf)) - 1
        if before >= 0:
            base, limit, index = self._known[before]
            if end <= limit:
                return index, first - base
        base, size, handle = self._driver.allocation_of(first, end)
        bisect.insort(self._known, (base, base + size, len(self.sizes)))
        self.handles.append(handle)
        self.sizes.append(size)
        return len(self.sizes) - 1, first - base


def _span(tensor):
    """First address and the one behind the last; equal for a tensor without elements."""
    if tensor.numel() == 0:
        return 0, 0
    steps = zip(tensor.shape, tensor.stride())
    last = sum((length - 1) * stride for length, stride in steps)
    first = tensor.data_ptr()
    return first, first + (last + 1) * tensor.element_size()


def _synchronize():
    """Kernels of the post-load processing may still run; others must not see half of it."""
    import torch

    torch.cuda.synchronize()


def _cold(code, error, mutated):
    _log.warning("relight: weights start cold, %s: %s", code, error)
    return Start(warm=False, code=code, message=str(error), mutated=mutated)
