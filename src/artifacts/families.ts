// SPDX-License-Identifier: Apache-2.0
// The list of families, and which of them an engine uses. Adding a family is one file under kinds/
// and one row here.

import path from "node:path";
import { RelightError } from "../errors.ts";
import type { Environment, Facts, Family } from "./family.ts";
import { cuteDsl } from "./kinds/cute-dsl.ts";
import { deepGemm } from "./kinds/deep-gemm.ts";
import { flashinferAutotune, flashinferJit } from "./kinds/flashinfer.ts";
import { inductor } from "./kinds/inductor.ts";
import { tilelang } from "./kinds/tilelang.ts";
import { torchCompile } from "./kinds/torch-compile.ts";
import { triton } from "./kinds/triton.ts";
import { tvmFfi } from "./kinds/tvm-ffi.ts";

export const families: readonly Family[] = [
  torchCompile,
  inductor,
  triton,
  deepGemm,
  flashinferJit,
  flashinferAutotune,
  tilelang,
  cuteDsl,
  tvmFfi,
];

/** A family and the folder it has in one engine. */
export interface Cache {
  readonly family: Family;
  /** Absolute, normalised. */
  readonly root: string;
  /** Roots of other caches inside this one, relative; they are sealed on their own. */
  readonly excluded: readonly string[];
}

/**
 * The caches of an engine: those given by hand, those named, or, with `auto`, those whose variable is
 * set or whose compiler is installed.
 * @throws RelightError `config_invalid` for an unknown family, or two caches with one root or name.
 */
export function chooseCaches(options: {
  env: Environment;
  facts: Facts;
  named: readonly string[];
  custom: readonly Family[];
}): Cache[] {
  const { env, facts, named, custom } = options;
  const known =
    named.includes("auto") || named.length === 0
      ? families.filter((family) => isUsed(family, env, facts))
      : [];
  const picked = named.filter((name) => name !== "auto" && name !== "none").map(familyNamed);
  const all = [...new Set([...known, ...picked, ...custom])];
  const rooted = all.flatMap((family) => {
    const root = family.root(env);
    return root === null ? [] : [{ family, root: path.resolve(root) }];
  });
  checkDistinct(rooted);
  return rooted.map(({ family, root }) => ({ family, root, excluded: nestedRoots(root, rooted) }));
}

export function familyNamed(name: string): Family {
  const family = families.find((candidate) => candidate.name === name);
  if (family === undefined) {
    throw new RelightError(
      "config_invalid",
      `Cannot find family "${name}": want one of ${families.map((known) => known.name).join(", ")}, auto, none`,
    );
  }
  return family;
}

function isUsed(family: Family, env: Environment, facts: Facts): boolean {
  const isVllm = facts.framework === "vllm";
  if (family === torchCompile || family === flashinferAutotune) return isVllm;
  return (
    (family.variable !== null && Boolean(env[family.variable])) ||
    family.usedBy.some((fact) => facts[fact] !== "")
  );
}

function nestedRoots(root: string, all: readonly { root: string }[]): string[] {
  return all
    .map((other) => path.relative(root, other.root))
    .filter((relative) => relative !== "" && !relative.startsWith(".."));
}

function checkDistinct(caches: readonly { family: Family; root: string }[]): void {
  for (const [index, { family, root }] of caches.entries()) {
    const twin = caches
      .slice(0, index)
      .find((other) => other.root === root || other.family.name === family.name);
    if (twin !== undefined) {
      throw new RelightError(
        "config_invalid",
        `Cannot use cache "${family.name}" at "${root}": "${twin.family.name}" is at "${twin.root}"`,
      );
    }
  }
}
