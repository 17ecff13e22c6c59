// SPDX-License-Identifier: Apache-2.0
// The one table of failures. Each code says whose fault it is and what the caller should do next;
// docs/errors.md, HTTP statuses and exit codes derive from it. Codes are never renamed or reused.

/** What the reader of a failure should do next. `elsewhere` means: another source, not this one. */
export type Retry = "now" | "later" | "elsewhere" | "never";

/** Whose fault it is. Only `remote` may cost the other side its place among the sources. */
export type Blame = "caller" | "self" | "remote" | "store" | "device";

export interface CodeFacts {
  readonly blame: Blame;
  readonly retry: Retry;
  readonly http: number;
  readonly exit: number;
  readonly means: string;
  readonly next: string;
}

export const codes = {
  // Caller
  config_invalid: {
    blame: "caller",
    retry: "never",
    http: 400,
    exit: 2,
    means: "A setting is missing, malformed or unknown.",
    next: "Correct the settings that the message lists; `relight config check` reads them without starting.",
  },
  usage_invalid: {
    blame: "caller",
    retry: "never",
    http: 400,
    exit: 2,
    means: "The command line cannot be read.",
    next: "See `relight --help`.",
  },
  request_invalid: {
    blame: "caller",
    retry: "never",
    http: 400,
    exit: 3,
    means: "A request is malformed or outside its limits.",
    next: "Correct the request as the message says.",
  },
  not_found: {
    blame: "caller",
    retry: "never",
    http: 404,
    exit: 4,
    means: "The thing named does not exist here.",
    next: "List what exists with the matching `list` command.",
  },
  conflict: {
    blame: "caller",
    retry: "later",
    http: 409,
    exit: 5,
    means: "The thing exists already or was changed by somebody else.",
    next: "Read the present state and decide again.",
  },
  // Self
  cancelled: {
    blame: "self",
    retry: "never",
    http: 499,
    exit: 6,
    means: "The operation was stopped from outside.",
    next: "Nothing; it was asked for.",
  },
  deadline_exceeded: {
    blame: "self",
    retry: "later",
    http: 504,
    exit: 7,
    means: "A phase or the whole operation used up its budget.",
    next: "`relight boot why` names the phase; raise its budget or remove what slows it.",
  },
  internal: {
    blame: "self",
    retry: "never",
    http: 500,
    exit: 70,
    means: "A defect of Relight.",
    next: "Report it with the log.",
  },
  port_in_use: {
    blame: "self",
    retry: "never",
    http: 500,
    exit: 8,
    means: "The address to listen on is taken.",
    next: "Stop the other process or choose another port.",
  },
  disk_full: {
    blame: "self",
    retry: "later",
    http: 507,
    exit: 21,
    means: "The disk has no room.",
    next: "Free space on the file system that the message names.",
  },
  disk_read_only: {
    blame: "self",
    retry: "never",
    http: 500,
    exit: 22,
    means: "The file system is read-only.",
    next: "Point the cache and state directories to a writable place.",
  },
  disk_denied: {
    blame: "self",
    retry: "never",
    http: 500,
    exit: 23,
    means: "The permissions forbid reading or writing.",
    next: "Give the user that runs Relight access to the path that the message names.",
  },
  disk_failed: {
    blame: "self",
    retry: "later",
    http: 500,
    exit: 24,
    means: "The disk or file system reported an error.",
    next: "Look at the kernel's log for the device.",
  },
  target_obstructed: {
    blame: "self",
    retry: "never",
    http: 409,
    exit: 25,
    means: "Something that is not a directory stands where the cache belongs.",
    next: "Move the file or link that the message names.",
  },
  lock_timeout: {
    blame: "self",
    retry: "later",
    http: 409,
    exit: 26,
    means: "Another process of this node held the installation for longer than the budget.",
    next: "Look at the process that the message names; a cold start was used meanwhile.",
  },
  attempt_failed_recently: {
    blame: "self",
    retry: "later",
    http: 503,
    exit: 27,
    means: "Another process of this node tried the same a moment ago and failed.",
    next: "Its failure is named in the message; the marker expires by itself.",
  },
  receipt_invalid: {
    blame: "self",
    retry: "never",
    http: 500,
    exit: 28,
    means: "A receipt of an installation cannot be read or does not match the files.",
    next: "The installation is ignored and fetched anew.",
  },
  probe_failed: {
    blame: "self",
    retry: "later",
    http: 500,
    exit: 29,
    means: "The engine's Python could not be asked for its versions.",
    next: "Run the command's Python by hand; set `run.python` when it is not found.",
  },
  engine_unhealthy: {
    blame: "self",
    retry: "later",
    http: 503,
    exit: 30,
    means: "The engine did not become healthy within its budget.",
    next: "Look at the engine's own log; raise `run.health_budget`.",
  },
  engine_start_failed: {
    blame: "caller",
    retry: "never",
    http: 400,
    exit: 127,
    means: "The command could not be started.",
    next: "Check that the command exists and may be executed.",
  },
  // Remote
  source_unreachable: {
    blame: "remote",
    retry: "elsewhere",
    http: 502,
    exit: 11,
    means: "The source did not accept a connection in time.",
    next: "Check the network between the two nodes and the address that the source publishes.",
  },
  source_stalled: {
    blame: "remote",
    retry: "elsewhere",
    http: 502,
    exit: 12,
    means: "The source stopped sending before the transfer was complete.",
    next: "Look at the source that the message names; where there is another, that one is used.",
  },
  source_busy: {
    blame: "remote",
    retry: "elsewhere",
    http: 503,
    exit: 13,
    means: "The source serves as many readers as it admits.",
    next: "Nothing; the target tries others and comes back.",
  },
  source_gone: {
    blame: "remote",
    retry: "elsewhere",
    http: 410,
    exit: 14,
    means: "The source no longer has what it offered.",
    next: "Nothing; another source is used.",
  },
  source_protocol: {
    blame: "remote",
    retry: "elsewhere",
    http: 502,
    exit: 15,
    means: "The source answered something that is not the protocol.",
    next: "Check that both sides run compatible versions.",
  },
  no_source: {
    blame: "remote",
    retry: "later",
    http: 404,
    exit: 16,
    means: "No ready source shares this identity.",
    next: "Nothing for a first replica; else make the facts agree that the message names.",
  },
  sources_exhausted: {
    blame: "remote",
    retry: "later",
    http: 502,
    exit: 17,
    means: "Every source failed before all entries had arrived.",
    next: "`relight boot why` lists each source with its failure.",
  },
  coordinator_unreachable: {
    blame: "remote",
    retry: "later",
    http: 502,
    exit: 18,
    means: "The coordinator did not answer.",
    next: "Check `coordinator.address` and that `relight coordinator` runs there.",
  },
  coordinator_refused: {
    blame: "remote",
    retry: "never",
    http: 502,
    exit: 19,
    means: "The coordinator answered with an error.",
    next: "The message carries the coordinator's words.",
  },
  digest_mismatch: {
    blame: "remote",
    retry: "elsewhere",
    http: 502,
    exit: 31,
    means: "The bytes received are not the bytes promised.",
    next: "Another source is used; a source that repeats it should be inspected.",
  },
  manifest_invalid: {
    blame: "remote",
    retry: "elsewhere",
    http: 502,
    exit: 32,
    means: "A manifest is malformed, outside its limits or contradicts itself.",
    next: "Another source is used; the message names the first offence.",
  },
  path_unsafe: {
    blame: "remote",
    retry: "elsewhere",
    http: 502,
    exit: 33,
    means: "A path would leave the cache's root or cannot be represented safely.",
    next: "Inspect the source that the message names; it may be hostile.",
  },
  structure_invalid: {
    blame: "remote",
    retry: "elsewhere",
    http: 502,
    exit: 34,
    means: "A file does not have the form that its family requires.",
    next: "Inspect the source that the message names; it may be hostile.",
  },
  code_unwanted: {
    blame: "remote",
    retry: "elsewhere",
    http: 502,
    exit: 39,
    means: "A checkpoint holds files that an engine would execute, and this node takes data only.",
    next: "Have it published without them, or take them with --allow-code if you trust its author.",
  },
  // Files that change under our hands
  entry_changed: {
    blame: "self",
    retry: "now",
    http: 409,
    exit: 35,
    means: "A file changed while it was read.",
    next: "Nothing; it is sealed again or left out.",
  },
  seal_empty: {
    blame: "self",
    retry: "later",
    http: 409,
    exit: 36,
    means: "There is nothing to seal.",
    next: "Check that the cache directory is the one the engine writes to.",
  },
  // Store
  store_unavailable: {
    blame: "store",
    retry: "later",
    http: 503,
    exit: 10,
    means: "The store did not answer, so nothing is known.",
    next: "Check the store; the answer is not an empty list.",
  },
  store_corrupt: {
    blame: "store",
    retry: "never",
    http: 500,
    exit: 37,
    means: "The store holds something that Relight did not write.",
    next: "Move the store directory away and restart; sources publish again by themselves.",
  },
  store_newer: {
    blame: "store",
    retry: "never",
    http: 500,
    exit: 38,
    means: "The store was written by a newer version.",
    next: "Run that version or a later one.",
  },
  // Device
  device_absent: {
    blame: "device",
    retry: "never",
    http: 503,
    exit: 40,
    means: "This machine has no usable GPU driver.",
    next: "Install the driver, or do without what needs a GPU.",
  },
  device_lost: {
    blame: "device",
    retry: "never",
    http: 500,
    exit: 41,
    means: "The GPU context is gone.",
    next: "Restart the process; look at the kernel's log for Xid.",
  },
  device_memory: {
    blame: "device",
    retry: "later",
    http: 507,
    exit: 42,
    means: "The GPU has no room.",
    next: "Lower what the engine reserves, or free the GPU.",
  },
  device_failed: {
    blame: "device",
    retry: "never",
    http: 500,
    exit: 43,
    means: "A call of the GPU driver failed.",
    next: "The message names the call and its result.",
  },
  device_unsupported: {
    blame: "device",
    retry: "never",
    http: 501,
    exit: 44,
    means: "This GPU or driver lacks what is needed.",
    next: "The message names what is lacking.",
  },
  device_handle_invalid: {
    blame: "remote",
    retry: "elsewhere",
    http: 410,
    exit: 45,
    means: "A memory handle from another process cannot be opened.",
    next: "The process that exported it is gone or on another host; another source is used.",
  },
  layout_mismatch: {
    blame: "self",
    retry: "elsewhere",
    http: 409,
    exit: 46,
    means: "Source and target shard or lay out the model differently.",
    next: "The message names the first difference.",
  },
  transport_unavailable: {
    blame: "self",
    retry: "elsewhere",
    http: 501,
    exit: 49,
    means: "Source and target have no way in common to move weights.",
    next: "The message names what each way lacks; another source is used.",
  },
  generation_changed: {
    blame: "remote",
    retry: "now",
    http: 409,
    exit: 47,
    means: "The source changed its weights while they were read.",
    next: "The transfer starts again with the new generation.",
  },
  handle_closed: {
    blame: "self",
    retry: "never",
    http: 500,
    exit: 48,
    means: "A GPU handle was used after it had been closed.",
    next: "Report it with the log; a defect of the caller inside Relight.",
  },
  // Expert groups
  ep_capacity: {
    blame: "caller",
    retry: "later",
    http: 409,
    exit: 90,
    means: "The ranks that would be left cannot hold every expert.",
    next: "Keep more ranks, or give the group more room for experts a rank.",
  },
  ep_config_differs: {
    blame: "caller",
    retry: "never",
    http: 409,
    exit: 91,
    means: "A rank was started with another shape than its group has.",
    next: "Start it with the group's shape, which the message names, or join another group.",
  },
  ep_epoch_changed: {
    blame: "caller",
    retry: "later",
    http: 409,
    exit: 92,
    means: "The group's membership is not the one that the request was made for.",
    next: "Read `relight ep status` and decide again.",
  },
  ep_operation_open: {
    blame: "caller",
    retry: "later",
    http: 409,
    exit: 93,
    means: "Another operation on the group is under way.",
    next: "Wait for it, or abort it while it is not committed.",
  },
  ep_committed: {
    blame: "caller",
    retry: "never",
    http: 409,
    exit: 94,
    means: "The operation is committed, so there is no way back.",
    next: "Let it end, then begin another one.",
  },
  ep_evicted: {
    blame: "self",
    retry: "now",
    http: 409,
    exit: 95,
    means: "The group goes on without this rank, or its slot has another occupant.",
    next: "Stop its kernels, unmap its peers and join anew; it gets a new incarnation.",
  },
  // Trust
  signature_missing: {
    blame: "remote",
    retry: "elsewhere",
    http: 403,
    exit: 60,
    means: "A manifest came without a signature.",
    next: "It is not installed; publish it from an agent whose key the policy names.",
  },
  signature_invalid: {
    blame: "remote",
    retry: "elsewhere",
    http: 403,
    exit: 61,
    means: "A signature does not belong to the bytes it came with.",
    next: "It is not installed; inspect the source that the message names.",
  },
  envelope_invalid: {
    blame: "remote",
    retry: "elsewhere",
    http: 502,
    exit: 62,
    means: "A signed envelope is malformed or outside its limits.",
    next: "Another source is used; the message names the first offence.",
  },
  statement_mismatch: {
    blame: "remote",
    retry: "elsewhere",
    http: 409,
    exit: 63,
    means: "A signed statement speaks of something other than what was asked for.",
    next: "It is not installed; inspect the source that offered it.",
  },
  signer_unknown: {
    blame: "remote",
    retry: "elsewhere",
    http: 403,
    exit: 64,
    means: "No signer of the statement may author this artifact under the policy.",
    next: "Add the signer to the policy when it should be trusted; `relight trust show` lists who is.",
  },
  signer_revoked: {
    blame: "remote",
    retry: "elsewhere",
    http: 403,
    exit: 65,
    means: "The signer's key was revoked.",
    next: "It is not installed; what the key signed must be sealed and signed again by another.",
  },
  artifact_revoked: {
    blame: "remote",
    retry: "elsewhere",
    http: 403,
    exit: 66,
    means: "The policy revokes this artifact.",
    next: "It is not installed; the engine compiles instead.",
  },
  statement_expired: {
    blame: "remote",
    retry: "elsewhere",
    http: 403,
    exit: 67,
    means: "A signed statement is used outside the time it was made for.",
    next: "Publish again; when it was signed just now, compare the clocks of both nodes.",
  },
  statement_replayed: {
    blame: "remote",
    retry: "elsewhere",
    http: 403,
    exit: 68,
    means: "A signed statement is older than what may still be installed.",
    next: "Publish again under the present epoch.",
  },
  threshold_unmet: {
    blame: "remote",
    retry: "later",
    http: 403,
    exit: 69,
    means: "Fewer authorised signers than the policy asks for signed this.",
    next: "Have another signer that the policy names sign it.",
  },
  policy_missing: {
    blame: "self",
    retry: "later",
    http: 503,
    exit: 71,
    means: "There is no trust policy, so nobody may author anything.",
    next: "Run `relight trust init`, or join a fleet that has a policy.",
  },
  policy_expired: {
    blame: "self",
    retry: "later",
    http: 503,
    exit: 72,
    means: "The trust policy is past its end.",
    next: "Sign a new version of the policy; until then nothing is installed.",
  },
  policy_rollback: {
    blame: "remote",
    retry: "later",
    http: 409,
    exit: 73,
    means: "A trust policy older than one already seen was offered.",
    next: "Keep the newer one; inspect who offered the older.",
  },
  policy_invalid: {
    blame: "remote",
    retry: "never",
    http: 400,
    exit: 74,
    means: "A trust policy is malformed, contradicts itself or is not signed by its roots.",
    next: "Correct it as the message says and sign it with the root keys.",
  },
  certificate_invalid: {
    blame: "remote",
    retry: "elsewhere",
    http: 403,
    exit: 75,
    means: "A certificate does not prove what it is used for.",
    next: "The message names the first offence; enrol again, or correct the pinned authority.",
  },
  certificate_revoked: {
    blame: "remote",
    retry: "elsewhere",
    http: 403,
    exit: 80,
    means: "A certificate's key was revoked by the fleet's policy.",
    next: "It stays out; on a machine that is to come back remove `member-key.pem` and join with a new token.",
  },
  token_invalid: {
    blame: "caller",
    retry: "never",
    http: 401,
    exit: 76,
    means: "A token is unknown, malformed, used up or past its end.",
    next: "Make a new one with `relight trust token`.",
  },
  unauthenticated: {
    blame: "caller",
    retry: "never",
    http: 401,
    exit: 79,
    means: "The caller has not proved who it is.",
    next: "Set trust.certificate, trust.key and trust.authority, or enrol with `relight run --join TOKEN`.",
  },
  role_denied: {
    blame: "caller",
    retry: "never",
    http: 403,
    exit: 77,
    means: "The caller's role does not allow this call.",
    next: "Use an identity with the role that the message names.",
  },
  key_unsafe: {
    blame: "self",
    retry: "never",
    http: 500,
    exit: 78,
    means: "A key file cannot be used safely.",
    next: "Make it a regular file that only its owner can read, or let Relight make a new key.",
  },
} as const satisfies Record<string, CodeFacts>;

export type Code = keyof typeof codes;

/** A flat bag for machines. Never a secret. */
export type Details = Readonly<Record<string, string | number | boolean | null>>;

/** The only error that crosses a module's edge. Callers switch on `code`, never on the message. */
export class RelightError extends Error {
  readonly code: Code;
  readonly details: Details;

  constructor(code: Code, message: string, options: { details?: Details; cause?: unknown } = {}) {
    super(message, options.cause === undefined ? {} : { cause: options.cause });
    this.name = "RelightError";
    this.code = code;
    this.details = options.details ?? {};
  }

  get facts(): CodeFacts {
    return codes[this.code];
  }
}

/** A broken promise of our own code. Nothing catches it; the process ends. */
export class InvariantError extends Error {
  constructor(message: string) {
    super(`Invariant broken: ${message}`);
    this.name = "InvariantError";
  }
}

/** @throws InvariantError when `condition` is false. For our own promises, never for foreign input. */
export function assert(condition: unknown, invariant: string): asserts condition {
  if (!condition) throw new InvariantError(invariant);
}

/** The error as a RelightError: itself, or `internal` around what somebody else threw. */
export function asRelightError(error: unknown): RelightError {
  if (error instanceof RelightError) return error;
  const text = error instanceof Error ? error.message : String(error);
  return new RelightError("internal", text, { cause: error });
}
