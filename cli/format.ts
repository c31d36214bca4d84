/** How values are written for people and read back from them: colours, sizes and spans of time. */
import { InvalidArgumentError } from 'commander';
import pc from 'picocolors';

const { createColors, isColorSupported } = pc;

/**
 * Colours for a terminal, and only there: picocolors alone also colours what goes to a file or a pipe when the environment
 * variable CI is set, where a program reads it. NO_COLOR and FORCE_COLOR have their usual meaning.
 */
export const colours = createColors(
  isColorSupported && (process.stdout.isTTY === true || Boolean(process.env.FORCE_COLOR)),
);

const SECONDS: Readonly<Record<string, number>> = { s: 1, m: 60, h: 3600, d: 24 * 3600 };

/**
 * Reads a span of time as people write it, for example `30d`, `12h`, `90m` or `45s`. Returns seconds; throws commander's
 * InvalidArgumentError for anything else.
 */
export function parseDuration(text: string): number {
  const [, number, unit] = /^(\d+)([smhd])$/.exec(text.trim()) ?? [];
  if (number === undefined || unit === undefined)
    throw new InvalidArgumentError(`"${text}" is no span of time: write for example 45s, 90m, 12h or 30d`);
  return Number(number) * (SECONDS[unit] ?? 1);
}

/** Writes how long something lasts by now, of milliseconds, in its largest whole unit: `14 s`, `3 min`, `2 h`, `5 d`. */
export function formatAge(ms: number): string {
  const seconds = Math.max(0, Math.floor(ms / 1000));
  if (seconds < 60) return `${seconds} s`;
  if (seconds < 3600) return `${Math.floor(seconds / 60)} min`;
  return seconds < 48 * 3600 ? `${Math.floor(seconds / 3600)} h` : `${Math.floor(seconds / (24 * 3600))} d`;
}

const BYTES: Readonly<Record<string, number>> = {
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
  const factor = unit === undefined ? undefined : BYTES[unit];
  if (amount === undefined || factor === undefined)
    throw new Error(`"${text}" is not a size: write it as 512MiB, 2GiB or in bytes`);
  return Number(amount) * factor;
}

/** Writes a number of bytes in the largest unit that it fills, with at most one decimal. */
export function formatSize(bytes: number): string {
  for (const unit of ['TiB', 'GiB', 'MiB', 'KiB']) {
    const factor = BYTES[unit] ?? 1;
    if (bytes >= factor) return `${Number((bytes / factor).toFixed(1))} ${unit}`;
  }
  return `${bytes} B`;
}
