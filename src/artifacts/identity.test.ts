// SPDX-License-Identifier: Apache-2.0
// Who may exchange with whom, from commands, environments and probes.

import assert from "node:assert/strict";
import { describe, test } from "node:test";
import { families } from "./families.ts";
import {
  compileConfigDigest,
  factsOfCommand,
  frameworkOf,
  identityOf,
  mergeFacts,
} from "./identity.ts";
import { deepGemm } from "./kinds/deep-gemm.ts";
import { flashinferJit } from "./kinds/flashinfer.ts";
import { triton } from "./kinds/triton.ts";

const serve = ["/opt/venv/bin/vllm", "serve", "org/model", "-tp", "8", "--dtype=bfloat16"];

describe("factsOfCommand()", () => {
  test("reads model, degrees and types from a vLLM and an SGLang command", () => {
    assert.deepEqual(factsOfCommand(serve), { model: "org/model", tp: "8", dtype: "bfloat16" });
    const sglang = ["python3", "-m", "sglang.launch_server", "--model-path", "m", "--tp=4"];
    assert.deepEqual(factsOfCommand(sglang), { model: "m", tp: "4" });
  });

  test("takes the last of a repeated option, as the engines do", () => {
    assert.equal(factsOfCommand([...serve, "-tp", "2"]).tp, "2");
  });

  test("says nothing of a command that is no known engine", () => {
    assert.deepEqual(factsOfCommand(["python3", "train.py", "--model", "m"]), {});
    assert.equal(frameworkOf(["sh", "-c", "vllm serve"]), "");
  });
});

describe("mergeFacts()", () => {
  test("lets the user win over the command and the command over the probe, but not by silence", () => {
    const facts = mergeFacts(
      { torch: "2.11", model: "probed" },
      { model: "command" },
      { model: "", torch: "" },
    );
    assert.equal(facts.model, "command");
    assert.equal(facts.torch, "2.11");
    assert.equal(facts.cuda, "");
  });
});

describe("identityOf()", () => {
  test("holds the facts that the family depends on and no others", () => {
    const facts = mergeFacts({
      torch: "2.11",
      triton_key: "k",
      nvcc: "13.0",
      deep_gemm_path: "/venv/a",
    });
    assert.deepEqual(identityOf(triton, facts, {}).facts, { torch: "2.11", triton_key: "k" });
    assert.equal(identityOf(deepGemm, facts, {}).facts.deep_gemm_path, "/venv/a");
  });

  test("separates DeepGEMM caches of packages at different paths, whose keys never match", () => {
    const at = (path: string) => identityOf(deepGemm, mergeFacts({ deep_gemm_path: path }), {});
    assert.notDeepEqual(at("/venv/a").facts, at("/venv/b").facts);
  });

  test("separates FlashInfer caches under different roots, whose builds name every file by path", () => {
    const at = (root: string) =>
      identityOf(flashinferJit, mergeFacts({ flashinfer_root: root }), {});
    assert.notDeepEqual(at("/a/.cache/flashinfer").facts, at("/b/.cache/flashinfer").facts);
  });

  test("names what is unknown and matters", () => {
    assert.deepEqual(identityOf(triton, mergeFacts({ machine: "x86_64" }), {}).unknown, [
      "torch",
      "triton_key",
      "gpu_arch",
      "model",
    ]);
  });

  test("of every family depends on the machine, and never on Relight's version", () => {
    for (const family of families) assert.ok(family.dependsOn.includes("machine"), family.name);
    const facts = mergeFacts(
      Object.fromEntries(families[0]?.dependsOn.map((fact) => [fact, "v"]) ?? []),
    );
    assert.doesNotMatch(JSON.stringify(identityOf(triton, facts, {})), /relight/i);
  });
});

describe("compileConfigDigest()", () => {
  test("changes with a compile option, however it is spelled, and with a compile variable", () => {
    const plain = compileConfigDigest(serve, {});
    const withOption = compileConfigDigest([...serve, "--max-num-batched-tokens", "8192"], {});
    assert.equal(plain, "");
    assert.notEqual(withOption, plain);
    assert.equal(withOption, compileConfigDigest([...serve, "--max-num-batched-tokens=8192"], {}));
    assert.notEqual(compileConfigDigest(serve, { TORCHINDUCTOR_MAX_AUTOTUNE: "1" }), plain);
  });

  test("does not change with where caches lie, with ports or with the order of options", () => {
    assert.equal(
      compileConfigDigest(serve, { TRITON_CACHE_DIR: "/a", TORCHINDUCTOR_CACHE_DIR: "/b" }),
      "",
    );
    assert.equal(compileConfigDigest([...serve, "--port", "9"], {}), "");
    const [a, b] = [
      ["--enforce-eager", "-O3"],
      ["-O3", "--enforce-eager"],
    ].map((more) => compileConfigDigest([...serve, ...more], {}));
    assert.equal(a, b);
  });
});
