// SPDX-License-Identifier: Apache-2.0
// What hostile clients attack: a coordinator with an authority of its own and a source of the fleet, both
// as users start them, behind TLS; and what must still be so afterwards.

import { createPublicKey } from "node:crypto";
import fs from "node:fs";
import path from "node:path";
import { connectCoordinator } from "../../src/agent/coordinator-client.ts";
import { toSourceIdentity } from "../../src/agent/identity-wire.ts";
import { writeCertificatePem } from "../../src/trust/certificate.ts";
import { loadOrCreateKey } from "../../src/trust/key-file.ts";
import { keyIdOf, privateKeyPem, writePublicKey } from "../../src/trust/keys.ts";
import { signPolicy } from "../../src/trust/setup.ts";
import { type RelightProcess, relight } from "../support/relight.ts";
import type { TemporaryFolder } from "../support/temporary-folder.ts";
import type { liveFleet } from "../support/trust.ts";
import { type Keys, makeKeys, policyFor } from "./forge.ts";
import { joinToken } from "./impostors.ts";
import { identityFor, model, type Shown } from "./plan.ts";

export const family = "guarded";
export const sourceName = "node-a";

export interface Bastion extends AsyncDisposable {
  readonly fleet: ReturnType<typeof liveFleet>;
  readonly keys: Keys;
  /** host:port each. */
  readonly coordinator: string;
  readonly source: string;
  /** Of the one honest record. */
  readonly artifactId: string;
  readonly sourceId: string;
  readonly workerId: string;
  /** Of a reader without a certificate. */
  readonly bearer: string;
  /** Largest memory of the coordinator and of the source so far, in MiB. */
  peakMiB(): number;
  /** What is not as it must be; null when all is. */
  damage(): Promise<string | null>;
}

const bearer = "r".repeat(40);

/** @param revoked whose certificates the policy excludes */
export async function openBastion(
  folder: TemporaryFolder,
  revoked: readonly Shown[],
  fleet: ReturnType<typeof liveFleet>,
): Promise<Bastion> {
  const keys = makeKeys();
  const trust = folder.path("bastion/trust");
  fs.mkdirSync(trust, { recursive: true, mode: 0o700 });
  const own = privateKeyPem(fleet.authority.privateKey).toString("latin1");
  const pem = `${own}${writeCertificatePem(fleet.authority.certificate.der)}`;
  fs.writeFileSync(path.join(trust, "fleet-authority.pem"), pem, { mode: 0o600 });
  const tokens = folder.path("bastion/tokens");
  fs.writeFileSync(tokens, `reader mx ${bearer}\n`, { mode: 0o600 });
  // The source's own key is an author's.
  const author = loadOrCreateKey(folder.path("source/trust/author.pem"));
  const policy = policyFor(keys);
  const identity = { name: "source", key: writePublicKey(author.publicKey) };
  const rule = { families: ["*"], models: ["*"], environments: ["*"], threshold: 1 };
  const gone = revoked.map(({ key }) => keyIdOf(createPublicKey(key)));
  const document = {
    ...policy,
    identities: [...policy.identities, identity],
    rules: [...policy.rules, { ...rule, identities: ["source"] }],
    revoked: { ...policy.revoked, keys: [...policy.revoked.keys, ...gone] },
  };
  fs.writeFileSync(path.join(trust, "policy.json"), signPolicy(document, [keys.root]));
  await using stack = new AsyncDisposableStack();
  const coordinator = stack.use(
    relight([
      "coordinator",
      "--listen=127.0.0.1:0",
      "--http-listen=127.0.0.1:0",
      `--store-dir=${folder.path("bastion/store")}`,
      `--state-dir=${folder.path("bastion/state")}`,
      `--trust-dir=${trust}`,
      "--trust-domain=fleet",
      `--trust-bearer-file=${tokens}`,
    ]),
  );
  const [, address = ""] = await coordinator.printed(/gRPC on (\S+) behind TLS/);
  folder.write("source/cache/k/kernel.bin", `kernel of ${family}`);
  const source = stack.use(
    relight([
      "artifact",
      "publish",
      "--settle=0s",
      `--coordinator-address=${address}`,
      `--join=${joinToken(fleet, keys)}`,
      `--node-id=${sourceName}`,
      `--state-dir=${folder.path("source/state")}`,
      `--trust-dir=${folder.path("source/trust")}`,
      `--model=${model}`,
      "--families=none",
      `--cache=${family}=${folder.path("source/cache")}`,
    ]),
  );
  await source.printed(new RegExp(`published ${family}`));
  const operator = fleet.member("spiffe://fleet/operator/root");
  const client = stack.use(connectCoordinator({ address, timeoutMs: 30_000, tls: () => operator }));
  const listed = async () => {
    const wanted = [toSourceIdentity(identityFor(family))];
    const [found = []] = await client.find(wanted, { limit: 100 }, AbortSignal.timeout(30_000));
    return found;
  };
  const [honest] = await listed();
  if (honest === undefined) throw new Error(`The source is not listed:\n${source.output()}`);
  const { artifact, endpoints, sourceId, workerId } = honest;
  const running = stack.move();
  return {
    fleet,
    keys,
    coordinator: address,
    source: new URL(endpoints[0] ?? "").host,
    artifactId: artifact.artifactId,
    sourceId,
    workerId,
    bearer,
    peakMiB: () => Math.max(...[coordinator, source].map(peakOf)),
    damage: async () => {
      if (coordinator.child.exitCode !== null) return "the coordinator has ended";
      if (source.child.exitCode !== null) return "the source has ended";
      const found = await listed();
      const isAlone = found.length === 1 && found[0]?.workerId === workerId;
      return isAlone && found[0]?.endpoints[0] === endpoints[0]
        ? null
        : `listed are ${found.map(({ workerId: each }) => each).join(", ") || "none"}`;
    },
    [Symbol.asyncDispose]: () => running.disposeAsync(),
  };
}

function peakOf({ child }: RelightProcess): number {
  const text = fs.readFileSync(`/proc/${child.pid}/status`, "utf8");
  return Number(/VmHWM:\s+(\d+) kB/.exec(text)?.[1]) / 1_024;
}
