// SPDX-License-Identifier: Apache-2.0
// Stands between a target's agent and a source's on their socket and tells the test of each call, before
// it goes on and after it was answered, so that something can be killed at exactly that moment.

import { HandleClient, HandleServer } from "../../src/transport/cuda-ipc.ts";

export type Moment = `${"before" | "after"} ${string}`;

export interface PhaseProxy extends Disposable {
  readonly socket: string;
}

/** @param on called with "before OP" and "after OP"; the call goes on when it resolves */
export function phaseProxy(
  socket: string,
  source: string,
  on: (moment: Moment) => Promise<void>,
): PhaseProxy {
  const clients = new Set<HandleClient>();
  const server = new HandleServer(socket, () => {
    let client: HandleClient | null = null;
    return {
      call: async (call, signal) => {
        await on(`before ${call.op}`);
        client ??= HandleClient.connect(source);
        clients.add(client);
        const reply = await client.call(call, signal);
        await on(`after ${call.op}`);
        return reply;
      },
      end: () => client?.[Symbol.dispose](),
    };
  });
  return {
    socket,
    [Symbol.dispose]: () => {
      server[Symbol.dispose]();
      for (const client of clients) client[Symbol.dispose]();
    },
  };
}
