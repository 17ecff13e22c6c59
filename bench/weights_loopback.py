# SPDX-License-Identifier: Apache-2.0
"""Raw TCP over loopback: so many processes send one buffer again and again, as many throw it away.

Reads a JSON list of stream counts on stdin; prints the best GB/s over them and over two rounds each.
"""

import json
import os
import socket
import sys
import time

CHUNK = 8 * 2**20
PER_STREAM = 2**30


def receive(listener):
    connection, _ = listener.accept()
    buffer = bytearray(CHUNK)
    left = PER_STREAM
    while left > 0:
        left -= connection.recv_into(buffer)
    connection.send(b"x")


def send(port, start):
    connection = socket.create_connection(("127.0.0.1", port))
    buffer = bytes(CHUNK)
    os.read(start, 1)
    for _ in range(PER_STREAM // CHUNK):
        connection.sendall(buffer)
    connection.recv(1)


def forked(act, *words):
    child = os.fork()
    if child == 0:
        act(*words)
        os._exit(0)
    return child


def measure(streams):
    start, go = os.pipe()
    receivers, senders = [], []
    for _ in range(streams):
        listener = socket.create_server(("127.0.0.1", 0))
        receivers.append(forked(receive, listener))
        senders.append(forked(send, listener.getsockname()[1], start))
    time.sleep(0.3)
    began = time.perf_counter()
    os.write(go, b"g" * streams)
    for child in senders:
        os.waitpid(child, 0)
    seconds = time.perf_counter() - began
    for child in receivers:
        os.waitpid(child, 0)
    return streams * PER_STREAM / seconds / 1e9


if __name__ == "__main__":
    rates = {streams: max(measure(streams) for _ in range(2)) for streams in json.load(sys.stdin)}
    best = max(rates, key=rates.get)
    print(json.dumps({"gbs": rates[best], "streams": best, "rates": rates}))
