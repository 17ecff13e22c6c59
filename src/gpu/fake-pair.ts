// SPDX-License-Identifier: Apache-2.0
// Two fake GPUs that send to one another, in one process or in two: each message is a file in the
// directory that both name, and an end that is closed leaves a word behind, as a closed socket would.

import { randomBytes } from "node:crypto";
import { existsSync, readFileSync, renameSync, rmSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { setTimeout as pause } from "node:timers/promises";
import { RelightError } from "../errors.ts";
import type { Wait } from "./driver.ts";
import { checkWait } from "./wait.ts";

const idBytes = 128;
const pauseMs = 1;

export function fakePairId(): Uint8Array {
  return new Uint8Array(randomBytes(idBytes));
}

export class FakePair {
  readonly #path: string;
  readonly #rank: 0 | 1;
  #sent = 0;
  #received = 0;

  private constructor(path: string, rank: 0 | 1) {
    this.#path = path;
    this.#rank = rank;
  }

  /** @throws deadline_exceeded, cancelled */
  static async meet(
    directory: string,
    { id, rank }: { readonly id: Uint8Array; readonly rank: 0 | 1 },
    wait: Wait,
  ): Promise<FakePair> {
    const name = Buffer.from(id).toString("hex").slice(0, 32);
    const pair = new FakePair(join(directory, `pair-${name}`), rank);
    writeFileSync(`${pair.#file(rank, "here")}.part`, String(process.pid));
    renameSync(`${pair.#file(rank, "here")}.part`, pair.#file(rank, "here"));
    const deadline = performance.now() + wait.deadlineMs;
    while (!existsSync(pair.#file(pair.#peer, "here"))) {
      checkWait(wait, deadline);
      await pause(pauseMs);
    }
    return pair;
  }

  /** @throws source_unreachable when the other end was closed */
  send(bytes: Uint8Array): void {
    this.#checkPeer();
    const message = this.#file(this.#rank, String(this.#sent));
    this.#sent += 1;
    writeFileSync(`${message}.part`, bytes);
    renameSync(`${message}.part`, message);
  }

  /** The next message, or `null` while it is not there. @throws source_unreachable, device_failed */
  take(bytes: number): Buffer | null {
    const message = this.#file(this.#peer, String(this.#received));
    if (!existsSync(message)) {
      this.#checkPeer();
      return null;
    }
    this.#received += 1;
    const taken = readFileSync(message);
    rmSync(message);
    if (taken.byteLength === bytes) return taken;
    throw new RelightError(
      "device_failed",
      `Cannot receive ${bytes} bytes: the other end sent ${taken.byteLength}`,
    );
  }

  close(): void {
    writeFileSync(this.#file(this.#rank, "gone"), "");
  }

  get #peer(): 0 | 1 {
    return this.#rank === 0 ? 1 : 0;
  }

  #checkPeer(): void {
    if (!existsSync(this.#file(this.#peer, "gone")) && this.#isPeerAlive()) return;
    throw new RelightError("source_unreachable", "Cannot go on with the other GPU: it has closed");
  }

  /** A killed process says nothing; its socket's end would. */
  #isPeerAlive(): boolean {
    try {
      return process.kill(Number(readFileSync(this.#file(this.#peer, "here"), "latin1")), 0);
    } catch {
      return false;
    }
  }

  #file(rank: 0 | 1, name: string): string {
    return `${this.#path}-${rank}-${name}`;
  }
}
