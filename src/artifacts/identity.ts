// SPDX-License-Identifier: Apache-2.0
// Who may exchange with whom: the facts that a family depends on, and no others. Relight's own version
// is never among them. Pure; the facts come from the probe and from the configuration.

import { blake3Hex } from "../core/digest.ts";
import { type Environment, type FactName, type Facts, type Family, factNames } from "./family.ts";

/** What a source and a target must share, as it goes to the coordinator. */
export interface Identity {
  readonly family: string;
  readonly sourceType: number;
  /** Facts that the family depends on and that are known. Lower-cased by the coordinator for its id. */
  readonly facts: Readonly<Partial<Record<FactName, string>>>;
  /** What the user added, KEY=VALUE. */
  readonly extra: Readonly<Record<string, string>>;
  /** Facts that the family depends on and that nobody could tell: they are matched as empty. */
  readonly unknown: readonly FactName[];
}

export function identityOf(
  family: Family,
  facts: Facts,
  extra: Readonly<Record<string, string>>,
): Identity {
  const known = family.dependsOn.filter((fact) => facts[fact] !== "");
  return {
    family: family.name,
    sourceType: family.sourceType,
    facts: Object.fromEntries(known.map((fact) => [fact, facts[fact]])),
    extra,
    // Nobody can say which facts a cache given by hand depends on, so none is missing.
    unknown:
      family.variable === null
        ? []
        : family.dependsOn.filter((fact) => facts[fact] === "" && !isOptional(fact)),
  };
}

/** Every fact, unknown ones empty; later sources win, so that what the user says beats the probe. */
export function mergeFacts(...sources: readonly Partial<Record<string, string>>[]): Facts {
  const merged = Object.assign({}, ...sources.map(withoutEmpty)) as Partial<
    Record<FactName, string>
  >;
  return Object.fromEntries(factNames.map((fact) => [fact, merged[fact] ?? ""])) as Facts;
}

/** Options of an engine that change what it compiles, beside those that are facts of their own. */
const compileOptions =
  /^--?(O\d?|compilation-config|cc|max-num-batched-tokens|max-num-seqs|max-model-len|enforce-eager|kv-cache-dtype|enable-torch-compile|torch-compile-max-bs|cuda-graph-\S*|cudagraph-\S*|block-size|attention-backend)(=|$|\.)/;
const compileVariables =
  /^(TORCHINDUCTOR_|TORCH_COMPILE|TORCH_LOGS_COMPILE|TRITON_|VLLM_USE_|VLLM_ATTENTION|VLLM_DISABLE_COMPILE|CUDA_ARCH|TORCH_CUDA_ARCH)/;
/** Where caches lie does not change what is in them. */
const placeVariables = /_(DIR|HOME|ROOT|PATH)$/;

/**
 * A digest of the command's and the environment's compile options; empty when there are none, so that
 * two replicas without any agree also where one of them has an older Relight.
 */
export function compileConfigDigest(command: readonly string[], env: Environment): string {
  const options = command.flatMap((word, at) => {
    if (!compileOptions.test(word)) return [];
    const next = command[at + 1];
    return word.includes("=") || next === undefined || next.startsWith("-")
      ? [word]
      : [`${word}=${next}`];
  });
  const variables = Object.entries(env)
    .filter(([name]) => compileVariables.test(name) && !placeVariables.test(name))
    .map(([name, value]) => `${name}=${value ?? ""}`);
  const all = [...options, ...variables].sort();
  return all.length === 0 ? "" : blake3Hex(Buffer.from(JSON.stringify(all))).slice(0, 16);
}

/** Options of vLLM and SGLang that say what a replica is. Source: both engines' argument parsers. */
const factOptions: Readonly<Partial<Record<FactName, readonly string[]>>> = {
  model: ["--model", "--model-path"],
  revision: ["--revision"],
  tp: ["--tensor-parallel-size", "-tp", "--tp-size", "--tp"],
  pp: ["--pipeline-parallel-size", "-pp", "--pp-size"],
  ep: ["--ep-size", "--ep"],
  dtype: ["--dtype"],
  quantization: ["--quantization", "-q"],
};

/** What the engine's own command says of the replica, so that nobody has to say it twice. */
export function factsOfCommand(command: readonly string[]): Partial<Record<FactName, string>> {
  if (frameworkOf(command) === "") return {};
  const facts: Partial<Record<FactName, string>> = {};
  for (const [fact, names] of Object.entries(factOptions)) {
    const value = optionOf(command, names);
    if (value !== undefined) facts[fact as FactName] = value;
  }
  const served = command[command.indexOf("serve") + 1];
  if (command.includes("serve") && served !== undefined && !served.startsWith("-")) {
    facts.model ??= served;
  }
  return facts;
}

/** The value of `--name value` or `--name=value`; the last one counts, as in the engines. */
export function optionOf(command: readonly string[], names: readonly string[]): string | undefined {
  const at = command.findLastIndex((word) =>
    names.some((name) => word === name || word.startsWith(`${name}=`)),
  );
  const word = command[at];
  if (word === undefined) return undefined;
  return names.includes(word) ? command[at + 1] : word.slice(word.indexOf("=") + 1);
}

/** Which engine a command starts; empty when its name does not say. */
export function frameworkOf(command: readonly string[]): "vllm" | "sglang" | "tensorrt-llm" | "" {
  const words = command.slice(0, 4).map((word) => word.slice(word.lastIndexOf("/") + 1));
  if (words.some((word) => word === "vllm" || word.startsWith("vllm."))) return "vllm";
  if (words.some((word) => word === "sglang" || word.startsWith("sglang."))) return "sglang";
  return words.some((word) => word.startsWith("trtllm") || word.startsWith("tensorrt_llm"))
    ? "tensorrt-llm"
    : "";
}

/** Facts whose absence is normal and need not be reported as unknown. */
function isOptional(fact: FactName): boolean {
  return !["machine", "model", "gpu_arch", "torch", "triton_key"].includes(fact);
}

function withoutEmpty(source: Partial<Record<string, string>>): Partial<Record<string, string>> {
  return Object.fromEntries(
    Object.entries(source).filter(([, value]) => value !== undefined && value !== ""),
  );
}
