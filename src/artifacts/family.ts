// SPDX-License-Identifier: Apache-2.0
// What Relight knows of one kind of cache: where the engine keeps it, what it depends on, which
// of its files are half-written, name their root, or have a form that can be checked. One small file
// per family under kinds/; families.ts lists them.

/** Facts that two replicas must share. Values are texts; empty means unknown. */
export const factNames = [
  "machine",
  "framework",
  "framework_version",
  "python",
  "torch",
  "cuda",
  "triton",
  "triton_key",
  "gpu_arch",
  "nvcc",
  "flashinfer",
  "flashinfer_path",
  "flashinfer_root",
  "deep_gemm",
  "deep_gemm_path",
  "tilelang",
  "cutlass_dsl",
  "tvm_ffi",
  "model",
  "revision",
  "tp",
  "pp",
  "ep",
  "dtype",
  "quantization",
  "compile_config",
] as const;

export type FactName = (typeof factNames)[number];
export type Facts = Readonly<Record<FactName, string>>;

/** The engine's environment variables. */
export type Environment = Readonly<Record<string, string | undefined>>;

/** What a family adds whose files are of use only together, and that is not compiled but downloaded. */
export interface WholeRules {
  /** Also files that an engine executes. */
  readonly allowsCode: boolean;
  /** Below this folder a link in the cache may lead to a file, which is then sealed as if it lay in its place. */
  linkRoot(root: string): string;
  /** Why a file of this name is neither sealed nor accepted; null when it is. */
  refuse(path: string): string | null;
  /** What a transfer brings first, because `order` reads it. */
  isEarly(path: string): boolean;
  /**
   * Groups of the other files, the most wanted first; what is in no group comes last.
   * @param read an early file's bytes; null when there is none of that name
   */
  order(
    paths: readonly string[],
    read: (path: string) => Buffer | null,
  ): readonly (readonly string[])[];
}

export interface Family {
  readonly name: string;
  /** What it holds, for `relight doctor` and the docs. */
  readonly about: string;
  /** The variable that moves the cache; set means the family is in use. Null for a family given by hand. */
  readonly variable: string | null;
  /** The Python distribution whose presence means that the engine uses this family. */
  readonly usedBy: readonly FactName[];
  /** The cache's absolute root; null when the environment does not tell (no HOME). */
  root(env: Environment): string | null;
  /** The number that model_express.p2p.MxSourceType gives to this kind of cache. */
  readonly sourceType: number;
  readonly dependsOn: readonly FactName[];
  /** Half-written by the compiler, or worthless to another replica. */
  isTemporary(path: string): boolean;
  /**
   * Endings of what its compiler writes; a file with another is neither sealed nor accepted. Not given
   * where a cache holds files without an ending, or whatever its user puts there.
   */
  readonly suffixes?: readonly string[];
  /** A build tool compares the files' modification times: they travel, and are given to what is installed. */
  readonly keepsTimes?: boolean;
  /** Names its root and travels in portable form (rebase.ts). */
  isRooted(path: string): boolean;
  /** Groups files into what was compiled: the unit that hits and compiles are counted in; null to not count. */
  unitOf(path: string): string | null;
  /** Given for a checkpoint: its folder is one artifact, whole or not there. */
  readonly whole?: WholeRules;
}

/** A kernel per directory: the unit is the file's folder, when the file is the compiled code. */
export function folderUnit(path: string, endings: readonly string[]): string | null {
  if (!endings.some((ending) => path.endsWith(ending))) return null;
  const slash = path.lastIndexOf("/");
  return slash === -1 ? path : path.slice(0, slash);
}

/** Names that compilers, ninja, file locks and editors give to files on their way. */
export function isTemporaryName(path: string): boolean {
  return path
    .split("/")
    .some(
      (name) =>
        name.startsWith("tmp.") ||
        name.startsWith(".tmp") ||
        name.includes(".tmp.") ||
        /\.(tmp|temp|lock|part|swp|pid)$/.test(name) ||
        name === "__pycache__" ||
        name === "lock" ||
        name === "locks",
    );
}

/** Whether a file of this name may be in the family's cache at all. */
export function isOfFamily({ suffixes }: Pick<Family, "suffixes">, path: string): boolean {
  return suffixes === undefined || suffixes.some((suffix) => path.endsWith(suffix));
}
