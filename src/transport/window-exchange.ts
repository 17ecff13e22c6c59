// SPDX-License-Identifier: Apache-2.0
// How the ranks of an expert group hand each other memory: a socket for each rank, one call for each kind
// (`ep.window`, `ep.experts`), answered with a handle. python/relight/ep.py speaks the same.

import { closeSync } from "node:fs";
import { z } from "zod";
import { RelightError } from "../errors.ts";
import type { MemoryHandle } from "../gpu/driver.ts";
import { HandleClient, HandleServer } from "./cuda-ipc.ts";

const seatSchema = z.strictObject({
  slot: z.number().int().min(0).max(31),
  incarnation: z.number().int().min(1).max(65_535),
});
export type WindowSeat = Readonly<z.infer<typeof seatSchema>>;

export type WindowKind = "ep.window" | "ep.experts";

type Export = () => Promise<MemoryHandle>;

interface Offer {
  readonly seat: WindowSeat;
  readonly exports: ReadonlyMap<string, Export>;
}

/** Listens until disposed; one seat at a time is offered. */
export class WindowSocket implements Disposable {
  readonly address: string;
  readonly #server: HandleServer;
  #offer: Offer | null = null;

  /** @throws port_in_use, request_invalid (the path is too long) */
  constructor(path: string) {
    this.address = path;
    this.#server = new HandleServer(path, () => {
      const exported: number[] = [];
      return {
        call: async ({ op, args }) => {
          const handle = await this.#answer(op, args);
          if (handle.kind === "descriptor") {
            exported.push(...handle.pieces.map(({ descriptor }) => descriptor));
          }
          return { value: {}, handles: [handle] };
        },
        // Sent descriptors are the receiver's own; ours stay open until the connection is over.
        end: () => {
          for (const descriptor of exported.splice(0)) closeSync(descriptor);
        },
      };
    });
  }

  /** @param exportExperts null where experts come from elsewhere only */
  offer(seat: WindowSeat, exportWindow: Export, exportExperts: Export | null = null): void {
    const exports = new Map([["ep.window", exportWindow]]);
    if (exportExperts !== null) exports.set("ep.experts", exportExperts);
    this.#offer = { seat, exports };
  }

  /** @throws source_unreachable, source_protocol, not_found (another seat sits there), cancelled */
  async fetch(
    address: string,
    seat: WindowSeat,
    signal: AbortSignal,
    kind: WindowKind = "ep.window",
  ): Promise<{ readonly handle: MemoryHandle } & Disposable> {
    const client = HandleClient.connect(address);
    try {
      const args = { slot: seat.slot, incarnation: seat.incarnation };
      const { handles } = await client.call({ op: kind, args, handles: [] }, signal);
      const [handle] = handles;
      if (handle === undefined || handles.length !== 1) {
        throw new RelightError(
          "source_protocol",
          `Cannot map slot ${seat.slot}: its rank sent ${handles.length} handles, wanted 1`,
        );
      }
      return { handle, [Symbol.dispose]: () => client[Symbol.dispose]() };
    } catch (error) {
      client[Symbol.dispose]();
      throw error;
    }
  }

  [Symbol.dispose](): void {
    this.#server[Symbol.dispose]();
  }

  async #answer(op: string, args: unknown): Promise<MemoryHandle> {
    const wanted = seatSchema.safeParse(args);
    if (!wanted.success) {
      throw new RelightError("request_invalid", `Cannot answer "${op}": it names no seat`);
    }
    const { slot, incarnation } = wanted.data;
    const offered = this.#offer;
    if (offered?.seat.slot !== slot || offered.seat.incarnation !== incarnation) {
      const there =
        offered === null ? "nobody" : `${offered.seat.slot}.${offered.seat.incarnation}`;
      throw new RelightError(
        "not_found",
        `Cannot give memory of seat ${slot}.${incarnation}: ${there} sits here`,
      );
    }
    const exported = offered.exports.get(op);
    if (exported === undefined) {
      throw new RelightError("request_invalid", `Cannot answer "${op}": it is not offered here`);
    }
    return await exported();
  }
}
