// SPDX-License-Identifier: Apache-2.0
// A client that shares no code with ours: Python's grpcio with messages that protoc makes of p2p.proto.
// Each claim of python-client/client.py is a test here. Its packages are installed once into a
// temporary folder; without a package index in reach the tests are skipped and say so.

import assert from "node:assert/strict";
import { type ExecFileException, execFile } from "node:child_process";
import { createHash } from "node:crypto";
import { existsSync, mkdtempSync, readFileSync, renameSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { test } from "node:test";
import { coordinatorFixture } from "../support/coordinator.ts";
import { temporaryFolder } from "../support/temporary-folder.ts";

const here = join(import.meta.dirname, "python-client");
const protos = join(import.meta.dirname, "../../src/protocol/proto");
const requirements = join(here, "requirements.txt");
const installMsMax = 150_000;
const claimsMsMax = 120_000;

interface Claim {
  readonly name: string;
  readonly error: string | null;
}

test("a Python grpcio client made from p2p.proto", async (t) => {
  const packages = await install();
  if (packages === undefined) return t.skip("no package index in reach to install grpcio from");
  using folder = temporaryFolder();
  folder.write("gen/.keep", "");
  const generated = folder.path("gen");
  const protoc = ["-m", "grpc_tools.protoc", `-I${protos}`, `--python_out=${generated}`];
  const made = await python(
    packages,
    [...protoc, `--grpc_python_out=${generated}`, "p2p.proto"],
    claimsMsMax,
  );
  assert.equal(made.error, null, made.stderr);
  await using fixture = await coordinatorFixture();
  await using short = await coordinatorFixture({
    limits: { heartbeatTimeoutMs: 1_000, staleRetentionMs: 1_000 },
  });
  const addresses = [fixture.coordinator.grpcAddress, short.coordinator.grpcAddress];
  const ran = await python(
    packages,
    [join(here, "client.py"), generated, ...addresses],
    claimsMsMax,
  );
  assert.equal(ran.error, null, ran.stderr);
  const claims = ran.stdout
    .trim()
    .split("\n")
    .map((line): Claim => JSON.parse(line));
  assert.ok(claims.length >= 19, `${claims.length} claims`);
  for (const { name, error } of claims)
    await t.test(name, () => assert.equal(error, null, error ?? ""));
  return undefined;
});

/** The folder with the packages; undefined when no index is in reach. */
async function install(): Promise<string | undefined> {
  const digest = createHash("sha256").update(readFileSync(requirements)).digest("hex").slice(0, 12);
  const target = join(tmpdir(), `relight-python-client-${digest}`);
  if (existsSync(target)) return target;
  const fresh = mkdtempSync(`${target}-`);
  const options = ["--quiet", "--disable-pip-version-check", "--retries", "1", "--timeout", "20"];
  const wanted = ["--only-binary", ":all:", "--target", fresh, "-r", requirements];
  const { error, stderr } = await python(
    "",
    ["-m", "pip", "install", ...options, ...wanted],
    installMsMax,
  );
  if (error !== null) {
    rmSync(fresh, { recursive: true, force: true });
    const isOffline = /connection|network|timed out|resolve|unreachable|retries/i.test(stderr);
    assert.ok(isOffline || error.killed === true, stderr);
    return undefined;
  }
  try {
    renameSync(fresh, target);
  } catch {
    // Another run was first; its folder holds the same.
    rmSync(fresh, { recursive: true, force: true });
  }
  return target;
}

function python(
  packages: string,
  words: readonly string[],
  timeout: number,
): Promise<{ error: ExecFileException | null; stdout: string; stderr: string }> {
  // Proxies are for the package index; the coordinator is on loopback.
  const env = {
    ...process.env,
    no_proxy: "127.0.0.1,localhost",
    ...(packages === "" ? {} : { PYTHONPATH: packages }),
  };
  return new Promise((resolve) => {
    const options = { timeout, env, maxBuffer: 16_777_216 };
    execFile("python3", words, options, (error, stdout, stderr) =>
      resolve({ error, stdout, stderr }),
    );
  });
}
