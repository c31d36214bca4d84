/**
 * The lease as the agent, its watchdog and a restarted agent share it. Its times are those of the monotonic clock, which all
 * processes of a machine share until it is booted again.
 *
 * The file has two places, written in turn and in place: a disk that is full takes the next lease all the same, and of a
 * write that is torn the one before is left. Each place is a line of JSON with its number and a checksum; the highest counts.
 */
import { createHash } from 'node:crypto';
import { readFileSync } from 'node:fs';
import { z } from 'zod';
import type { Disk } from './disk.ts';

const leaseFile = z.object({
  /** Which boot of the machine the times belong to. */
  bootId: z.string(),
  /** When the lease ends; `null` while nothing runs that it would be for. */
  endsAtMs: z.number().nullable(),
  leaseMs: z.number(),
  sledId: z.string().nullable(),
  /** The epoch of the sled in the control plane's last answer. */
  epoch: z.number().nullable(),
  /** The agent that writes this file: a watchdog of an earlier one leaves when its own agent is gone. */
  agentPid: z.number(),
  /** Counts what was written, by all agents with this file. */
  sequence: z.number().int(),
});
export type LeaseFile = z.infer<typeof leaseFile>;
/** A lease that has no number yet. */
export type NewLease = Omit<LeaseFile, 'sequence'>;

const PLACES = 2;
const PLACE_BYTES = 1024;

/** The monotonic clock, in milliseconds: on Linux since boot, whatever the wall clock says, and the same in every process. */
export function monotonicMs(): number {
  return Number(process.hrtime.bigint()) / 1e6;
}

/** What identifies this boot of the machine; empty where the system has no such thing. */
export function bootId(): string {
  try {
    return readFileSync('/proc/sys/kernel/random/boot_id', 'utf8').trim();
  } catch {
    return '';
  }
}

/** Writes leases to their file, which it holds open. */
export class LeaseWriter {
  readonly #disk: Disk;
  readonly #path: string;
  #file: number | null = null;
  #sequence: number;
  /** The place that has the last lease which is whole: the other one is written next. */
  #whole = PLACES - 1;

  /** `earlier` is what {@link readLease} found in the file. */
  constructor(disk: Disk, path: string, earlier: LeaseFile | null) {
    this.#disk = disk;
    this.#path = path;
    this.#sequence = earlier?.sequence ?? 0;
  }

  /** The number of the last lease that was made, whether or not it could be written. */
  get sequence(): number {
    return this.#sequence;
  }

  /** Opens the file, made with all the room that it will ever need. Throws a `DiskError`. */
  open(): void {
    if (this.#file !== null) return;
    this.#file = this.#disk.openFixed(this.#path, PLACES * PLACE_BYTES);
    const sequences = readPlaces(this.#path).map((lease) => lease?.sequence ?? 0);
    if (Math.max(...sequences) > 0) this.#whole = sequences.indexOf(Math.max(...sequences));
  }

  /** Gives a lease its number. */
  number(lease: NewLease): LeaseFile {
    this.#sequence += 1;
    return { ...lease, sequence: this.#sequence };
  }

  /** Writes a lease: it is on disk when this returns. Throws a `DiskError`: then the one before is there. */
  write(lease: LeaseFile): void {
    this.open();
    const text = JSON.stringify(lease);
    const line = JSON.stringify({ sum: sumOf(text), lease: text }).padEnd(PLACE_BYTES - 1);
    const next = (this.#whole + 1) % PLACES;
    if (this.#file !== null) this.#disk.writeAt(this.#file, this.#path, `${line}\n`, next * PLACE_BYTES);
    this.#whole = next;
  }

  close(): void {
    if (this.#file !== null) this.#disk.close(this.#file);
    this.#file = null;
  }
}

/** Reads the lease; `null` when none was ever written. Throws when there is one that can't be read. */
export function readLease(path: string): LeaseFile | null {
  let text: string;
  try {
    text = readFileSync(path, 'utf8');
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === 'ENOENT') return null;
    throw error;
  }
  const leases = splitPlaces(text)
    .map(readPlace)
    .filter((lease) => lease !== null);
  if (leases.length === 0 && text.trim() !== '') throw new Error(`there is no lease in ${path}`);
  return leases.sort((one, other) => other.sequence - one.sequence)[0] ?? null;
}

/** The lease in each place of a file. Throws what the file system says. */
function readPlaces(path: string): (LeaseFile | null)[] {
  return splitPlaces(readFileSync(path, 'utf8')).map(readPlace);
}

function splitPlaces(text: string): string[] {
  return Array.from({ length: PLACES }, (_, index) => text.slice(index * PLACE_BYTES, (index + 1) * PLACE_BYTES));
}

const place = z.object({ sum: z.string(), lease: z.string() });

/** The lease in a place of the file; `null` for an empty one, and for one whose write was torn. */
function readPlace(text: string): LeaseFile | null {
  try {
    const { sum, lease } = place.parse(JSON.parse(text));
    return sum === sumOf(lease) ? leaseFile.parse(JSON.parse(lease)) : null;
  } catch {
    return null;
  }
}

/** Reads a lease as the agent tells it to its watchdog: a line of JSON. `null` for anything else. */
export function parseLease(line: string): LeaseFile | null {
  try {
    return leaseFile.parse(JSON.parse(line));
  } catch {
    return null;
  }
}

function sumOf(text: string): string {
  return createHash('sha256').update(text).digest('hex').slice(0, 16);
}
