# SPDX-License-Identifier: Apache-2.0
"""Windows and launches of an expert group, straight from libcuda in the context that torch has made current.

A window is mapped memory that travels as a file descriptor. Peers' windows lie in slots of one range of
addresses; an empty slot is a sink, so that a store of a replayed graph never faults (src/gpu/vmm.ts).
"""

import ctypes
import os

from .agent import AgentError

_POSIX_DESCRIPTOR = 1  # CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR
_ON_DEVICE = 1  # CU_MEM_LOCATION_TYPE_DEVICE
_READ_WRITE = 3
_SINK_BYTES_MAX = 16 * 2**20
_SHARED_BYTES = 8  # CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES


class _Location(ctypes.Structure):
    _fields_ = [("type", ctypes.c_int), ("id", ctypes.c_int)]


class _Properties(ctypes.Structure):
    _fields_ = [("type", ctypes.c_int), ("handles", ctypes.c_int), ("location", _Location),
                ("other_system", ctypes.c_void_p), ("flags", ctypes.c_ubyte * 8)]


class _Access(ctypes.Structure):
    _fields_ = [("location", _Location), ("flags", ctypes.c_int)]


class Cuda:
    """The calls that are needed, each checked."""

    def __init__(self, device):
        try:
            self._library = ctypes.CDLL("libcuda.so.1")
        except OSError as error:
            raise AgentError("device_absent", f"Cannot open libcuda.so.1: {error}") from error
        self.device = device
        self._properties = _Properties(1, _POSIX_DESCRIPTOR, _Location(_ON_DEVICE, device))
        granularity = ctypes.c_size_t()
        self.call("cuMemGetAllocationGranularity", ctypes.byref(granularity),
                  ctypes.byref(self._properties), 0)
        self.granularity = granularity.value
        self._context = ctypes.c_void_p()
        self.call("cuCtxGetCurrent", ctypes.byref(self._context))

    def adopt(self):
        """Makes the context current in the calling thread."""
        self.call("cuCtxSetCurrent", self._context)

    def call(self, name, *args):
        result = getattr(self._library, name)(*args)
        if result != 0:
            raise AgentError("device_failed", f"Cannot {name}: the driver says CUresult {result}")

    def create(self, size):
        handle = ctypes.c_uint64()
        self.call("cuMemCreate", ctypes.byref(handle), ctypes.c_size_t(size),
                  ctypes.byref(self._properties), ctypes.c_uint64(0))
        return handle.value

    def export(self, handle):
        descriptor = ctypes.c_int()
        self.call("cuMemExportToShareableHandle", ctypes.byref(descriptor), ctypes.c_uint64(handle),
                  _POSIX_DESCRIPTOR, ctypes.c_uint64(0))
        return descriptor.value

    def opened(self, descriptor):
        handle = ctypes.c_uint64()
        self.call("cuMemImportFromShareableHandle", ctypes.byref(handle),
                  ctypes.c_void_p(descriptor), _POSIX_DESCRIPTOR)
        return handle.value

    def release(self, handle):
        self.call("cuMemRelease", ctypes.c_uint64(handle))

    def reserve(self, size):
        address = ctypes.c_uint64()
        self.call("cuMemAddressReserve", ctypes.byref(address), ctypes.c_size_t(size),
                  ctypes.c_size_t(0), ctypes.c_uint64(0), ctypes.c_uint64(0))
        return address.value

    def free(self, address, size):
        self.call("cuMemAddressFree", ctypes.c_uint64(address), ctypes.c_size_t(size))

    def map(self, address, pieces):
        """pieces: (handle, bytes), one behind the other."""
        end = address
        for handle, size in pieces:
            self.call("cuMemMap", ctypes.c_uint64(end), ctypes.c_size_t(size), ctypes.c_size_t(0),
                      ctypes.c_uint64(handle), ctypes.c_uint64(0))
            end += size
        access = _Access(_Location(_ON_DEVICE, self.device), _READ_WRITE)
        self.call("cuMemSetAccess", ctypes.c_uint64(address), ctypes.c_size_t(end - address),
                  ctypes.byref(access), ctypes.c_size_t(1))

    def unmap(self, address, pieces):
        for _, size in pieces:
            self.call("cuMemUnmap", ctypes.c_uint64(address), ctypes.c_size_t(size))
            address += size

    def fill(self, address, byte, size):
        self.call("cuMemsetD8_v2", ctypes.c_uint64(address), ctypes.c_ubyte(byte), ctypes.c_size_t(size))


class Window:
    """This rank's own: created, mapped, and handed out as descriptors."""

    def __init__(self, cuda, size):
        self._cuda = cuda
        self.bytes = -(-size // cuda.granularity) * cuda.granularity
        self._handle = cuda.create(self.bytes)
        self.address = cuda.reserve(self.bytes)
        cuda.map(self.address, [(self._handle, self.bytes)])
        # NaN, and no epoch that ever was: nothing in it looks like an answer.
        cuda.fill(self.address, 0xFF, self.bytes)

    def descriptor(self):
        """An open file, the caller's to close."""
        return self._cuda.export(self._handle)

    def close(self):
        self._cuda.unmap(self.address, [(self._handle, self.bytes)])
        self._cuda.release(self._handle)
        self._cuda.free(self.address, self.bytes)


class Slots:
    """Places for peers' windows. Addresses never change."""

    def __init__(self, cuda, count, size):
        self._cuda = cuda
        sink = min(-(-size // cuda.granularity) * cuda.granularity, _SINK_BYTES_MAX)
        self.bytes, self.count = -(-size // sink) * sink, count
        self._sink = cuda.create(sink)
        self._empty = [(self._sink, sink)] * (self.bytes // sink)
        self._sink_bytes = sink
        self._address = cuda.reserve(self.bytes * count)
        self._mapped = [self._empty] * count
        for slot in range(count):
            cuda.map(self.address(slot), self._empty)

    def address(self, slot):
        return self._address + slot * self.bytes

    def fill(self, slot, descriptor, size):
        """Maps a peer's memory; the descriptor is closed."""
        try:
            if size > self.bytes or self._mapped[slot] is not self._empty:
                raise AgentError("request_invalid", f"Cannot map {size} bytes into slot {slot}: it is "
                                                    f"taken or has only {self.bytes}")
            handle = self._cuda.opened(descriptor)
        finally:
            os.close(descriptor)
        rest, left = [], self.bytes - size
        while left > 0:
            rest.append((self._sink, min(left, self._sink_bytes)))
            left -= rest[-1][1]
        self._cuda.unmap(self.address(slot), self._empty)
        self._mapped[slot] = [(handle, size), *rest]
        self._cuda.map(self.address(slot), self._mapped[slot])

    def empty(self, slot):
        """What may still reach into the slot must be done."""
        mapped = self._mapped[slot]
        if mapped is self._empty:
            return
        self._cuda.unmap(self.address(slot), mapped)
        self._cuda.release(mapped[0][0])
        self._mapped[slot] = self._empty
        self._cuda.map(self.address(slot), self._empty)

    def close(self):
        for slot in range(self.count):
            self.empty(slot)
            self._cuda.unmap(self.address(slot), self._empty)
        self._cuda.release(self._sink)
        self._cuda.free(self._address, self.bytes * self.count)


class Module:
    """Our kernels, each with one struct by value."""

    def __init__(self, cuda, image):
        self._cuda, self._known = cuda, {}
        self._module = ctypes.c_void_p()
        cuda.call("cuModuleLoadData", ctypes.byref(self._module), image)

    def launch(self, name, args, blocks, threads, shared, stream):
        holder = (ctypes.c_void_p * 1)(ctypes.addressof(args))
        self._cuda.call("cuLaunchKernel", self._function(name, shared), blocks, 1, 1, threads, 1, 1,
                        shared, ctypes.c_void_p(stream), holder, None)

    def _function(self, name, shared):
        if name not in self._known:
            function = ctypes.c_void_p()
            self._cuda.call("cuModuleGetFunction", ctypes.byref(function), self._module, name.encode())
            if shared:
                self._cuda.call("cuFuncSetAttribute", function, _SHARED_BYTES, shared)
            self._known[name] = function
        return self._known[name]
