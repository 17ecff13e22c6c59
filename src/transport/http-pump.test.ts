// SPDX-License-Identifier: Apache-2.0
// A reader that drips: what a pump says of it while the socket is full.

import assert from "node:assert/strict";
import http from "node:http";
import net from "node:net";
import { describe, test } from "node:test";
import { KiB } from "../core/units.ts";
import type { SocketSender } from "../platform/socket-sender.ts";
import { BufferPool } from "./buffer-pool.ts";
import { Pump } from "./http-pump.ts";

type Write = http.ServerResponse["write"];
const full: SocketSender = { send: () => 0, sendFile: () => 0 };

describe("Pump", () => {
  test("waitingSinceMs stays until a whole buffer has left, however small the writes are", () => {
    const pool = new BufferPool({ bufferBytes: 512 * KiB, keptMax: 2 });
    const inline = Buffer.alloc(4 * 512 * KiB, 1);
    const response = new http.ServerResponse(new http.IncomingMessage(new net.Socket()));
    // Keeps what is written until the test lets it leave.
    const held: (() => void)[] = [];
    response.write = ((_bytes: unknown, done: () => void) => held.push(done) > 0) as Write;
    const pump = new Pump({
      response,
      segments: [{ frame: null, fileIndex: 0, offset: 0, length: inline.length, isRefused: false }],
      source: {
        file: () => ({ path: "", size: inline.length, stamp: null, inline }),
        lost: () => {},
      },
      pool,
      sender: full,
      onSent: () => {},
    });
    pump.start();
    const began = pump.waitingSinceMs;
    for (let write = 0; write < 7; write++) {
      held.shift()?.();
      assert.equal(pump.waitingSinceMs, began);
    }
    held.shift()?.();
    assert.notEqual(pump.waitingSinceMs, began);
  });
});
