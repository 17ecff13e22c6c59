# SPDX-License-Identifier: Apache-2.0
"""How the ranks of a group find each other without a store: a socket for each rank in a common directory.

Two calls, framed as src/gpu/descriptor-socket.ts has it: `ep.window` hands over a window (as
src/transport/window-exchange.ts does), `ep.meet` waits until both ranks ask for it and swaps what they say.
"""

import array
import json
import os
import socket
import struct
import threading
import time

from .agent import AgentError

_BODY_BYTES_MAX = 65_536
_RETRY_S = 0.01
_MEETINGS_KEPT = 4  # A peer may be in the next meeting before it was asked about this one.


class Peers:
    """Answers others in a thread of its own and asks them."""

    def __init__(self, directory, rank, export):
        """export() gives the card of the window: bytes, incarnation, and an open file."""
        self._directory, self._rank, self._export = directory, rank, export
        self._met = threading.Condition()
        self._said = {}
        os.makedirs(directory, mode=0o700, exist_ok=True)
        path = self._path(rank)
        _remove(path)  # Of a rank of this number that was killed.
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listener.bind(path)
        os.chmod(path, 0o600)
        self._listener.listen(64)
        threading.Thread(target=self._listen, name="relight-ep-peers", daemon=True).start()

    def window(self, rank, timeout_s):
        """(descriptor, bytes, incarnation) of a peer's window; waits until it is there."""
        value, descriptors = self._ask(rank, {"op": "ep.window", "args": {}}, timeout_s)
        if len(descriptors) != 1:
            raise AgentError("source_protocol", f"Cannot map rank {rank}: it sent {len(descriptors)} files")
        return descriptors[0], int(value["bytes"]), int(value["incarnation"])

    def say(self, rank, name, said):
        """For a peer that comes to the meeting of this name. Say to all before hearing anybody."""
        with self._met:
            kept = list(self._said.get(rank, {}).items())[-_MEETINGS_KEPT:]
            self._said[rank] = {**dict(kept), name: said}
            self._met.notify_all()

    def hear(self, rank, name, timeout_s):
        """What the peer says at that meeting, once it is there."""
        call = {"op": "ep.meet", "args": {"rank": self._rank, "name": name}}
        return self._ask(rank, call, timeout_s)[0]

    def close(self):
        self._listener.close()
        _remove(self._path(self._rank))

    def _path(self, rank):
        return os.path.join(self._directory, f"rank-{rank}.sock")

    def _ask(self, rank, call, timeout_s):
        until = time.monotonic() + timeout_s
        while True:
            try:
                with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
                    connection.settimeout(max(0.001, until - time.monotonic()))
                    connection.connect(self._path(rank))
                    _send(connection, {**call, "handles": []}, [])
                    answer, descriptors = _receive(connection)
            except (OSError, ValueError) as error:
                if time.monotonic() < until:
                    time.sleep(_RETRY_S)  # It may not have started yet, or be the one that was killed.
                    continue
                message = f"Cannot reach rank {rank} of the group: not within {timeout_s} s ({error})"
                raise AgentError("source_unreachable", message) from error
            if "error" in answer:
                raise AgentError(answer["error"]["code"], answer["error"]["message"])
            return answer["value"], descriptors

    def _listen(self):
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection):
        descriptors = []
        try:
            with connection:
                call, _ = _receive(connection)
                if call["op"] == "ep.window":
                    value, descriptor = self._export()
                    descriptors = [descriptor]
                    pieces = [{"kind": "descriptor", "pieces": [value["bytes"]]}]
                    _send(connection, {"value": value, "handles": pieces}, descriptors)
                elif call["op"] == "ep.meet":
                    said = self._await(call["args"]["rank"], call["args"]["name"], connection)
                    _send(connection, {"value": said, "handles": []}, [])
        except (OSError, ValueError, KeyError, TypeError):
            pass  # A caller that went or spoke nonsense; it sees its connection end.
        finally:
            for descriptor in descriptors:
                os.close(descriptor)

    def _await(self, rank, name, connection):
        with self._met:
            while name not in self._said.get(rank, {}):
                self._met.wait(1.0)
                if _is_gone(connection):
                    raise OSError("the caller has gone")
            return self._said[rank][name]


def _is_gone(connection):
    try:
        return connection.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT) == b""
    except BlockingIOError:
        return False


def _send(connection, body, descriptors):
    data = json.dumps(body).encode()
    connection.sendall(struct.pack("<II", len(data), len(descriptors)))
    if descriptors:
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors))]
        connection.sendmsg([b"\0"], rights)
    connection.sendall(data)


def _receive(connection):
    size, count = struct.unpack("<II", _exactly(connection, 8))
    if size > _BODY_BYTES_MAX or count > 1:
        raise ValueError(f"a message of {size} bytes with {count} files")
    descriptors = array.array("i")
    if count:
        _, control, _, _ = connection.recvmsg(1, socket.CMSG_SPACE(4))
        for level, kind, data in control:
            if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
                descriptors.frombytes(data[:4])
    return json.loads(_exactly(connection, size)), list(descriptors)


def _exactly(connection, count):
    parts = []
    while count > 0:
        part = connection.recv(count)
        if not part:
            raise OSError("the connection has ended")
        parts.append(part)
        count -= len(part)
    return b"".join(parts)


def _remove(path):
    try:
        os.unlink(path)
    except FileNotFoundError:
        pass
