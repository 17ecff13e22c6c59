// SPDX-License-Identifier: Apache-2.0
// A program: the part of an agent that hosts ranks, as a process that a test can kill.
// Usage: ep-host-process.ts SOCKET NODE COORDINATOR

import { EpClient } from "../../src/agent/ep-client.ts";
import { EpHost } from "../../src/agent/ep-host.ts";

const [socketPath = "", nodeId = "", address = ""] = process.argv.slice(2);
const client = new EpClient({ address, timeoutMs: 3_000 });
const host = new EpHost({
  ...{ nodeId, socketPath, client },
  onFailure: ({ code, message }) => console.error(code, message),
});
process.once("SIGTERM", () => {
  host[Symbol.dispose]();
  client[Symbol.dispose]();
});
console.log("listening");
