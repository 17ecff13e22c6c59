// SPDX-License-Identifier: Apache-2.0
// From the configuration to what stands behind TLS: files that an operator brings, or the fleet's own
// authority in the trust folder of its coordinator.

import { readPolicyFile } from "../agent/open-trust.ts";
import type { Config } from "../config/schema.ts";
import type { CoordinatorTls } from "../coordinator/main.ts";
import { isLoopback } from "../core/loopback.ts";
import { RelightError } from "../errors.ts";
import { readSecret } from "../platform/private-file.ts";
import { bearerLimits, readBearerTokens } from "../trust/bearer.ts";
import { loadAuthority, loadOrCreateAuthority } from "../trust/fleet-authority.ts";
import { membersFileIn, usesFileIn } from "../trust/members-file.ts";
import { coordinatorUri } from "../trust/tls-material.ts";
import { openTlsFiles, selfIssued, type TlsFileNames } from "../trust/tls-source.ts";

const dayMs = 86_400_000;
/** How long certificates of the fleet's own authority count; renewed at two thirds of it. */
export const certificateMs = dayMs;

/** Null when none of the three is set. @throws RelightError `config_invalid` when some are. */
export function tlsFiles(config: Config): TlsFileNames | null {
  const certificate = config["trust.certificate"];
  const key = config["trust.key"];
  const authority = config["trust.authority"];
  if (certificate === null && key === null && authority === null) return null;
  if (certificate !== null && key !== null && authority !== null)
    return { certificate, key, authority };
  throw new RelightError(
    "config_invalid",
    "Cannot speak TLS: want all of trust.certificate, trust.key and trust.authority, or none",
  );
}

/**
 * Undefined for a coordinator in plaintext on loopback. Beyond it one that was given no files makes an
 * authority of its own at its first start.
 */
export function coordinatorTls(config: Config): CoordinatorTls | undefined {
  const brought = tlsFiles(config);
  const tokens = bearerTokens(config);
  if (brought !== null) return { source: openTlsFiles(brought), ...tokens };
  const folder = config["trust.dir"];
  const trustDomain = config["trust.domain"];
  const now = Date.now;
  const isOpen = !isLoopback(config["coordinator.listen"].host);
  const authority = isOpen
    ? loadOrCreateAuthority(folder, { trustDomain, now: now() })
    : loadAuthority(folder);
  if (authority === null) return undefined;
  const lifetimeMs = certificateMs;
  const source = selfIssued(authority, { uri: coordinatorUri(trustDomain), lifetimeMs, now });
  const policy = () => readPolicyFile(config["trust.policy"]);
  const files = { usesFile: usesFileIn(folder), membersFile: membersFileIn(folder) };
  const enrolment = { authority, trustDomain, ...files, policy, lifetimeMs, now };
  return { source, enrolment, ...tokens };
}

function bearerTokens(config: Config): Pick<CoordinatorTls, "tokens"> {
  const file = config["trust.bearer_file"];
  if (file === null) return {};
  const { fileBytesMax: bytesMax } = bearerLimits;
  const tokens = () => {
    const bytes = readSecret(file, { bytesMax, isPublic: false });
    if (bytes !== null) return readBearerTokens(bytes);
    throw new RelightError(
      "config_invalid",
      `Cannot read trust.bearer_file: "${file}" does not exist`,
    );
  };
  return { tokens };
}
