// SPDX-License-Identifier: Apache-2.0
// `relight doctor` on the machine itself: Node, disk, access times, GPU, compilers and limits.

import { accessSync, constants, globSync, readFileSync } from "node:fs";
import { mkdir, rm, statfs, writeFile } from "node:fs/promises";
import path from "node:path";
import { keepsAccessTimes } from "../artifacts/hits.ts";
import type { Environment } from "../config/kinds.ts";
import { formatBytes, GiB, MiB } from "../core/units.ts";
import { errnoOf, fromNodeError } from "../platform/node-errors.ts";
import { type Finding, fail, ok, unknown, warn } from "./doctor-finding.ts";
import { mountOf, parseMounts } from "./mounts.ts";

const freeBytesLow = 10 * GiB;
const shmBytesLow = 64 * MiB;
const openFilesLow = 4_096;

export async function examineMachine(options: {
  readonly stateFolder: string;
  readonly environment: Environment;
}): Promise<readonly Finding[]> {
  const { stateFolder, environment } = options;
  return [
    ok("node", `${process.version} ${process.platform}-${process.arch}`),
    await checkStateFolder(stateFolder),
    checkAccessTimes(stateFolder),
    checkGpu(),
    checkCompilers(environment),
    await checkSharedMemory(),
    checkOpenFiles(),
  ];
}

/** By writing a file: permissions, quotas and read-only mounts have the last word. */
async function checkStateFolder(folder: string): Promise<Finding> {
  const check = "state directory";
  const probe = path.join(folder, `.doctor-${process.pid}`);
  try {
    await mkdir(folder, { recursive: true, mode: 0o700 });
    await writeFile(probe, Buffer.alloc(4_096), { mode: 0o600, flush: true });
    const { bavail, bsize } = await statfs(folder);
    const detail = `${folder}: writable, ${formatBytes(bavail * bsize)} free`;
    return bavail * bsize < freeBytesLow
      ? warn(check, detail, { code: "disk_full" })
      : ok(check, detail);
  } catch (cause) {
    return fail(check, fromNodeError(cause, `write in "${folder}"`));
  } finally {
    // What could not be written need not be removed.
    await rm(probe, { force: true }).catch(() => {});
  }
}

/** Hits are proved by access times; a mount that keeps none leaves them unknown. */
function checkAccessTimes(folder: string): Finding {
  const check = "access times";
  const mount = mountOf(folder, parseMounts(readProc("/proc/self/mountinfo") ?? ""));
  const where = mount === undefined ? folder : `${mount.point} (${mount.type})`;
  return keepsAccessTimes(folder)
    ? ok(check, `${where} keeps access times, so hits can be proved`)
    : warn(check, `${where} keeps no access times: which installed files were used stays unknown`, {
        next: "Mount it without noatime; relatime, the kernel's default, is enough.",
      });
}

function checkGpu(): Finding {
  const check = "gpu driver";
  const text = readProc("/proc/driver/nvidia/version");
  if (text === undefined)
    return unknown(check, "no NVIDIA driver here: caches work, weights do not");
  const version = /Kernel Module\s+(?:for \S+\s+)?(\S+)/.exec(text)?.[1] ?? "of unknown version";
  const models = globSync("/proc/driver/nvidia/gpus/*/information").flatMap(
    (file) => /^Model:\s*(.+)$/m.exec(readProc(file) ?? "")?.[1]?.trim() ?? [],
  );
  const named = [...Map.groupBy(models, (model) => model)].map(
    ([model, each]) => `${each.length} x ${model}`,
  );
  return ok(check, [`NVIDIA ${version}`, ...named].join(", "));
}

/** What JIT compilers call at start, beside their own code. */
function checkCompilers(environment: Environment): Finding {
  const check = "compilers";
  const cc = findProgram(environment["CC"] || "cc", environment);
  const cudaHome = environment["CUDA_HOME"];
  const nvcc = findProgram(cudaHome ? `${cudaHome}/bin/nvcc` : "nvcc", environment);
  const nvccText = nvcc === null ? "no nvcc, which DeepGEMM and FlashInfer need" : `nvcc ${nvcc}`;
  return cc === null
    ? warn(check, `no C compiler; ${nvccText}`, {
        next: "Install one (`cc`, or CC): Triton and Inductor compile launchers with it at every miss.",
      })
    : ok(check, `cc ${cc}; ${nvccText}`);
}

function findProgram(name: string, environment: Environment): string | null {
  const folders = name.includes("/") ? [""] : (environment["PATH"] ?? "").split(":");
  const files = folders.map((folder) => path.join(folder, name));
  return files.find(isExecutable) ?? null;
}

function isExecutable(file: string): boolean {
  try {
    accessSync(file, constants.X_OK);
    return true;
  } catch {
    // Not there, or not ours to run: the next folder is looked at.
    return false;
  }
}

async function checkSharedMemory(): Promise<Finding> {
  const check = "shared memory";
  try {
    const { blocks, bsize } = await statfs("/dev/shm");
    const detail = `/dev/shm holds ${formatBytes(blocks * bsize)}`;
    return blocks * bsize <= shmBytesLow
      ? warn(check, detail, {
          next: "Give the container more (docker: --shm-size; Kubernetes: an emptyDir in memory).",
        })
      : ok(check, detail);
  } catch (cause) {
    return unknown(check, `/dev/shm: ${errnoOf(cause)}`);
  }
}

function checkOpenFiles(): Finding {
  const check = "open files";
  const text = readProc("/proc/self/limits") ?? "";
  const limit = /^Max open files\s+(\d+|unlimited)/m.exec(text)?.[1];
  if (limit === undefined) return unknown(check, "no limits to read");
  return limit !== "unlimited" && Number(limit) < openFilesLow
    ? warn(check, `limit ${limit}`, { next: `Raise it to ${openFilesLow} or more (ulimit -n).` })
    : ok(check, `limit ${limit}`);
}

function readProc(file: string): string | undefined {
  try {
    return readFileSync(file, "utf8");
  } catch {
    // Absent on this kernel or in this container: the check answers "unknown".
    return undefined;
  }
}
