// SPDX-License-Identifier: Apache-2.0
// Who may read from the piece server when it speaks TLS: members of the fleet, by their certificates.
// Strangers cost a bounded number of handshakes a second, and every one that came to nothing is counted.

import type { Server, ServerOptions } from "node:https";
import type { Socket } from "node:net";
import { TLSSocket } from "node:tls";
import { RelightError } from "../errors.ts";
import { readCertificate } from "../trust/certificate.ts";
import { authorise } from "../trust/roles.ts";
import { identifyPeer, secureContextOptions, type TlsIdentity } from "../trust/tls.ts";
import { type Member, memberNamed, type TlsMaterial, tlsIdentity } from "../trust/tls-material.ts";
import type { ServerCounters } from "./http-server-messages.ts";
import type { ServerLimits } from "./transport.ts";

export class TlsGate {
  readonly #limits: ServerLimits;
  readonly #counters: ServerCounters;
  /** Of open connections, so that a chain is judged once. */
  readonly #members = new WeakMap<Socket, Member>();
  readonly #open = new Set<TLSSocket>();
  #identity: TlsIdentity;
  #secondMs = Number.NEGATIVE_INFINITY;
  #handshakes = 0;

  constructor(
    material: TlsMaterial,
    { limits, counters }: { readonly limits: ServerLimits; readonly counters: ServerCounters },
  ) {
    this.#identity = tlsIdentity(material);
    this.#limits = limits;
    this.#counters = counters;
  }

  get options(): ServerOptions {
    return {
      ...secureContextOptions(this.#identity),
      requestCert: true,
      rejectUnauthorized: true,
      handshakeTimeout: this.#limits.headMsMax,
    };
  }

  guard(server: Server): void {
    server.on("connection", (socket: Socket) => {
      if (!this.#admits(performance.now())) socket.destroy();
    });
    server.on("tlsClientError", () => this.#counters.strangerRefused());
    server.on("secureConnection", (socket: TLSSocket) => {
      this.#open.add(socket);
      socket.on("close", () => this.#open.delete(socket));
    });
  }

  /** Also judges who is here already: whose key was revoked is not read to the end. */
  renew(server: Server, material: TlsMaterial): void {
    this.#identity = tlsIdentity(material);
    server.setSecureContext(secureContextOptions(this.#identity));
    for (const socket of this.#open) {
      try {
        this.#members.set(socket, this.#identify(socket, Date.now()));
      } catch {
        // It is told at its next connection, with a code.
        this.#counters.strangerRefused();
        socket.destroy();
      }
    }
  }

  /** @throws RelightError `certificate_invalid`, `certificate_revoked`, `role_denied`. */
  check(socket: Socket): void {
    const now = Date.now();
    const known = this.#members.get(socket);
    // A connection outlives no certificate: it may be kept open for as long as somebody asks.
    const member =
      known !== undefined && now <= known.notAfter ? known : this.#identify(socket, now);
    this.#members.set(socket, member);
    const permission = authorise(member.caller, "bytes.read", null);
    if (permission.state === "refused")
      throw new RelightError(permission.code, `Cannot serve: ${permission.reason}`);
  }

  #identify(socket: Socket, now: number): Member {
    if (!(socket instanceof TLSSocket))
      throw new RelightError("certificate_invalid", "Cannot serve: the connection is not TLS");
    const { authorities, chain, revokedKeys } = this.#identity;
    const judging = { authorities, revokedKeys, purpose: "client_auth", now } as const;
    const peer = identifyPeer(socket.getPeerCertificate(true), judging);
    const member = { ...memberNamed(peer.chain.leaf), notAfter: peer.chain.notAfter };
    if (member.trustDomain === this.#trustDomain(chain)) return member;
    throw new RelightError(
      "certificate_invalid",
      `Cannot serve "${member.uri}": it is of another trust domain`,
    );
  }

  #trustDomain([leaf]: readonly Buffer[]): string {
    return leaf === undefined ? "" : memberNamed(readCertificate(leaf)).trustDomain;
  }

  #admits(nowMs: number): boolean {
    if (nowMs - this.#secondMs >= 1_000) {
      this.#secondMs = nowMs;
      this.#handshakes = 0;
    }
    this.#handshakes++;
    return this.#handshakes <= this.#limits.handshakesPerSecondMax;
  }
}
