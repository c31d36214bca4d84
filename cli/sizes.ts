const UNITS: Readonly<Record<string, number>> = {
  '': 1,
  B: 1,
  KiB: 1024,
  MiB: 1024 ** 2,
  GiB: 1024 ** 3,
  TiB: 1024 ** 4,
};

/** Reads a size such as `512MiB` or `2GiB`; a bare number is bytes. Returns bytes; throws with an example on anything else. */
export function parseSize(text: string): number {
  const [, amount, unit] = /^(\d+)\s*([KMGT]iB|B|)$/.exec(text.trim()) ?? [];
  const factor = unit === undefined ? undefined : UNITS[unit];
  if (amount === undefined || factor === undefined)
    throw new Error(`"${text}" is not a size: write it as 512MiB, 2GiB or in bytes`);
  return Number(amount) * factor;
}

/** Writes a size in the largest unit that divides it, in at most one decimal. */
export function formatSize(bytes: number): string {
  for (const unit of ['TiB', 'GiB', 'MiB', 'KiB']) {
    const factor = UNITS[unit] ?? 1;
    if (bytes >= factor) return `${Number((bytes / factor).toFixed(1))} ${unit}`;
  }
  return `${bytes} B`;
}
