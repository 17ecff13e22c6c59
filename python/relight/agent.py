# SPDX-License-Identifier: Apache-2.0
"""Speaks to the local agent over its Unix socket: one JSON call at a time, with memory handles attached.

The framing is src/gpu/descriptor-socket.ts's: u32 body length and u32 descriptor count, one byte for
every 250 descriptors, the body. Every wait has a deadline.
"""

import array
import json
import os
import socket
import struct

DEFAULT_SOCKET = "/run/relight/agent.sock"
SOCKET_VARIABLE = "RELIGHT_AGENT_SOCKET"
_DESCRIPTORS_PER_CARRIER = 250
_BODY_BYTES_MAX = 64 * 2**20


class AgentError(Exception):
    """A failure with a code of Relight's table (docs/errors.md)."""

    def __init__(self, code, message, details=None):
        super().__init__(message)
        self.code = code
        self.message = message
        self.details = details or {}


class Agent:
    """One connection. What was published through it is withdrawn when it closes."""

    def __init__(self, connection):
        self._socket = connection

    @classmethod
    def connect(cls, path=None, timeout_s=600.0):
        """path: of the agent's socket; RELIGHT_AGENT_SOCKET when None. timeout_s: of each call."""
        path = path or os.environ.get(SOCKET_VARIABLE) or DEFAULT_SOCKET
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        connection.settimeout(timeout_s)
        try:
            connection.connect(path)
        except OSError as error:
            connection.close()
            message = f'Cannot reach the agent at "{path}": {error}'
            raise AgentError("source_unreachable", message) from error
        return cls(connection)

    def call(self, operation, args, handles=()):
        """The answer's value. handles: as relight.memory makes them; their descriptors are closed."""
        descriptors = [fd for handle in handles for fd in handle.descriptors]
        wire = [handle.wire for handle in handles]
        body = json.dumps({"op": operation, "args": args, "handles": wire}).encode()
        try:
            self._send(body, descriptors)
            answer = json.loads(self._receive())
        except (OSError, ValueError) as error:
            self.close()
            message = f'Cannot finish "{operation}": the agent has gone or did not answer ({error})'
            raise AgentError("source_unreachable", message) from error
        finally:
            for descriptor in descriptors:
                os.close(descriptor)
        if "error" in answer:
            error = answer["error"]
            raise AgentError(error["code"], error["message"], error.get("details"))
        return answer["value"]

    def close(self):
        self._socket.close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def _send(self, body, descriptors):
        self._socket.sendall(struct.pack("<II", len(body), len(descriptors)))
        for first in range(0, len(descriptors), _DESCRIPTORS_PER_CARRIER):
            share = array.array("i", descriptors[first : first + _DESCRIPTORS_PER_CARRIER])
            self._socket.sendmsg([b"\0"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, share)])
        self._socket.sendall(body)

    def _receive(self):
        body_bytes, descriptor_count = struct.unpack("<II", self._exactly(8))
        if body_bytes > _BODY_BYTES_MAX or descriptor_count != 0:
            raise ValueError(f"an answer of {body_bytes} bytes, {descriptor_count} descriptors")
        return self._exactly(body_bytes)

    def _exactly(self, count):
        parts = []
        while count > 0:
            part = self._socket.recv(min(count, 2**20))
            if not part:
                raise OSError("the connection has ended")
            parts.append(part)
            count -= len(part)
        return b"".join(parts)
