// SPDX-License-Identifier: Apache-2.0
// Every setting, once. File key, environment variable, flag, help and docs/config.md derive from this
// table (names.ts); nothing else may read the environment for a setting. A fallback that looks at
// another setting stands below it.

import type { Setting, ValueOf } from "./kinds.ts";
import {
  address,
  boolean,
  bytes,
  choice,
  directories,
  duration,
  integer,
  pairs,
  path,
  text,
  texts,
  url,
} from "./kinds.ts";

const secondMs = 1_000;
const minuteMs = 60 * secondMs;
const hourMs = 60 * minuteMs;

const unknown = "Empty means unknown.";
const degreesMax = 65_536;

export const schema = {
  "state.dir": path({
    fallback: {
      about: "$XDG_STATE_HOME/relight, else ~/.local/state/relight, without HOME /var/lib/relight",
      from: ({ environment }) => stateDirectory(environment),
    },
    about: "Where this node keeps receipts, boot records, locks and staged transfers.",
  }),

  "coordinator.address": address({
    fallback: "127.0.0.1:8001",
    portMin: 1,
    about: "The coordinator that agents and commands call (gRPC).",
  }),
  "coordinator.listen": address({
    fallback: "127.0.0.1:8001",
    portMin: 0,
    about: "Where `relight coordinator` serves gRPC. Port 0 takes any free one.",
  }),
  "coordinator.http_listen": address({
    fallback: "127.0.0.1:8002",
    portMin: 0,
    about: "Where `relight coordinator` serves health, readiness and metrics over HTTP.",
  }),
  "coordinator.store": choice(["memory", "lmdb"], {
    fallback: "lmdb",
    about: "Where the coordinator keeps what it knows. `memory` forgets at exit.",
  }),
  "coordinator.store_dir": path({
    fallback: {
      about: "coordinator/ in state.dir",
      from: (known) => `${known.text("state.dir")}/coordinator`,
    },
    about: "Directory of the lmdb store.",
  }),
  "coordinator.stale_after": duration({
    fallback: "90s",
    minMs: secondMs,
    maxMs: hourMs,
    about: "Silence after which a source is STALE and no longer offered.",
  }),
  "coordinator.remove_after": duration({
    fallback: "1h",
    minMs: secondMs,
    maxMs: 30 * 24 * hourMs,
    about: "Silence after which a STALE source is forgotten.",
  }),
  "coordinator.session_grace": duration({
    fallback: "3s",
    minMs: 100,
    maxMs: minuteMs,
    about: "Time for a node to reconnect before its sources stop being offered.",
  }),

  "agent.listen": address({
    fallback: "127.0.0.1:0",
    portMin: 0,
    about: "Where the agent serves artifacts to peers over HTTP. Port 0 takes any free one.",
  }),
  "agent.advertise": url({
    fallback: null,
    about: "URL by which peers reach the agent, when it differs from the address it listens on.",
  }),
  "agent.ep_socket": path({
    fallback: null,
    about:
      "Socket on which ranks of expert groups on this node reach `relight agent`; at most 107 bytes. Not set: none.",
  }),
  "agent.readers_max": integer({
    fallback: "8",
    min: 1,
    max: 1_024,
    about: "Peers served at once; the next one is told that the source is busy.",
  }),
  "agent.workers": integer({
    fallback: "2",
    min: 1,
    max: 64,
    about: "Threads that hash and write received entries.",
  }),
  "agent.silence_max": duration({
    fallback: "10s",
    minMs: 100,
    maxMs: 10 * minuteMs,
    about: "Longest silence tolerated from one source during a transfer.",
  }),
  "agent.connect_timeout": duration({
    fallback: "3s",
    minMs: 50,
    maxMs: minuteMs,
    about: "Longest wait for a connection to a peer or to the coordinator.",
  }),

  "agent.socket": path({
    fallback: null,
    about:
      "Unix socket, mode 0600, at which engines hand over their weights. Without it each process takes one in a private folder and tells its engine in RELIGHT_AGENT_SOCKET.",
  }),

  "weights.listen": address({
    fallback: "127.0.0.1:0",
    portMin: 0,
    about: "Where live weights are served to agents of other machines. Port 0 takes any free one.",
  }),
  "weights.advertise": url({
    fallback: null,
    about: "URL by which they reach it, when it differs from the address it listens on.",
  }),
  "weights.transport": choice(["auto", "cuda-ipc", "nccl", "http"], {
    fallback: "auto",
    about:
      "How live weights come: `auto` takes what both sides share, memory of one machine before NCCL before HTTP.",
  }),
  "weights.rate_max": bytes({
    fallback: "0B",
    min: 0,
    max: 2 ** 50,
    about: "What all readers of one engine's weights together may take a second; 0B is no cap.",
  }),
  "weights.readers_max": integer({
    fallback: "4",
    min: 1,
    max: 1_024,
    about: "Replicas that read one engine's weights at once; the next ones wait or ask others.",
  }),
  "weights.load_budget": duration({
    fallback: "2min",
    minMs: secondMs,
    maxMs: hourMs,
    about:
      "Longest time for reading weights from live replicas; past it the engine loads from disk.",
  }),
  "weights.busy_budget": duration({
    fallback: "30s",
    minMs: 0,
    maxMs: hourMs,
    about: "How long a load comes back while all sources have as many readers as they admit.",
  }),
  "weights.pretend_gpu": path({
    fallback: null,
    about: "For trials without a GPU: a directory whose files stand for GPU memory.",
  }),

  "run.model": text({ fallback: "", about: `Model that the engine serves. ${unknown}` }),
  "run.revision": text({ fallback: "", about: `Revision of the model. ${unknown}` }),
  "run.tp": integer({
    fallback: null,
    min: 1,
    max: degreesMax,
    about: `Tensor-parallel degree. ${unknown}`,
  }),
  "run.pp": integer({
    fallback: null,
    min: 1,
    max: degreesMax,
    about: `Pipeline-parallel degree. ${unknown}`,
  }),
  "run.ep": integer({
    fallback: null,
    min: 1,
    max: degreesMax,
    about: `Expert-parallel degree. ${unknown}`,
  }),
  "run.dtype": text({ fallback: "", about: `Data type of the weights. ${unknown}` }),
  "run.quantization": text({ fallback: "", about: `Quantisation of the weights. ${unknown}` }),
  "run.cache": directories({
    fallback: [],
    about: "A cache directory of a kind that Relight does not know: its name and where it is.",
  }),
  "run.identity": pairs({
    fallback: [],
    about: "What else two replicas must share before they exchange the caches of run.cache.",
  }),
  "run.families": texts({
    fallback: ["auto"],
    pattern: /^[a-z0-9][a-z0-9_-]{0,63}$/,
    wants: "auto, or names of cache families",
    placeholder: "NAME",
    about: "Cache families to exchange; `auto` takes every one whose directory the engine uses.",
  }),
  "run.health_url": url({
    fallback: null,
    about: "URL that answers 200 once the engine serves.",
  }),
  "run.health_budget": duration({
    fallback: "30min",
    minMs: secondMs,
    maxMs: 24 * hourMs,
    about: "Longest wait for the engine to become healthy; past it nothing is published.",
  }),
  "run.python": path({
    fallback: null,
    about: "The engine's Python, when it cannot be found from the command.",
  }),
  "run.budget": duration({
    fallback: "60s",
    minMs: 0,
    maxMs: hourMs,
    about: "Longest time from start until the engine starts, whatever was installed by then.",
  }),
  "run.discover_budget": duration({
    fallback: "5s",
    minMs: 0,
    maxMs: hourMs,
    about: "Share of run.budget for the identity and for asking the coordinator.",
  }),
  "run.fetch_budget": duration({
    fallback: "50s",
    minMs: 0,
    maxMs: hourMs,
    about: "Share of run.budget for the transfer.",
  }),
  "run.settle": duration({
    fallback: "2s",
    minMs: 0,
    maxMs: 10 * minuteMs,
    about: "How long a cache must be unchanged before it is sealed.",
  }),
  "run.delta_interval": duration({
    fallback: "5s",
    minMs: 100,
    maxMs: hourMs,
    about: "How often a running engine's caches are looked at for new entries.",
  }),
  "run.publish": boolean({ fallback: "true", about: "Offer this replica's caches to others." }),
  "run.install": boolean({
    fallback: "true",
    about: "Install what others offer before the start.",
  }),
  "run.weights": boolean({
    fallback: "false",
    about:
      "Hand over weights from GPU to GPU: an engine with Relight's loader takes them from live replicas of this machine and gives its own.",
  }),
  "run.node_id": text({
    fallback: null,
    pattern: /^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$/,
    wants: 'up to 128 letters, digits, "." , "_" and "-"',
    about:
      "Name of this node towards the coordinator, when it should not be made from the host name.",
  }),

  "trust.mode": choice(["closed", "insecure"], {
    fallback: "closed",
    about:
      "`closed` installs only what authors named by the policy signed. `insecure` installs whatever a peer offers, for experiments on loopback; short `--trust=insecure`.",
  }),
  "trust.dir": path({
    fallback: {
      about: "trust/ in state.dir",
      from: (known) => `${known.text("state.dir")}/trust`,
    },
    about:
      "Where this node keeps its key, the newest policy and what forbids going back. Replicas of one owner on one machine share it.",
  }),
  "trust.policy": path({
    fallback: {
      about: "policy.json in trust.dir",
      from: (known) => `${known.text("trust.dir")}/policy.json`,
    },
    about:
      "The fleet's policy, signed by its roots; read again when it changes. Without it this machine trusts exactly its own key.",
  }),
  "trust.environment": text({
    fallback: "default",
    pattern: /^[A-Za-z0-9][A-Za-z0-9._/-]{0,127}$/,
    wants: 'up to 128 letters, digits, ".", "_", "-" and "/"',
    about: "Name of the environment that this node belongs to; artifacts of another are refused.",
  }),
  "trust.certificate": path({
    fallback: null,
    about:
      "Certificate in PEM by which this process proves who it is, with what stands between it and an authority. Together with trust.key and trust.authority; files are read again when they rotate.",
  }),
  "trust.key": path({
    fallback: null,
    about: "Private key of trust.certificate in PEM, unencrypted; not for everybody to read.",
  }),
  "trust.authority": path({
    fallback: null,
    about: "Authorities in PEM: whose certificates are believed.",
  }),
  "trust.bearer_file": path({
    fallback: null,
    about:
      "For `relight coordinator` behind TLS: callers without a certificate, one `ROLE NAME TOKEN` a line; read again when it changes.",
  }),
  "trust.domain": text({
    fallback: "relight",
    pattern: /^[a-z0-9][a-z0-9.-]{0,62}$/,
    wants: 'up to 63 lower-case letters, digits, "." and "-"',
    about: "Trust domain of the fleet whose own authority lies in trust.dir.",
  }),
  "trust.join": text({
    fallback: null,
    secret: true,
    placeholder: "TOKEN",
    about:
      "Token of `relight trust token`: at its first start this node gets a certificate for a key of its own, and renews it from then on; short `--join`.",
  }),

  "log.level": choice(["debug", "info", "warn", "error", "silent"], {
    fallback: "info",
    about: "Least important event that is written to standard error.",
  }),
  "log.format": choice(["auto", "json", "text"], {
    fallback: "auto",
    about: "`auto` writes text to a terminal and JSON elsewhere.",
  }),
} satisfies Record<string, Setting<unknown>>;

export type Key = keyof typeof schema;

/** The first word of a key: its table in the file. */
export type Group = GroupOf<Key>;

type GroupOf<Some extends string> = Some extends `${infer Word}.${string}` ? Word : never;

/** Every setting's value. Parts of Relight receive the few values they need, never this. */
export type Config = { readonly [Some in Key]: ValueOf<(typeof schema)[Some]> };

function stateDirectory(environment: Record<string, string | undefined>): string {
  const base = environment["XDG_STATE_HOME"];
  // The XDG specification tells programs to ignore a relative path here.
  if (base?.startsWith("/") === true) return `${base}/relight`;
  const home = environment["HOME"];
  return home?.startsWith("/") === true ? `${home}/.local/state/relight` : "/var/lib/relight";
}
