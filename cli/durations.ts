import { InvalidArgumentError } from 'commander';

const UNITS: Readonly<Record<string, number>> = { s: 1, m: 60, h: 3600, d: 24 * 3600 };

/** Reads a span of time as people write it, for example `30d`, `12h`, `90m` or `45s`. Returns seconds; throws for anything else. */
export function parseDuration(text: string): number {
  const [, number, unit] = /^(\d+)([smhd])$/.exec(text.trim()) ?? [];
  if (number === undefined || unit === undefined)
    throw new InvalidArgumentError(`"${text}" is no span of time: write for example 45s, 90m, 12h or 30d`);
  return Number(number) * (UNITS[unit] ?? 1);
}
