/**
 * The guest log on disk: a line of JSON whenever a guest begins or ceases to execute, written as it happens, so that it
 * outlives the agent. What an agent that was killed could not write, its watchdog or the restarted agent writes for it.
 */
import { readFileSync } from 'node:fs';
import { type Disk, GrowingFile } from './disk.ts';
import { type GuestLogEntry, guestLogEntry } from './hypervisor.ts';
import { monotonicMs } from './lease-file.ts';

/** An entry of now, by both clocks. */
export function guestLogNow(entry: Pick<GuestLogEntry, 'instance_id' | 'vmm_id' | 'event' | 'reason'>): GuestLogEntry {
  return { ...entry, time: new Date().toISOString(), monotonic_ms: monotonicMs() };
}

/**
 * The guest log of a running agent. An entry that can't be written waits, in its order and with its own time: a guest lives
 * or ends whether or not that can be written down.
 */
export class GuestLog {
  readonly entries: GuestLogEntry[] = [];
  readonly #disk: Disk;
  readonly #path: string | undefined;
  readonly #file: GrowingFile | null;
  /** How many of the entries are on disk. */
  #written = 0;

  /** `path`: where the entries are kept beside; nowhere when absent. */
  constructor(disk: Disk, path: string | undefined) {
    this.#disk = disk;
    this.#path = path;
    this.#file = path === undefined ? null : new GrowingFile(disk, path);
  }

  /** Adds an entry. It is written before this returns, so that the log has what a process that is killed next has done. Never throws. */
  add(entry: GuestLogEntry): void {
    this.entries.push(entry);
    const file = this.#file;
    if (file === null) return;
    this.#disk.eventually(`guest log ${this.#path}`, () => {
      for (let next = this.entries[this.#written]; next !== undefined; next = this.entries[this.#written]) {
        file.append(JSON.stringify(next), false);
        this.#written += 1;
      }
    });
  }

  /** Writes, sooner or later, that every guest which an earlier agent left executing has ceased now. Never throws. */
  closeEarlier(reason: string): void {
    const path = this.#path;
    if (path === undefined) return;
    const close = closingOf(this.#disk, path, reason);
    this.#disk.eventually(`guest log of an earlier agent ${path}`, close);
  }

  /** Closes its file. */
  close(): void {
    this.#file?.close();
  }
}

/** The entries of a guest log's text, and the lines that are none: their writer was killed in the middle of them. */
export function parseGuestLog(text: string): { entries: GuestLogEntry[]; tornLines: string[] } {
  const entries: GuestLogEntry[] = [];
  const tornLines: string[] = [];
  for (const line of text.split('\n')) {
    if (line === '') continue;
    try {
      entries.push(guestLogEntry.parse(JSON.parse(line)));
    } catch {
      tornLines.push(line);
    }
  }
  return { entries, tornLines };
}

/** Reads a guest log; a torn line is no entry, and a missing file is an empty one. */
export function readGuestLogFile(file: string): GuestLogEntry[] {
  let text: string;
  try {
    text = readFileSync(file, 'utf8');
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === 'ENOENT') return [];
    throw error;
  }
  return parseGuestLog(text).entries;
}

/**
 * What writes that every guest which began and did not cease has ceased now, at the moment of this call: it may be called
 * until it doesn't throw a `DiskError`. To be made only when it is certain that none executes.
 */
export function closingOf(disk: Disk, file: string, reason: string): () => void {
  const now = guestLogNow({ instance_id: '', vmm_id: '', event: 'ceased', reason });
  return () => {
    const executing = new Map<string, GuestLogEntry>();
    for (const entry of readGuestLogFile(file)) {
      if (entry.event === 'began') executing.set(entry.vmm_id, entry);
      else executing.delete(entry.vmm_id);
    }
    if (executing.size === 0) return;
    // Begins on a new line, whatever the one before it was.
    const log = new GrowingFile(disk, file, true);
    try {
      for (const { instance_id, vmm_id } of executing.values())
        log.append(JSON.stringify({ ...now, instance_id, vmm_id }), false);
    } finally {
      log.close();
    }
  };
}
