// SPDX-License-Identifier: Apache-2.0
// `relight trust sign FILE`: the next version of the policy from an edited document, or one more
// signature on a version that others have begun.

import { paths } from "../config/kinds.ts";
import { RelightError } from "../errors.ts";
import { systemClock } from "../platform/clock.ts";
import { readSmall } from "../platform/files.ts";
import { addSignature, decodeEnvelope, type Envelope } from "../trust/envelope.ts";
import { makePolicy, type PolicyDocument, policyBytesMax } from "../trust/policy.ts";
import { nextPolicy, signPolicy } from "../trust/setup.ts";
import { defineCommand } from "./command.ts";
import {
  openTrustStore,
  policyLifetimeMs,
  presentPolicy,
  putPolicy,
  putText,
  readPolicy,
  rootSigners,
  type TrustStore,
} from "./trust-store.ts";

export const command = defineCommand({
  settings: ["trust", "state"],
  // Not "trust" too: its --key would be the key of trust.key.
  flags: {
    key: paths({
      fallback: [],
      about: "A root's private key, beside root.pem of the trust folder.",
    }),
  },
  operands: [
    {
      name: "FILE",
      about:
        "`document` of `relight trust show --json`, edited; or a policy that lacks signatures.",
    },
  ],
  run: async ({ config, flags, operands, output, signal }) => {
    const store = await openTrustStore(config, signal);
    const [file = ""] = operands;
    const bytes = readSmall(file, 2 * policyBytesMax);
    if (bytes === null)
      throw new RelightError("not_found", `Cannot sign "${file}": it does not exist`);
    const envelope = signed(store, parse(bytes, file), { bytes, keys: flags.key });
    const put = await putPolicy(store, envelope, signal);
    output.result({ ...put }, () => putText(put));
    return 0;
  },
});

function signed(
  store: TrustStore,
  json: object,
  { bytes, keys }: { readonly bytes: Buffer; readonly keys: readonly string[] },
): Envelope {
  if ("payloadType" in json) {
    const begun = decodeEnvelope(bytes, policyBytesMax);
    return rootSigners(store, readPolicy(bytes), keys).reduce(addSignature, begun);
  }
  const present = presentPolicy(store);
  // Its times and number are ours to give; what else is wrong with it is said by `nextPolicy`.
  const { format, version, issuedAt, expiresAt, ...change } = json as PolicyDocument;
  const now = systemClock.wallMs();
  const document = nextPolicy(present.document, change, { now, lifetimeMs: policyLifetimeMs });
  const policy = makePolicy(document);
  // New roots need the old ones' signatures as well.
  const signers = [...rootSigners(store, present, keys), ...rootSigners(store, policy, keys)];
  const distinct = new Map(signers.map((signer) => [signer.publicKey.keyId, signer]));
  return decodeEnvelope(signPolicy(document, [...distinct.values()]), policyBytesMax);
}

function parse(bytes: Buffer, file: string): object {
  try {
    const json: unknown = JSON.parse(bytes.toString("utf8"));
    if (typeof json === "object" && json !== null) return json;
  } catch {
    // Said below, for both.
  }
  throw new RelightError("policy_invalid", `Cannot sign "${file}": it is no JSON object`);
}
