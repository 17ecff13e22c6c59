# SPDX-License-Identifier: Apache-2.0
"""A torch of a few lines whose "GPU memory" is files, as the fake GPU of the TypeScript side has it."""

import contextlib
import os
import secrets
import sys
import types

from relight.memory import Handle

ITEM_BYTES = {"torch.bfloat16": 2, "torch.float32": 4, "torch.uint8": 1}


class FakeGpu:
    """Allocations in files that the fake driver opens by name; addresses are made up."""

    def __init__(self, directory):
        self.directory = directory
        self._files = []  # (base, size, name)
        self._next = 1 << 40

    def allocate(self, size):
        name = f"{os.getpid()}-{secrets.token_hex(16)}"
        with open(os.path.join(self.directory, name), "xb") as file:
            file.truncate(size)
        base = self._next
        self._next += 1 << 30
        self._files.append((base, size, name))
        return base

    def allocation_of(self, first, end):
        base, size, name = self._find(first)
        if end > base + size:
            raise AssertionError("a tensor leaves its allocation")
        handle = name.encode().ljust(64, b"\0").hex()
        return base, size, Handle({"kind": "ipc", "handle": handle, "bytes": size})

    def device_uuid(self):
        return "GPU-00000000-0000-0000-0000-000000000000"

    def write(self, address, data):
        base, _, name = self._find(address)
        with open(os.path.join(self.directory, name), "r+b") as file:
            file.seek(address - base)
            file.write(data)

    def read(self, address, count):
        base, _, name = self._find(address)
        with open(os.path.join(self.directory, name), "rb") as file:
            file.seek(address - base)
            return file.read(count)

    def _find(self, address):
        return next(one for one in self._files if one[0] <= address < one[0] + one[1])


class Tensor:
    def __init__(self, pointer, shape, dtype="torch.bfloat16", stride=None, device="cuda"):
        self.shape, self.dtype, self._pointer = tuple(shape), dtype, pointer
        self._stride = stride or contiguous(self.shape)
        self.device = types.SimpleNamespace(type=device)

    def stride(self):
        return self._stride

    def numel(self):
        count = 1
        for length in self.shape:
            count *= length
        return count

    def element_size(self):
        return ITEM_BYTES[self.dtype]

    def data_ptr(self):
        return self._pointer

    def detach(self):
        return self

    def contiguous(self):
        return self


class Module:
    """Attributes that are tensors are parameters, but for those named in `plain` and `buffers`."""

    plain = ()
    buffers = ()

    def named_modules(self):
        yield "", self
        for name, part in vars(self).items():
            if isinstance(part, Module):
                for inner, module in part.named_modules():
                    yield f"{name}.{inner}".rstrip("."), module

    def named_parameters(self, remove_duplicate=True):
        yield from self._named(lambda part, name: name not in (*part.plain, *part.buffers))

    def named_buffers(self, remove_duplicate=True):
        yield from self._named(lambda part, name: name in part.buffers)

    def _named(self, wanted):
        for prefix, part in self.named_modules():
            for name, value in vars(part).items():
                if isinstance(value, Tensor) and wanted(part, name):
                    yield f"{prefix}.{name}".lstrip("."), value


def contiguous(shape):
    stride, step = [], 1
    for length in reversed(shape):
        stride.insert(0, step)
        step *= length
    return tuple(stride)


@contextlib.contextmanager
def stub_torch():
    """Puts the stub where `import torch` finds it."""
    torch = types.ModuleType("torch")
    torch.Tensor = Tensor
    torch.cuda = types.SimpleNamespace(
        synchronize=lambda: None,
        get_device_capability=lambda: (9, 0),
        empty_cache=lambda: None,
    )
    before = sys.modules.get("torch")
    sys.modules["torch"] = torch
    try:
        yield torch
    finally:
        del sys.modules["torch"]
        if before is not None:
            sys.modules["torch"] = before


class Attention(Module):
    """What MLA does: tensors that processing derived, one on the module and one on its backend."""

    plain = ("w_uk_t",)

    def __init__(self, weight, derived, inner):
        self.weight = weight
        self.w_uk_t = derived
        self.impl = types.SimpleNamespace(w_uv=inner, scale=1.0)


class Model(Module):
    buffers = ("cos",)

    def __init__(self, gpu):
        first, second = gpu.allocate(4096), gpu.allocate(8192)
        self.embed = Tensor(first, (8, 16))
        self.lm_head = Tensor(first, (8, 16))  # tied
        self.cos = Tensor(first + 512, (32,), "torch.float32")
        self.empty = Tensor(0, (0, 16))
        self.attention = Attention(
            Tensor(second, (16, 16)),
            Tensor(second + 1024, (16, 8), stride=(1, 16)),
            Tensor(second + 2048, (4, 30), "torch.uint8", stride=(40, 1)),
        )


NAMES = [
    "attention.impl.w_uv",
    "attention.w_uk_t",
    "attention.weight",
    "cos",
    "embed",
    "empty",
    "lm_head",
]
