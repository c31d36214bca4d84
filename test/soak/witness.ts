/**
 * The guests' own testimony, that outlives their sled agents: the logs that the agents keep on disk, with the ends that a
 * killed one could not write. By the monotonic clock, which all processes of a machine share and nobody sets. Pure.
 */
import { findOverlaps, type GuestRun, readGuestRuns } from '../../doctor/witness.ts';
import { parseGuestLog } from '../../sled-agent/guest-log.ts';
import type { GuestLogEntry } from '../../sled-agent/hypervisor.ts';

/** The life of one sled agent process. */
export interface AgentLife {
  readonly sled: string;
  /** What its log file holds. */
  readonly log: string;
  /** When it was killed, in milliseconds of the monotonic clock: its guests died with it. `null`: it ended in order, or lives. */
  readonly killedAtMs: number | null;
}

/** Two copies of one guest that executed at a time. */
export interface DoubleRun {
  readonly instanceId: string;
  readonly detail: string;
}

/** Reads a log; a last line that its process was killed while writing is no entry. Throws at any other bad line. */
function readGuestLog(text: string): GuestLogEntry[] {
  const { entries, tornLines } = parseGuestLog(text);
  // A watchdog that ends a killed agent's log begins on a new line: the torn one is the line before its entries.
  const lines = text.split('\n');
  const bad = tornLines.filter((line) => {
    const at = lines.indexOf(line);
    return at < lines.length - 1 && lines.slice(at + 1).some((later) => /"event":"began"/.test(later));
  });
  if (bad.length > 0) throw new Error(`a guest log has a line that is no entry: ${bad[0]}`);
  return entries;
}

/**
 * All that guests did, each VMM's in its order. A guest whose process was killed ceased with it: not when somebody, its
 * watchdog or the next agent, found that out and wrote it down.
 */
export function testimony(life: AgentLife): GuestLogEntry[] {
  const { killedAtMs } = life;
  const entries = readGuestLog(life.log);
  if (killedAtMs === null) return entries;
  const executing = new Map<string, GuestLogEntry>();
  const told: GuestLogEntry[] = [];
  for (const entry of entries) {
    if (entry.event === 'ceased' && (entry.monotonic_ms ?? 0) > killedAtMs) continue;
    told.push(entry);
    if (entry.event === 'began') executing.set(entry.vmm_id, entry);
    else executing.delete(entry.vmm_id);
  }
  const ends = [...executing.values()].map((entry) => ({
    ...entry,
    event: 'ceased' as const,
    reason: 'its sled agent was killed',
    monotonic_ms: Math.max(killedAtMs, entry.monotonic_ms ?? 0),
  }));
  return [...told, ...ends];
}

/** Every two copies of a guest that executed at a time, by all agents' lives together. Throws as {@link testimony}. */
export function findDoubleRuns(lives: readonly AgentLife[]): DoubleRun[] {
  const sledOf = new Map<GuestRun, string>();
  for (const life of lives) for (const run of readGuestRuns(testimony(life), 'monotonic')) sledOf.set(run, life.sled);
  const place = (run: GuestRun) => `VMM ${run.vmmId} on ${sledOf.get(run)}`;
  return findOverlaps([...sledOf.keys()]).map(({ earlier, later }) => {
    const togetherMs = Math.round(Math.min(earlier.ceasedMs, later.ceasedMs) - later.beganMs);
    const howLong = Number.isFinite(togetherMs) ? `for ${togetherMs} ms` : 'to this moment';
    return { instanceId: later.instanceId, detail: `${place(earlier)} and ${place(later)} ran ${howLong}` };
  });
}

/** A guest that powered itself off, and when, in milliseconds of the monotonic clock. */
export interface Halt {
  readonly instanceId: string;
  readonly atMs: number;
}

/** The guests that powered themselves off. */
export function findHalts(lives: readonly AgentLife[]): Halt[] {
  return lives
    .flatMap(testimony)
    .filter(({ event, reason }) => event === 'ceased' && reason === 'the guest halted')
    .map((entry) => ({ instanceId: entry.instance_id, atMs: entry.monotonic_ms ?? 0 }));
}
