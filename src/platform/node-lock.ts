// SPDX-License-Identifier: Apache-2.0
// One holder per node for a folder, among processes that share it. The lock is a file made with
// link(2), which is atomic also on NFS. A holder that was killed is seen at once by its process id
// and start time; one in another container, whose processes we cannot see, by a heartbeat that stopped.

import { randomBytes } from "node:crypto";
import fs from "node:fs";
import os from "node:os";
import path from "node:path";
import { RelightError } from "../errors.ts";
import type { Clock } from "./clock.ts";
import { errnoOf, fromNodeError } from "./node-errors.ts";

/** A holder refreshes the lock this often; after `silenceMsMax` without, it counts as gone. */
const refreshMs = 1_000;
const silenceMsMax = 15_000;
const pollMs = 50;

export interface NodeLock extends Disposable {
  /** Milliseconds spent waiting for another holder. */
  readonly waitedMs: number;
}

interface Holder {
  readonly token: string;
  readonly pid: number;
  readonly startTime: string;
  readonly space: string;
}

/**
 * Waits for the lock until `signal` fires.
 * @throws RelightError `lock_timeout` naming the holder, or what the disk answered.
 */
export async function claimNodeLock(
  file: string,
  options: { clock: Clock; signal: AbortSignal },
): Promise<NodeLock> {
  const { clock, signal } = options;
  const startedMs = clock.monotonicMs();
  const self = describeSelf();
  for (;;) {
    if (tryClaim(file, self)) return hold(file, self, clock.monotonicMs() - startedMs);
    const holder = readHolder(file);
    if (holder === null) continue;
    if (isGone(file, holder, clock)) {
      breakLock(file, holder);
      continue;
    }
    await clock.sleep(pollMs, signal).catch((cause: unknown) => {
      throw new RelightError(
        "lock_timeout",
        `Cannot claim "${file}": process ${holder.pid} holds it`,
        {
          details: { pid: holder.pid },
          cause,
        },
      );
    });
  }
}

function hold(file: string, self: Holder, waitedMs: number): NodeLock {
  const timer = setInterval(() => {
    if (readHolder(file)?.token !== self.token) return;
    const now = new Date();
    fs.utimes(file, now, now, () => {
      // A missed refresh is harmless; a holder that misses all of them loses the lock, as it should.
    });
  }, refreshMs);
  timer.unref();
  return {
    waitedMs,
    [Symbol.dispose]: () => {
      clearInterval(timer);
      if (readHolder(file)?.token === self.token) fs.rmSync(file, { force: true });
    },
  };
}

function tryClaim(file: string, self: Holder): boolean {
  const draft = `${file}.${self.token}`;
  try {
    fs.mkdirSync(path.dirname(file), { recursive: true, mode: 0o700 });
    fs.writeFileSync(draft, JSON.stringify(self), { mode: 0o600 });
    fs.linkSync(draft, file);
    return true;
  } catch (error) {
    if (errnoOf(error) === "EEXIST") return false;
    throw fromNodeError(error, `claim "${file}"`);
  } finally {
    fs.rmSync(draft, { force: true });
  }
}

function readHolder(file: string): Holder | null {
  try {
    return JSON.parse(fs.readFileSync(file, "utf8")) as Holder;
  } catch (error) {
    if (errnoOf(error) === "ENOENT") return null;
    if (error instanceof SyntaxError) return { token: "", pid: 0, startTime: "", space: "" };
    throw fromNodeError(error, `read "${file}"`);
  }
}

function isGone(file: string, holder: Holder, clock: Clock): boolean {
  if (holder.space === processSpace()) return startTimeOf(holder.pid) !== holder.startTime;
  try {
    return clock.wallMs() - fs.statSync(file).mtimeMs > silenceMsMax;
  } catch {
    // The holder released it between the two looks.
    return true;
  }
}

/** Moves the dead holder's lock aside; the token check keeps a fresh lock from being broken. */
function breakLock(file: string, holder: Holder): void {
  const aside = `${file}.dead-${randomBytes(6).toString("hex")}`;
  try {
    if (readHolder(file)?.token !== holder.token) return;
    fs.renameSync(file, aside);
    const moved = readHolder(aside);
    // Somebody else broke it and claimed anew in between: give it back unless a third holder came.
    if (moved !== null && moved.token !== holder.token) fs.linkSync(aside, file);
  } catch (error) {
    if (errnoOf(error) !== "ENOENT" && errnoOf(error) !== "EEXIST")
      throw fromNodeError(error, `break "${file}"`);
  } finally {
    fs.rmSync(aside, { force: true });
  }
}

function describeSelf(): Holder {
  return {
    token: randomBytes(8).toString("hex"),
    pid: process.pid,
    startTime: startTimeOf(process.pid),
    space: processSpace(),
  };
}

/** Field 22 of /proc/PID/stat: ticks since boot at which the process began; empty when it is gone. */
function startTimeOf(pid: number): string {
  try {
    const stat = fs.readFileSync(`/proc/${pid}/stat`, "latin1");
    return stat.slice(stat.lastIndexOf(")") + 2).split(" ")[19] ?? "";
  } catch {
    return "";
  }
}

/** Two processes with the same value can see each other's process ids. */
function processSpace(): string {
  try {
    const boot = fs.readFileSync("/proc/sys/kernel/random/boot_id", "latin1").trim();
    return `${boot}/${fs.readlinkSync("/proc/self/ns/pid")}`;
  } catch {
    return `host/${os.hostname()}`;
  }
}
