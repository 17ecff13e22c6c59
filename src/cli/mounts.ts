// SPDX-License-Identifier: Apache-2.0
// The kernel's mount table (proc(5), /proc/PID/mountinfo): which mount a path is on and its options.

export interface Mount {
  readonly point: string;
  readonly type: string;
  readonly options: readonly string[];
}

/** Lines that are not of the documented form are left out. */
export function parseMounts(text: string): readonly Mount[] {
  return text.split("\n").flatMap((line) => {
    const [head = "", tail = ""] = line.split(" - ", 2);
    const [, , , , point, options] = head.split(" ");
    const [type] = tail.split(" ");
    if (point === undefined || options === undefined || type === undefined || type === "")
      return [];
    return [{ point: unescapeOctal(point), type, options: options.split(",") }];
  });
}

/** The mount that holds `path`: the longest mount point above it, the last one when several match. */
export function mountOf(path: string, mounts: readonly Mount[]): Mount | undefined {
  let best: Mount | undefined;
  for (const mount of mounts) {
    const isAbove =
      mount.point === "/" || path === mount.point || path.startsWith(`${mount.point}/`);
    if (isAbove && mount.point.length >= (best?.point.length ?? 0)) best = mount;
  }
  return best;
}

/** The kernel writes space, tab, newline and backslash as three octal digits. */
function unescapeOctal(text: string): string {
  return text.replace(/\\([0-7]{3})/g, (_, digits: string) =>
    String.fromCharCode(Number.parseInt(digits, 8)),
  );
}
