// SPDX-License-Identifier: Apache-2.0
// `relight trust init`: a root key, the first policy of a fleet and, where the operator brings none, its
// authority for certificates. The policy's file goes to every node; the root key stays here, away from
// replicas; the authority goes to the coordinator.

import fs from "node:fs";
import path from "node:path";
import { pairs } from "../config/kinds.ts";
import type { Config } from "../config/schema.ts";
import { RelightError } from "../errors.ts";
import { systemClock } from "../platform/clock.ts";
import { decodeEnvelope } from "../trust/envelope.ts";
import { loadOrCreateAuthority } from "../trust/fleet-authority.ts";
import { loadOrCreateKey } from "../trust/key-file.ts";
import { readPublicKey, writePublicKey } from "../trust/keys.ts";
import { policyBytesMax } from "../trust/policy.ts";
import { firstPolicy, signPolicy } from "../trust/setup.ts";
import { defineCommand } from "./command.ts";
import { tlsFiles } from "./fleet-settings.ts";
import {
  openTrustStore,
  policyLifetimeMs,
  putPolicy,
  putText,
  rootKeyName,
} from "./trust-store.ts";

export const command = defineCommand({
  settings: ["trust", "state"],
  shortGroups: ["trust"],
  flags: {
    author: pairs({
      fallback: [],
      placeholder: "NAME=KEY",
      about:
        "A node that may author: a name and its public key, as `relight trust show` tells it there.",
    }),
  },
  run: async ({ config, flags, output, signal }) => {
    const policyFile = config["trust.policy"];
    if (fs.existsSync(policyFile))
      throw new RelightError("conflict", `Cannot make a first policy: "${policyFile}" exists`);
    const store = await openTrustStore(config, signal);
    const root = loadOrCreateKey(path.join(store.folder, rootKeyName));
    const authors = flags.author.map(({ name, value }) => ({
      name,
      key: writePublicKey(readPublicKey(value)),
    }));
    const own = { name: "this-node", key: writePublicKey(store.author.publicKey) };
    const first = firstPolicy({
      roots: [root.publicKey],
      rootThreshold: 1,
      identities: [own, ...authors],
      now: systemClock.wallMs(),
      lifetimeMs: policyLifetimeMs,
    });
    // What a node said of itself before has versions too: nobody is taken back behind them.
    const document = { ...first, version: (store.keeper.policy?.version ?? 0) + 1 };
    const envelope = decodeEnvelope(signPolicy(document, [root]), policyBytesMax);
    const put = await putPolicy(store, envelope, signal);
    const authority = ownAuthority(config);
    const made = { ...put, root: root.publicKey.keyId, authors: document.identities.length };
    output.result({ ...made, authority }, () =>
      [
        putText(put),
        `root key ${made.root} in ${path.join(store.folder, rootKeyName)}: keep it off the replicas`,
        ...(authority === null
          ? []
          : [`authority ${authority} in ${store.folder}: the coordinator needs it there`]),
      ].join("\n"),
    );
    return 0;
  },
});

/** Its fingerprint; null where the operator's own authority issues the certificates. */
function ownAuthority(config: Config): string | null {
  if (tlsFiles(config) !== null) return null;
  const trustDomain = config["trust.domain"];
  const now = systemClock.wallMs();
  return loadOrCreateAuthority(config["trust.dir"], { trustDomain, now }).certificate.fingerprint;
}
