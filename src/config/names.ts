// SPDX-License-Identifier: Apache-2.0
// How a key is spelled as flag, environment variable and file entry. Names are derived forwards from
// the key; nobody guesses a key from a name. Also: the RELIGHT_ variables that are not settings.

/** Variables with our prefix that are no setting, each with its meaning. */
export const otherVariables = {
  RELIGHT_CONFIG: "Path of the configuration file, like `--config`.",
} as const;

// Kubernetes injects these for every Service of the namespace; one that is called "relight" must not
// stop every replica (kubernetes.io/docs/concepts/services-networking/service/#environment-variables).
const serviceLink =
  /^RELIGHT_(?:[A-Z0-9_]+_)?(?:SERVICE_HOST|SERVICE_PORT(?:_[A-Z0-9_]+)?|PORT|PORT_\d+_(?:TCP|UDP|SCTP)(?:_(?:PROTO|PORT|ADDR))?)$/;

export function isServiceLink(variable: string): boolean {
  return serviceLink.test(variable);
}

/** `agent.readers_max` is `--agent-readers-max`. */
export function flagName(key: string): string {
  return `--${key.replace(".", "-").replaceAll("_", "-")}`;
}

/** Flags that are known by a shorter name than their key gives them. */
export const flagAliases: Readonly<Record<string, string>> = {
  "--trust": "trust.mode",
  "--join": "trust.join",
};

/** `--readers-max` for the commands of its own group. */
export function shortFlagName(key: string): string {
  return flagName(key.slice(key.indexOf(".") + 1));
}

/** `agent.readers_max` is `RELIGHT_AGENT_READERS_MAX`. */
export function variableName(key: string): string {
  return `RELIGHT_${key.replace(".", "_").toUpperCase()}`;
}

/** `agent.readers_max` is `readers_max` in the table `[agent]`. */
export function fileName(key: string): { readonly group: string; readonly name: string } {
  const dot = key.indexOf(".");
  return { group: key.slice(0, dot), name: key.slice(dot + 1) };
}
