// SPDX-License-Identifier: Apache-2.0
// Who may call what. A role is proved by a certificate's SPIFFE id (spiffe://DOMAIN/ROLE/NAME) or by a
// bearer token; being allowed to talk never makes anybody an author (that is the policy's to say).

import { isSpiffeId } from "./pattern.ts";

/** Each may do what those before it may, except that a mirror and an author differ only in `artifact.author`. */
export const roles = ["reader", "mirror", "author", "operator"] as const;
export type Role = (typeof roles)[number];

/** What a member may be called; a part of its SPIFFE id. */
export const memberNamePattern = /^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$/;

export interface Caller {
  readonly role: Role;
  /** Unique within the fleet; records belong to it. */
  readonly name: string;
}

const everyone: readonly Role[] = roles;
const sources: readonly Role[] = ["mirror", "author", "operator"];
const operators: readonly Role[] = ["operator"];

/** One row for each kind of call on either plane. `own`: only on records of the caller's own name. */
const calls = {
  "source.list": { roles: everyone, own: false },
  "source.get": { roles: everyone, own: false },
  "source.watch": { roles: everyone, own: false },
  "source.publish": { roles: sources, own: true },
  "source.update": { roles: sources, own: true },
  "source.remove": { roles: operators, own: false },
  "session.open": { roles: everyone, own: true },
  "boot.report": { roles: everyone, own: true },
  "boot.read": { roles: everyone, own: false },
  "bytes.read": { roles: everyone, own: false },
  "artifact.author": { roles: ["author", "operator"], own: false },
  "ep.read": { roles: everyone, own: false },
  "ep.join": { roles: sources, own: true },
  "ep.operate": { roles: operators, own: false },
  "certificate.renew": { roles: everyone, own: true },
  "policy.read": { roles: everyone, own: false },
  "policy.publish": { roles: operators, own: false },
} as const satisfies Record<string, { roles: readonly Role[]; own: boolean }>;

export type Call = keyof typeof calls;
export const callNames = Object.keys(calls) as Call[];

export type Permission =
  | { readonly state: "allowed" }
  | { readonly state: "refused"; readonly code: "role_denied"; readonly reason: string };

/** @param owner Whose record the call changes; null when it changes none or makes a new one. */
export function authorise(caller: Caller, call: Call, owner: string | null): Permission {
  const row: { readonly roles: readonly Role[]; readonly own: boolean } = calls[call];
  if (!row.roles.includes(caller.role)) {
    const reason = `role "${caller.role}" may not call ${call}, want ${row.roles.join(" or ")}`;
    return { state: "refused", code: "role_denied", reason };
  }
  if (row.own && owner !== null && owner !== caller.name && caller.role !== "operator") {
    const reason = `"${caller.name}" may not call ${call} on a record of "${owner}"`;
    return { state: "refused", code: "role_denied", reason };
  }
  return { state: "allowed" };
}

export function isRole(text: string): text is Role {
  return roles.some((role) => role === text);
}

export function callerUri(trustDomain: string, { role, name }: Caller): string {
  return `spiffe://${trustDomain}/${role}/${name}`;
}

/** The caller that a certificate's id names; null when it is of another domain or of no role. */
export function callerFromUri(trustDomain: string, uri: string): Caller | null {
  if (!isSpiffeId(uri)) return null;
  const [domain, role, name, ...rest] = uri.slice("spiffe://".length).split("/");
  if (domain !== trustDomain || role === undefined || name === undefined || rest.length > 0)
    return null;
  return isRole(role) ? { role, name } : null;
}
