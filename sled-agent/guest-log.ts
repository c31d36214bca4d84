/**
 * The guest log on disk: a line of JSON whenever a guest begins or ceases to execute, written as it happens, so that it
 * outlives the agent. What an agent that was killed could not write, its watchdog or the restarted agent writes for it.
 */
import { appendFileSync, readFileSync } from 'node:fs';
import { type GuestLogEntry, guestLogEntry } from './hypervisor.ts';
import { monotonicMs } from './lease-file.ts';

/** An entry of now, by both clocks. */
export function guestLogNow(entry: Pick<GuestLogEntry, 'instance_id' | 'vmm_id' | 'event' | 'reason'>): GuestLogEntry {
  return { ...entry, time: new Date().toISOString(), monotonic_ms: monotonicMs() };
}

/** Appends an entry, as one write. Throws what the file system says. */
export function appendGuestLog(file: string, entry: GuestLogEntry): void {
  appendFileSync(file, `${JSON.stringify(entry)}\n`);
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
 * Writes that every guest which began and did not cease has ceased now. To be called only when it is certain that none
 * executes. Throws what the file system says.
 */
export function closeGuestLog(file: string, reason: string): void {
  const executing = new Map<string, GuestLogEntry>();
  for (const entry of readGuestLogFile(file)) {
    if (entry.event === 'began') executing.set(entry.vmm_id, entry);
    else executing.delete(entry.vmm_id);
  }
  if (executing.size === 0) return;
  const ends = [...executing.values()].map(({ instance_id, vmm_id }) =>
    guestLogNow({ instance_id, vmm_id, event: 'ceased', reason }),
  );
  // Begins on a new line, whatever the one before it was.
  appendFileSync(file, `\n${ends.map((entry) => `${JSON.stringify(entry)}\n`).join('')}`);
}
