// SPDX-License-Identifier: Apache-2.0
// Attacks by clients of a coordinator and of a source: certificates that prove nothing, roles and records
// that are somebody else's, tokens that were changed, guessed or used up, and floods. Each is answered
// with one of its codes and nothing else, and afterwards everything is as it was.

import { canonicalJson } from "../../src/core/canonical-json.ts";
import type { Code } from "../../src/errors.ts";
import { createAuthority } from "../../src/trust/authority.ts";
import { writeEnrolRequest } from "../../src/trust/enrol.ts";
import { encodeEnvelope, signEnvelope } from "../../src/trust/envelope.ts";
import type { JoinToken } from "../../src/trust/join-token.ts";
import { generateKey, type Signer, signerFrom, writePublicKey } from "../../src/trust/keys.ts";
import { timeText } from "../../src/trust/time.ts";
import { coordinatorUri } from "../../src/trust/tls-material.ts";
import type { TemporaryFolder } from "../support/temporary-folder.ts";
import { day, hour, liveFleet } from "../support/trust.ts";
import { type Bastion, openBastion, sourceName } from "./bastion.ts";
import { type Hostile, startHostile } from "./hostile.ts";
import { issuedByAMember, joinToken, shownOf } from "./impostors.ts";
import type { Answered, ClientPlan, Shown, Step } from "./plan.ts";

/** An answer beside the codes of the table: what a program sees that is not answered. */
type Answer =
  | Code
  | "hung_up"
  | "goaway"
  | "reset"
  | "new_session"
  | `http_${number}`
  | `grpc_${string}`;

interface ClientAttack {
  readonly step: Step;
  /** Each answer is one of these. */
  readonly answers: readonly Answer[];
  /** How often it may succeed: what is there once may be had once. 0 when absent. */
  readonly okMax?: number;
  readonly isQuick: boolean;
}

type Fleet = ReturnType<typeof liveFleet>;

/** Coordinator and source under all of it; a gRPC message may have 100 MiB. */
const peakMiBMax = 640;
const ended = { notBefore: Date.now() - day, notAfter: Date.now() - hour };
const toCome = { notBefore: Date.now() + hour, notAfter: Date.now() + day };

/** The client with these begins no call that OpenSSL on the other side believes. */
const unproven: readonly Answer[] = ["unauthenticated", "certificate_invalid"];

export async function attackAsClient(
  folder: TemporaryFolder,
  { isQuick, note }: { isQuick: boolean; note: (name: string, accepted: string | null) => void },
): Promise<void> {
  const fleet = liveFleet();
  const shown = certificates(fleet);
  const revoked = [shown["revoked"]].filter((each) => each !== undefined);
  await using bastion = await openBastion(folder, revoked, fleet);
  const all = [
    ...certificateAttacks(shown),
    ...roleAttacks(bastion),
    ...tokenAttacks(bastion),
    ...byteAttacks(bastion),
    ...floodAttacks(),
  ];
  const attacks = all.filter((attack) => !isQuick || attack.isQuick);
  const { coordinator, source } = bastion;
  const plan: ClientPlan = {
    coordinator,
    source,
    authority: fleet.authority.certificate.x509.toString(),
    shown,
    steps: [...controls, ...attacks.map(({ step }) => step)],
  };
  folder.write("client-plan.json", JSON.stringify(plan));
  const client = startHostile("hostile-client", folder.path("client-plan.json"));
  try {
    await client.ended;
  } finally {
    client.stop();
  }
  judgeAnswers(client, attacks, note);
  note("client-leaves-everything-as-it-was", await bastion.damage());
  const peakMiB = bastion.peakMiB();
  const isBounded = peakMiB < peakMiBMax;
  note("memory-under-hostile-clients", isBounded ? null : `${peakMiB} MiB were taken`);
}

function judgeAnswers(
  client: Hostile,
  attacks: readonly ClientAttack[],
  note: (name: string, accepted: string | null) => void,
): void {
  const told = client.lines().map((line) => JSON.parse(line) as Answered);
  const answersOf = new Map(told.map(({ name, answers }) => [name, answers]));
  for (const control of controls) {
    const answers = answersOf.get(control.name) ?? {};
    // Else everything is refused, and the suite proves nothing.
    if (answers["ok"] !== 1) note(control.name, `it was answered ${Object.keys(answers).join()}`);
  }
  for (const attack of attacks) {
    const answers = answersOf.get(attack.step.name);
    const { name } = attack.step;
    note(
      name,
      answers === undefined ? "the client did not get that far" : judgeOne(attack, answers),
    );
  }
}

function judgeOne(
  { answers: allowed, okMax = 0 }: ClientAttack,
  answers: Answered["answers"],
): string | null {
  const { ok = 0, ...refusals } = answers;
  if (ok > okMax) return `it succeeded ${ok} times, want at most ${okMax}`;
  const codes: readonly string[] = allowed;
  const others = Object.keys(refusals).filter((answer) => !codes.includes(answer));
  return others.length === 0 ? null : `it was answered ${others.join(", ")}`;
}

/** What the same client is answered when it asks for what it may have. */
const controls: readonly Step[] = [
  {
    name: "control-caller",
    kind: "call",
    as: "reader",
    service: "p2p",
    method: "listSources",
    request: {},
  },
  { name: "control-reader", kind: "bytes", as: "reader", request: get("/healthz") },
];

function certificates(fleet: Fleet): Record<string, Shown> {
  const { member, authority } = fleet;
  const operator = "spiffe://fleet/operator/root";
  const below = createAuthority({
    commonName: "below",
    notBefore: Date.now() - hour,
    notAfter: Date.now() + hour,
    serial: Buffer.alloc(16, 5),
    pathLength: 0,
    issuer: authority,
  });
  const deep = createAuthority({
    commonName: "deeper",
    notBefore: Date.now() - hour,
    notAfter: Date.now() + hour,
    serial: Buffer.alloc(16, 6),
    pathLength: 0,
    issuer: below,
  });
  const deeper = member(operator, { authority: deep });
  return {
    reader: shownOf(member("spiffe://fleet/reader/node-r")),
    mirror: shownOf(member("spiffe://fleet/mirror/node-m")),
    author: shownOf(member("spiffe://fleet/author/node-x")),
    revoked: shownOf(member("spiffe://fleet/author/node-v")),
    "self-signed": shownOf(liveFleet().member(operator)),
    ended: shownOf(member(operator, ended)),
    "to-come": shownOf(member(operator, toCome)),
    "another-domain": shownOf(member("spiffe://other/operator/root")),
    "no-role": shownOf(member("spiffe://fleet/janitor/root")),
    "no-name": shownOf(member("", { uris: [], dnsNames: ["coordinator.example"] })),
    "two-names": shownOf(member("", { uris: [operator, "spiffe://fleet/reader/node-r"] })),
    "for-servers": shownOf(member(operator, { purposes: ["server_auth"] })),
    "by-a-member": issuedByAMember(fleet, operator),
    "below-too-many": shownOf({
      ...deeper,
      chain: [...deeper.chain, deep.certificate.der, below.certificate.der],
    }),
  };
}

function certificateAttacks(shown: Readonly<Record<string, Shown>>): ClientAttack[] {
  const honest = ["reader", "mirror", "author", "revoked"];
  const wrong = Object.keys(shown).filter((name) => !honest.includes(name));
  const listing = { kind: "call", service: "p2p", method: "listSources", request: {} } as const;
  const reading = { kind: "bytes", request: get("/healthz") } as const;
  return [
    attack({ name: "caller-without-a-certificate", ...listing, as: null }, ["unauthenticated"]),
    attack({ name: "caller-whose-key-is-revoked", ...listing, as: "revoked" }, [
      "certificate_revoked",
    ]),
    ...wrong.map((as) => attack({ name: `caller-${as}`, ...listing, as }, unproven)),
    attack({ name: "reader-without-a-certificate", ...reading, as: null }, ["hung_up"]),
    attack({ name: "reader-whose-key-is-revoked", ...reading, as: "revoked" }, [
      "certificate_revoked",
    ]),
    ...wrong.map((as) =>
      attack({ name: `reader-${as}`, ...reading, as }, ["hung_up", "certificate_invalid"]),
    ),
  ];
}

function roleAttacks({ sourceId, workerId, artifactId, bearer }: Bastion): ClientAttack[] {
  const denied: readonly Answer[] = ["role_denied"];
  const call = (name: string, as: string, method: string, request: object, more = {}) =>
    attack({ name, kind: "call", service: "relight", as, method, request, ...more }, denied);
  const update = { mxSourceId: sourceId, workerId, status: "SOURCE_STATUS_STALE" };
  const onP2p = { service: "p2p" } as const;
  const boot = { bootId: "b-1", nodeId: sourceName, startedAtMs: "1", recordJson: "e30=" };
  const publish = {
    identity: { modelName: "m" },
    worker: {},
    workerId: "mine",
  };
  const byBearer = { kind: "call", service: "p2p", as: null, bearer } as const;
  return [
    call("reader-publishes", "reader", "publishMetadata", publish, onP2p),
    call("reader-marks-a-source-stale", "reader", "updateStatus", update, onP2p),
    call("mirror-marks-anothers-source-stale", "mirror", "updateStatus", update, onP2p),
    call("author-marks-anothers-source-stale", "author", "updateStatus", update, onP2p),
    call("member-reports-anothers-boot", "author", "reportBoot", { report: boot }),
    attack(
      { name: "bearer-publishes", ...byBearer, method: "publishMetadata", request: publish },
      denied,
    ),
    attack(
      { name: "bearer-marks-a-source-stale", ...byBearer, method: "updateStatus", request: update },
      denied,
    ),
    attack(
      {
        name: "member-withdraws-in-anothers-session",
        kind: "call",
        service: "relight",
        as: "author",
        method: "withdraw",
        request: { sessionId: "guessed", workerId, sourceId },
      },
      ["role_denied", "conflict", "not_found"],
    ),
    attack(
      {
        name: "member-publishes-in-a-session-it-has-not",
        kind: "call",
        service: "relight",
        as: "author",
        method: "publish",
        request: {
          sessionId: "guessed",
          identity: { modelName: "m" },
          workerId,
          artifact: { artifactId, family: "x", totalBytes: "1", fileCount: 1, pieceCount: 1 },
          endpoints: ["https://127.0.0.1:1"],
          status: "SOURCE_STATUS_READY",
        },
      },
      ["role_denied", "conflict", "not_found"],
    ),
    attack(
      {
        name: "member-resumes-a-session-it-has-not",
        kind: "session",
        as: "author",
        sessionId: "guessed",
      },
      ["new_session"],
    ),
    attack({ name: "stranger-opens-a-session", kind: "session", as: null, sessionId: "" }, [
      "unauthenticated",
    ]),
    attack(
      { name: "ten-thousand-bearer-tokens-guessed", kind: "guess_bearers", count: 10_000 },
      ["token_invalid"],
      {
        isQuick: false,
      },
    ),
    attack({ name: "bearer-tokens-guessed", kind: "guess_bearers", count: 500 }, ["token_invalid"]),
  ];
}

function tokenAttacks({ fleet, keys }: Bastion): ClientAttack[] {
  const enrol = (
    name: string,
    answers: readonly Answer[],
    more: { as?: string; envelope: Buffer; times?: number; okMax?: number },
  ) => {
    const { as = null, envelope, times = 1, okMax = 0 } = more;
    const request = { envelope: envelope.toString("base64") };
    const step = { name, kind: "call", service: "relight", method: "enrol", as, request } as const;
    return attack({ ...step, times }, answers, { okMax });
  };
  const key = () => signerFrom(generateKey("p256"));
  const own = key();
  const token = (changes: Partial<JoinToken> = {}) => joinToken(fleet, keys, changes);
  const now = Date.now();
  const asking = (name: string, text: string, signer: Signer = own) =>
    writeEnrolRequest(name, signer, text);
  const foreign = liveFleet();
  const single = token();
  return [
    enrol("join-without-a-token", ["token_invalid"], { envelope: asking("node-j", "") }),
    enrol("join-with-a-foreign-token", ["token_invalid"], {
      envelope: asking("node-j", joinToken(foreign, keys)),
    }),
    enrol("join-with-an-ended-token", ["token_invalid"], {
      envelope: asking("node-j", token({ expiresAt: timeText(now - hour) })),
    }),
    enrol("join-with-a-token-to-come", ["token_invalid"], {
      envelope: asking(
        "node-j",
        token({ issuedAt: timeText(now + hour), expiresAt: timeText(now + 2 * hour) }),
      ),
    }),
    enrol("join-with-a-raised-role", ["token_invalid"], {
      envelope: asking("node-j", rewritten(token(), { role: "operator" })),
    }),
    enrol("join-with-more-uses", ["token_invalid"], {
      envelope: asking("node-j", rewritten(token(), { uses: 100 })),
    }),
    enrol("join-fifty-times-with-one-use", ["token_invalid"], {
      envelope: asking("node-j", single),
      times: 50,
      okMax: 1,
    }),
    enrol("join-with-a-used-token", ["token_invalid"], {
      envelope: asking("node-k", single, key()),
    }),
    enrol("join-under-the-coordinators-name", ["role_denied"], {
      envelope: asking(coordinatorUri("fleet").split("/").at(-1) ?? "", token()),
    }),
    enrol("join-under-a-members-name", ["conflict"], {
      envelope: asking(sourceName, token(), key()),
    }),
    enrol("join-with-a-token-for-another", ["role_denied"], {
      envelope: asking("node-q", token({ node: "node-p" }), key()),
    }),
    enrol("join-under-a-path", ["request_invalid"], {
      envelope: asking("../operator/root", token()),
    }),
    enrol("join-for-a-key-that-is-not-ones-own", ["signature_invalid"], {
      envelope: forgedRequest("node-j", token(), { named: key(), signing: key() }),
    }),
    enrol("join-with-a-mebibyte", ["envelope_invalid", "request_invalid"], {
      envelope: Buffer.alloc(1_048_576, "{"),
    }),
    enrol("renewal-under-another-name", ["role_denied"], {
      as: "author",
      envelope: asking(sourceName, ""),
    }),
    enrol("renewal-for-another-key", ["role_denied"], {
      as: "author",
      envelope: asking("node-x", "", key()),
    }),
    enrol("renewal-with-a-revoked-key", ["certificate_revoked"], {
      as: "revoked",
      envelope: asking("node-v", ""),
    }),
  ];
}

function byteAttacks({ artifactId }: Bastion): ClientAttack[] {
  const at = `/v1/artifacts/${artifactId}`;
  const asked = (name: string, request: string, answers: readonly Answer[]) =>
    attack({ name, kind: "bytes", as: "mirror", request }, answers);
  const refused: readonly Answer[] = ["request_invalid", "not_found", "http_400", "http_404"];
  return [
    asked("path-climbs-at-a-source", get("/v1/artifacts/../../../etc/passwd"), refused),
    asked(
      "path-climbs-encoded-at-a-source",
      get("/v1/artifacts/%2e%2e/%2e%2e/etc/passwd"),
      refused,
    ),
    asked("path-absolute-at-a-source", get("file:///etc/passwd"), refused),
    asked("artifact-that-is-not-offered", get(`/v1/artifacts/${"b".repeat(64)}/statement`), [
      "not_found",
    ]),
    asked("file-beyond-the-manifest", get(`${at}/files/999999`), refused),
    asked("pieces-backwards", get(`${at}/pieces?ranges=5-1`), refused),
    asked("pieces-beyond-the-end", get(`${at}/pieces?ranges=0-4294967295`), refused),
    asked("pieces-in-a-million-ranges", get(`${at}/pieces?ranges=${"0,".repeat(20_000)}0`), [
      "http_431",
      "request_invalid",
    ]),
    asked("request-with-a-body", get(`${at}/statement`, "Content-Length: 5\r\n", "hello"), refused),
    asked(
      "request-with-two-lengths",
      get(`${at}/statement`, "Transfer-Encoding: chunked\r\nContent-Length: 5\r\n", "0\r\n\r\n"),
      refused,
    ),
    asked("head-of-a-mebibyte", get("/healthz", `X: ${"a".repeat(1_048_576)}\r\n`), [
      "http_431",
      "hung_up",
    ]),
    asked(
      "request-that-writes",
      `PUT ${at}/manifest HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n`,
      refused,
    ),
    asked("request-that-is-none", "\u0000\u0001\u0002\r\n\r\n", ["http_400", "hung_up"]),
  ];
}

/** RESOURCE_EXHAUSTED: the library refuses before anything of ours sees it. */
const resourceExhausted = "grpc_8";

function floodAttacks(): ClientAttack[] {
  const slow = { isQuick: false };
  const ends: readonly Answer[] = ["goaway", "reset", "hung_up"];
  const message = (name: string, what: (Step & { kind: "message" })["what"], isQuick: boolean) =>
    attack({ name, kind: "message", as: "reader", what }, [resourceExhausted], { isQuick });
  const frames = (name: string, what: (Step & { kind: "frames" })["what"], isQuick: boolean) =>
    attack({ name, kind: "frames", as: "reader", what }, ends, { isQuick });
  return [
    frames("streams-beyond-the-limit", "streams", true),
    frames("streams-opened-and-reset", "resets", false),
    frames("headers-without-end", "continuations", true),
    frames("pings-without-reading", "pings", false),
    message("message-of-two-gibibytes-announced", "announced", true),
    message("message-that-unpacks-beyond-the-limit", "bomb", false),
    attack(
      { name: "slow-loris-at-the-coordinator", kind: "drip", at: "coordinator", as: null },
      ["hung_up"],
      slow,
    ),
    attack(
      { name: "slow-loris-at-a-source", kind: "drip", at: "source", as: "mirror" },
      ["http_408", "hung_up"],
      slow,
    ),
    attack(
      { name: "ten-thousand-half-open-connections", kind: "half_open", count: 10_000 },
      ["hung_up"],
      {
        isQuick: false,
      },
    ),
  ];
}

function attack(
  step: Step,
  answers: readonly Answer[],
  { isQuick = true, okMax = 0 }: { isQuick?: boolean; okMax?: number } = {},
): ClientAttack {
  return { step, answers, isQuick, okMax };
}

function get(target: string, fields = "", body = ""): string {
  return `GET ${target} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n${fields}\r\n${body}`;
}

/** A token with something changed and the old signature. */
function rewritten(token: string, change: object): string {
  const [head = "", body = "", tail = ""] = token.split("~");
  const said = JSON.parse(Buffer.from(body, "base64url").toString("utf8")) as object;
  const changed = Buffer.from(JSON.stringify({ ...said, ...change })).toString("base64url");
  return [head, changed, tail].join("~");
}

/** Names one key and is signed by another. */
function forgedRequest(
  name: string,
  token: string,
  { named, signing }: { readonly named: Signer; readonly signing: Signer },
): Buffer {
  const text = canonicalJson({ name, key: writePublicKey(named.publicKey), token });
  const payloadType = "application/vnd.relight.enrol.v1+json";
  return encodeEnvelope(signEnvelope({ payloadType, payload: Buffer.from(text) }, [signing]));
}
