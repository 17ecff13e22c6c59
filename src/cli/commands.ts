// SPDX-License-Identifier: Apache-2.0
// The table of commands: name words, one sentence, and where the command lives. A command's file is
// loaded only when it runs, so that `relight --help` and short commands load no gRPC, LMDB or FFI.

import type { Command } from "./command.ts";

export interface CommandEntry {
  readonly summary: string;
  readonly load: () => Promise<{ readonly command: Command }>;
}

export const commands: Readonly<Record<string, CommandEntry>> = {
  run: {
    summary: "Start an engine warm: install what peers have, run CMD, publish what it compiled.",
    load: () => import("./run.ts"),
  },
  "boot list": {
    summary: "List this node's starts, newest first.",
    load: () => import("./boot-list.ts"),
  },
  "boot show": {
    summary: "Draw one start as a waterfall, cache by cache.",
    load: () => import("./boot-show.ts"),
  },
  "boot why": {
    summary: "Say in sentences why a start was cold or slow.",
    load: () => import("./boot-why.ts"),
  },
  "artifact list": {
    summary: "List this node's caches: what lies in them and what came from peers.",
    load: () => import("./artifact-list.ts"),
  },
  "artifact show": {
    summary: "Show every file of a cache that would be sealed, and what is left out.",
    load: () => import("./artifact-show.ts"),
  },
  "artifact publish": {
    summary: "Offer this node's caches as they are until stopped.",
    load: () => import("./artifact-publish.ts"),
  },
  "artifact fetch": {
    summary: "Install what peers have for this node's caches, and end.",
    load: () => import("./artifact-fetch.ts"),
  },
  "artifact verify": {
    summary:
      "Read every installed file anew; compare it with its receipt and that with the policy.",
    load: () => import("./artifact-verify.ts"),
  },
  "artifact contents": {
    summary: "List every file of foreign code in this node's caches, with signer and source.",
    load: () => import("./artifact-contents.ts"),
  },
  "model publish": {
    summary: "Offer a model's checkpoint folder to others until stopped.",
    load: () => import("./model-publish.ts"),
  },
  "model fetch": {
    summary: "Bring a model's checkpoint from peers into a folder, whole or not at all.",
    load: () => import("./model-fetch.ts"),
  },
  "trust show": {
    summary: "Show whom this node trusts to author what, and its own key.",
    load: () => import("./trust-show.ts"),
  },
  "trust init": {
    summary: "Make a root key and the first policy of a fleet.",
    load: () => import("./trust-init.ts"),
  },
  "trust token": {
    summary: "Make a token by which nodes join the fleet of this coordinator.",
    load: () => import("./trust-token.ts"),
  },
  "trust sign": {
    summary: "Sign the policy's next version, or one that lacks signatures.",
    load: () => import("./trust-sign.ts"),
  },
  "trust revoke key": {
    summary: "Refuse a key from now on, and everything it alone signed.",
    load: () => import("./trust-revoke-key.ts"),
  },
  "trust revoke digest": {
    summary: "Refuse one artifact from now on, also where it is installed.",
    load: () => import("./trust-revoke-digest.ts"),
  },
  "trust policy check": {
    summary: "Say whether this node would put a policy into force.",
    load: () => import("./trust-policy-check.ts"),
  },
  "source list": {
    summary: "List what the coordinator offers.",
    load: () => import("./source-list.ts"),
  },
  "ep demo": {
    summary: "Show an expert group on this machine grow, lose a rank and shrink while it runs.",
    load: () => import("./ep-demo.ts"),
  },
  "ep status": {
    summary: "Show expert groups: ranks, slots, and the operation under way.",
    load: () => import("./ep-status.ts"),
  },
  "ep watch": {
    summary: "Show an expert group at every change until stopped.",
    load: () => import("./ep-watch.ts"),
  },
  "ep scale": {
    summary: "Bring an expert group to a number of ranks while it runs.",
    load: () => import("./ep-scale.ts"),
  },
  "ep remove": {
    summary: "Take one rank out of an expert group while it runs.",
    load: () => import("./ep-remove.ts"),
  },
  "ep recover": {
    summary: "Bring an expert group back to the ranks asked for last.",
    load: () => import("./ep-recover.ts"),
  },
  "ep abort": {
    summary: "Take back an operation that is not committed.",
    load: () => import("./ep-abort.ts"),
  },
  agent: {
    summary: "Take this node's caches from peers and offer them until stopped.",
    load: () => import("./agent.ts"),
  },
  dev: {
    summary: "Run a coordinator and an agent in one process, to try Relight on one machine.",
    load: () => import("./dev.ts"),
  },
  coordinator: {
    summary: "Run the service that knows who has what.",
    load: () => import("./coordinator.ts"),
  },
  doctor: {
    summary: "Check this machine, the configuration and the way to the coordinator.",
    load: () => import("./doctor.ts"),
  },
  "config show": {
    summary: "Show every setting with its value and where it comes from.",
    load: () => import("./config-show.ts"),
  },
  "config check": {
    summary: "Read the configuration as every command does and report all that is wrong.",
    load: () => import("./config-check.ts"),
  },
};
