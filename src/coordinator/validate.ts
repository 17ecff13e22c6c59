// SPDX-License-Identifier: Apache-2.0
// The one place where messages from outside are checked before anything uses them. A message that
// breaks a limit (protocol/limits.ts) or a form is refused whole, naming the field.

import { RelightError } from "../errors.ts";
import type { SourceIdentity, TensorDescriptor } from "../protocol/gen/p2p_pb.ts";
import type { Artifact, BootReport } from "../protocol/gen/relight_pb.ts";
import { limits } from "../protocol/limits.ts";
import { isSourceId } from "../protocol/source-id.ts";
import type { Boot, Offer } from "../store/store.ts";

const artifactIdForm = /^[0-9a-f]{64}$/;
const familyForm = /^[a-z0-9][a-z0-9._-]{0,63}$/;

export function refuse(field: string, is: string, wanted: string): never {
  throw new RelightError("request_invalid", `Cannot read ${field}: is ${is}, wanted ${wanted}`, {
    details: { field },
  });
}

/** A name or id: present, bounded, free of control characters. */
export function checkName(field: string, value: string): string {
  if (value === "") refuse(field, "empty", "a name");
  return checkText(field, value, limits.nameLengthMax);
}

export function checkSourceId(field: string, value: string): string {
  return isSourceId(value) ? value : refuse(field, "malformed", "16 lower-case hex characters");
}

export function checkText(field: string, value: string, lengthMax: number): string {
  if (value.length > lengthMax) refuse(field, `${value.length} long`, `at most ${lengthMax}`);
  for (let at = 0; at < value.length; at++) {
    if (value.charCodeAt(at) < 0x20) refuse(field, "text with control characters", "plain text");
  }
  return value;
}

export function checkIdentity(field: string, identity: SourceIdentity | undefined): SourceIdentity {
  if (identity === undefined) refuse(field, "absent", "an identity");
  checkName(`${field}.model_name`, identity.modelName);
  const { mxVersion, dtype, quantization, revision, gpuArch, compileConfigDigest } = identity;
  const { backendFrameworkVersion, torchVersion, cudaVersion, tritonVersion } = identity;
  const names = { mxVersion, dtype, quantization, revision, gpuArch, compileConfigDigest };
  const versions = { backendFrameworkVersion, torchVersion, cudaVersion, tritonVersion };
  for (const [key, value] of Object.entries({ ...names, ...versions })) {
    checkText(`${field}.${key}`, value, limits.nameLengthMax);
  }
  checkExtraParameters(`${field}.extra_parameters`, identity.extraParameters);
  return identity;
}

function checkExtraParameters(field: string, parameters: Readonly<Record<string, string>>): void {
  const entries = Object.entries(parameters);
  const { extraParametersMax, textLengthMax } = limits;
  if (entries.length > extraParametersMax) {
    refuse(field, `${entries.length} entries`, `at most ${extraParametersMax}`);
  }
  for (const [key, value] of entries) {
    if (key.length > limits.nameLengthMax)
      refuse(field, "a long key", `at most ${limits.nameLengthMax}`);
    if (value.length > textLengthMax) refuse(`${field}.${key}`, "long", `at most ${textLengthMax}`);
  }
}

export function checkIdentities(identities: readonly SourceIdentity[]): readonly SourceIdentity[] {
  const { identitiesMax } = limits;
  if (identities.length === 0) refuse("identities", "empty", "one at least");
  if (identities.length > identitiesMax) {
    refuse("identities", `${identities.length} entries`, `at most ${identitiesMax}`);
  }
  return identities.map((identity, index) => checkIdentity(`identities[${index}]`, identity));
}

export function checkOffer(message: {
  readonly artifact?: Artifact | undefined;
  readonly endpoints: readonly string[];
  readonly complete: boolean;
}): Offer {
  const { artifact } = message;
  if (artifact === undefined) refuse("artifact", "absent", "what is offered");
  if (!familyForm.test(artifact.family)) {
    refuse("artifact.family", "malformed", "lower-case letters, digits, dot, dash or underscore");
  }
  return {
    artifactId: checkArtifactId("artifact.artifact_id", artifact.artifactId),
    family: artifact.family,
    totalBytes: checkCount("artifact.total_bytes", artifact.totalBytes),
    fileCount: artifact.fileCount,
    pieceCount: artifact.pieceCount,
    baseArtifactIds: checkBases(artifact.baseArtifactIds),
    endpoints: checkEndpoints(message.endpoints),
    complete: message.complete,
  };
}

function checkArtifactId(field: string, value: string): string {
  return artifactIdForm.test(value)
    ? value
    : refuse(field, "malformed", "64 lower-case hex characters");
}

function checkBases(ids: readonly string[]): readonly string[] {
  const { baseArtifactsMax } = limits;
  if (ids.length > baseArtifactsMax) {
    refuse("artifact.base_artifact_ids", `${ids.length} entries`, `at most ${baseArtifactsMax}`);
  }
  return ids.map((id, index) => checkArtifactId(`artifact.base_artifact_ids[${index}]`, id));
}

/** A 64-bit number that JavaScript can count with. */
export function checkCount(field: string, value: bigint): number {
  const number = Number(value);
  if (!Number.isSafeInteger(number) || number < 0) refuse(field, String(value), "at most 2^53 - 1");
  return number;
}

function checkEndpoints(endpoints: readonly string[]): readonly string[] {
  const { endpointsMax } = limits;
  if (endpoints.length === 0) refuse("endpoints", "empty", "one at least");
  if (endpoints.length > endpointsMax) {
    refuse("endpoints", `${endpoints.length} entries`, `at most ${endpointsMax}`);
  }
  return endpoints.map((endpoint, index) => checkEndpoint(`endpoints[${index}]`, endpoint));
}

/**
 * http://host:port without credentials, query or fragment: other agents will connect to it. Or
 * unix://BOOT-ID/path, which agents of that machine connect to.
 */
export function checkEndpoint(field: string, endpoint: string): string {
  checkText(field, endpoint, limits.nameLengthMax);
  const url = URL.canParse(endpoint)
    ? new URL(endpoint)
    : refuse(field, "malformed", "http://host:port");
  const isHttp = url.protocol === "http:" || url.protocol === "https:";
  const isSocket = url.protocol === "unix:" && url.host !== "" && url.pathname.length > 1;
  const isPlain =
    url.username === "" && url.password === "" && url.search === "" && url.hash === "";
  return (isHttp || isSocket) && isPlain
    ? endpoint
    : refuse(field, "of another form", "http://host:port");
}

/** @throws RelightError `request_invalid` naming the first that is malformed. */
export function checkTensors(
  field: string,
  tensors: readonly TensorDescriptor[],
): readonly TensorDescriptor[] {
  const { tensorsMax, textLengthMax, nameLengthMax } = limits;
  if (tensors.length > tensorsMax)
    refuse(field, `${tensors.length} entries`, `at most ${tensorsMax}`);
  for (const [index, { name, size, dtype }] of tensors.entries()) {
    if (name === "") refuse(`${field}[${index}].name`, "empty", "a name");
    checkText(`${field}[${index}].name`, name, textLengthMax);
    checkText(`${field}[${index}].dtype`, dtype, nameLengthMax);
    checkCount(`${field}[${index}].size`, size);
  }
  return tensors;
}

export function checkLimit(
  field: string,
  asked: number,
  bounds: { fallback: number; max: number },
): number {
  if (asked > bounds.max) refuse(field, String(asked), `at most ${bounds.max}`);
  return asked === 0 ? bounds.fallback : asked;
}

export function checkBoot(report: BootReport | undefined): Boot {
  if (report === undefined) refuse("report", "absent", "a boot report");
  const { bootBytesMax } = limits;
  const record = report.recordJson;
  if (record.byteLength > bootBytesMax) {
    refuse("report.record_json", `${record.byteLength} bytes`, `at most ${bootBytesMax}`);
  }
  if (!isJsonObject(record))
    refuse("report.record_json", "something else", "a JSON object in UTF-8");
  return {
    bootId: checkName("report.boot_id", report.bootId),
    nodeId: checkName("report.node_id", report.nodeId),
    model: checkText("report.model", report.model, limits.nameLengthMax),
    startedAtMs: checkCount("report.started_at_ms", report.startedAtMs),
    readyMs: report.readyMs === undefined ? null : checkCount("report.ready_ms", report.readyMs),
    record,
  };
}

function isJsonObject(bytes: Uint8Array): boolean {
  try {
    const value: unknown = JSON.parse(new TextDecoder("utf-8", { fatal: true }).decode(bytes));
    return typeof value === "object" && value !== null && !Array.isArray(value);
  } catch {
    // Not UTF-8 or not JSON: the answer is no, and the caller refuses it with the field's name.
    return false;
  }
}
