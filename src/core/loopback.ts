// SPDX-License-Identifier: Apache-2.0
// Which hosts never leave this machine. Plaintext is spoken with those only.

/** For an address or name as it stands in a setting or a URL, IPv6 with or without brackets. */
export function isLoopback(host: string): boolean {
  return /^(localhost|127(\.\d{1,3}){3}|\[?::1\]?)$/.test(host);
}
