// SPDX-License-Identifier: Apache-2.0
// `relight doctor`: looks at what most often makes a start cold and says what to do. Each check is one
// function that answers ok, warn, fail or unknown; only a fail changes the exit code.

import { constants, readFileSync } from "node:fs";
import { access, mkdir, statfs } from "node:fs/promises";
import { connect } from "node:net";
import { formatAddress } from "../config/kinds.ts";
import type { Config } from "../config/schema.ts";
import { formatBytes, GiB, MiB } from "../core/units.ts";
import { type Code, codes } from "../errors.ts";
import { errnoOf, fromNodeError } from "../platform/node-errors.ts";
import { type Context, defineCommand } from "./command.ts";
import { type Mount, mountOf, parseMounts } from "./mounts.ts";
import { formatTable } from "./output.ts";

interface Finding {
  readonly check: string;
  readonly status: "ok" | "warn" | "fail" | "unknown";
  readonly detail: string;
  /** The code that this would end in; null when nothing is wrong. */
  readonly code: Code | null;
}

const freeBytesLow = 10 * GiB;
const shmBytesLow = 64 * MiB;
const openFilesLow = 4_096;

export const command = defineCommand({
  settings: ["state", "coordinator", "agent", "log"],
  run: async (context) => {
    const findings = await examine(context);
    const failed = findings.find((finding) => finding.status === "fail");
    context.output.result(
      { ok: failed === undefined, checks: findings.map((one) => ({ ...one })) },
      () => formatTable(findings.flatMap(textRows)),
    );
    return failed?.code == null ? 0 : codes[failed.code].exit;
  },
});

async function examine({ config, configPath, signal }: Context): Promise<readonly Finding[]> {
  return [
    checkNode(),
    finding("configuration", "ok", configPath ?? "no file; defaults, environment and flags"),
    await checkStateDirectory(config["state.dir"]),
    checkAccessTimes(config["state.dir"]),
    await checkCoordinator(config, signal),
    checkGpuDriver(),
    await checkSharedMemory(),
    checkOpenFiles(),
  ];
}

function textRows(one: Finding): string[][] {
  const row = [one.status, one.check, one.detail];
  return one.code === null ? [row] : [row, ["", "", `next: ${codes[one.code].next}`]];
}

function finding(
  check: string,
  status: Finding["status"],
  detail: string,
  code: Code | null = null,
): Finding {
  return { check, status, detail, code };
}

function checkNode(): Finding {
  return finding("node", "ok", `${process.version} ${process.platform}-${process.arch}`);
}

async function checkStateDirectory(directory: string): Promise<Finding> {
  try {
    await mkdir(directory, { recursive: true, mode: 0o700 });
    await access(directory, constants.W_OK | constants.X_OK);
    const { bavail, bsize } = await statfs(directory);
    const free = bavail * bsize;
    const detail = `${directory}: writable, ${formatBytes(free)} free`;
    return free < freeBytesLow
      ? finding("state directory", "warn", detail, "disk_full")
      : finding("state directory", "ok", detail);
  } catch (cause) {
    const { code } = fromNodeError(cause, "use the state directory");
    return finding("state directory", "fail", `${directory}: ${errnoOf(cause)}`, code);
  }
}

/** Hits are proved by access times; a mount that keeps none leaves them unknown. */
function checkAccessTimes(directory: string): Finding {
  const mount = mountOf(directory, readMounts());
  if (mount === undefined) return finding("access times", "unknown", "no mount table to read");
  const keeps = !mount.options.includes("noatime");
  const detail = `${mount.point} (${mount.type})`;
  return keeps
    ? finding("access times", "ok", `${detail} keeps access times, so hits can be proved`)
    : finding("access times", "warn", `${detail} is mounted noatime: hits stay unknown`);
}

function readMounts(): readonly Mount[] {
  const text = readProc("/proc/self/mountinfo");
  return text === undefined ? [] : parseMounts(text);
}

async function checkCoordinator(config: Config, signal: AbortSignal): Promise<Finding> {
  const where = config["coordinator.address"];
  const refused = await connectOnce(where, { timeoutMs: config["agent.connect_timeout"], signal });
  const address = formatAddress(where);
  return refused === null
    ? finding("coordinator", "ok", `${address} accepts connections`)
    : finding("coordinator", "fail", `${address}: ${refused}`, "coordinator_unreachable");
}

/** Null when the connection was accepted, else why not. */
function connectOnce(
  where: { readonly host: string; readonly port: number },
  limits: { readonly timeoutMs: number; readonly signal: AbortSignal },
): Promise<string | null> {
  return new Promise((resolve) => {
    const socket = connect({ host: where.host, port: where.port, signal: limits.signal });
    const end = (answer: string | null) => {
      socket.destroy();
      resolve(answer);
    };
    socket.setTimeout(limits.timeoutMs, () => end(`no answer within ${limits.timeoutMs} ms`));
    socket.once("connect", () => end(null));
    socket.once("error", (error) => end(errnoOf(error)));
  });
}

function checkGpuDriver(): Finding {
  const text = readProc("/proc/driver/nvidia/version");
  const version =
    text === undefined ? undefined : /Kernel Module\s+(?:for \S+\s+)?(\S+)/.exec(text)?.[1];
  if (text === undefined) {
    return finding("gpu driver", "unknown", "no NVIDIA driver here: caches work, weights do not");
  }
  return finding("gpu driver", "ok", `NVIDIA ${version ?? "of unknown version"}`);
}

async function checkSharedMemory(): Promise<Finding> {
  try {
    const { blocks, bsize } = await statfs("/dev/shm");
    const size = blocks * bsize;
    const detail = `/dev/shm holds ${formatBytes(size)}`;
    return finding("shared memory", size <= shmBytesLow ? "warn" : "ok", detail);
  } catch (cause) {
    return finding("shared memory", "unknown", `/dev/shm: ${errnoOf(cause)}`);
  }
}

function checkOpenFiles(): Finding {
  const text = readProc("/proc/self/limits") ?? "";
  const limit = /^Max open files\s+(\d+|unlimited)/m.exec(text)?.[1];
  if (limit === undefined) return finding("open files", "unknown", "no limits to read");
  const isLow = limit !== "unlimited" && Number(limit) < openFilesLow;
  return finding("open files", isLow ? "warn" : "ok", `limit ${limit}`);
}

function readProc(path: string): string | undefined {
  try {
    return readFileSync(path, "utf8");
  } catch {
    // Absent on this kernel or in this container: the check answers "unknown".
    return undefined;
  }
}
