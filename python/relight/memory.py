# SPDX-License-Identifier: Apache-2.0
"""Handles to this process's GPU memory for other processes, straight from libcuda.

Memory of cudaMalloc travels as a legacy IPC handle; memory that was mapped (torch's expandable segments)
as file descriptors, one for each physical piece, if it was created so that it may be exported.
"""

import ctypes

from .agent import AgentError

_POSIX_DESCRIPTOR = 1  # CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR
_PIECES_MAX = 4096


class Handle:
    """One allocation: what the agent reads (wire) and the open files that go with it."""

    def __init__(self, wire, descriptors=()):
        self.wire = wire
        self.descriptors = list(descriptors)


class _IpcHandle(ctypes.Structure):
    _fields_ = [("reserved", ctypes.c_ubyte * 64)]


class Driver:
    """The few calls that are needed, in the context that the engine has made current."""

    def __init__(self, library=None):
        try:
            self._cuda = library or ctypes.CDLL("libcuda.so.1")
        except OSError as error:
            raise AgentError("device_absent", f"Cannot open libcuda.so.1: {error}") from error

    def device_uuid(self):
        """The current device's, as every process of the machine knows it."""
        device = ctypes.c_int()
        self._call("cuCtxGetDevice", ctypes.byref(device))
        uuid = (ctypes.c_ubyte * 16)()
        self._call("cuDeviceGetUuid_v2", ctypes.byref(uuid), device)
        text = bytes(uuid).hex()
        parts = (text[:8], text[8:12], text[12:16], text[16:20], text[20:])
        return "GPU-" + "-".join(parts)

    def range_of(self, address):
        """Base and size of the allocation, or of the mapped piece, that holds the address."""
        base, size = ctypes.c_uint64(), ctypes.c_size_t()
        self._call(
            "cuMemGetAddressRange_v2",
            ctypes.byref(base),
            ctypes.byref(size),
            ctypes.c_uint64(address),
        )
        return base.value, size.value

    def allocation_of(self, first, end):
        """Base and Handle of the memory from address first to end, whole pieces of it."""
        base, size = self.range_of(first)
        if not self._is_mapped(base):
            if end > base + size:
                raise AgentError("device_failed", "Cannot share a tensor that leaves its allocation")
            return base, size, self._ipc_handle(base, size)
        pieces, reach = [], base
        while reach < end:
            if len(pieces) == _PIECES_MAX:
                raise AgentError("device_unsupported", f"Cannot share more than {_PIECES_MAX} pieces")
            _, size = self.range_of(reach)
            pieces.append((reach, size))
            reach += size
        return base, reach - base, self._mapped_handle(pieces)

    def _is_mapped(self, address):
        handle = ctypes.c_uint64()
        result = self._cuda.cuMemRetainAllocationHandle(
            ctypes.byref(handle), ctypes.c_void_p(address)
        )
        if result == 0:
            self._cuda.cuMemRelease(handle)
        return result == 0

    def _ipc_handle(self, base, size):
        handle = _IpcHandle()
        self._call("cuIpcGetMemHandle", ctypes.byref(handle), ctypes.c_uint64(base))
        return Handle({"kind": "ipc", "handle": bytes(handle.reserved).hex(), "bytes": size})

    def _mapped_handle(self, pieces):
        descriptors = []
        for address, _ in pieces:
            handle, descriptor = ctypes.c_uint64(), ctypes.c_int()
            self._call(
                "cuMemRetainAllocationHandle", ctypes.byref(handle), ctypes.c_void_p(address)
            )
            result = self._cuda.cuMemExportToShareableHandle(
                ctypes.byref(descriptor), handle, _POSIX_DESCRIPTOR, ctypes.c_ulonglong(0)
            )
            self._cuda.cuMemRelease(handle)
            if result != 0:
                raise AgentError(
                    "device_unsupported",
                    "Cannot share mapped memory: it was not created for export "
                    f"(CUresult {result}); run without expandable segments",
                )
            descriptors.append(descriptor.value)
        return Handle({"kind": "descriptor", "pieces": [size for _, size in pieces]}, descriptors)

    def _call(self, name, *args):
        result = getattr(self._cuda, name)(*args)
        if result != 0:
            raise AgentError("device_failed", f"Cannot {name}: the driver says CUresult {result}")
