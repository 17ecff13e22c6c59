// SPDX-License-Identifier: Apache-2.0
// A program: a coordinator on an LMDB directory, as a process that a test can kill or a benchmark can
// weigh. Prints one JSON line with its addresses, and stops on SIGTERM.
// Usage: coordinator-process.ts DIRECTORY [GRPC_PORT] [HEARTBEAT_TIMEOUT_MS]

import { startCoordinator } from "../../src/coordinator/main.ts";

const [directory = "", port = "0", heartbeatTimeoutMs = "90000"] = process.argv.slice(2);
const coordinator = await startCoordinator({
  grpc: { host: "127.0.0.1", port: Number(port) },
  http: { host: "127.0.0.1", port: 0 },
  store: { kind: "lmdb", directory },
  limits: { heartbeatTimeoutMs: Number(heartbeatTimeoutMs) },
});
process.once("SIGTERM", () => void coordinator.stop());
console.log(JSON.stringify({ grpc: coordinator.grpcAddress, http: coordinator.httpUrl }));
