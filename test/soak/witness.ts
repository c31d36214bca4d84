/**
 * The guests' own testimony, that outlives their sled agents: the logs that the agents keep on disk, with the ends that a
 * killed one could not write. Pure.
 */
import { parseGuestLog } from '../../sled-agent/guest-log.ts';
import type { GuestLogEntry } from '../../sled-agent/hypervisor.ts';

/** The life of one sled agent process. */
export interface AgentLife {
  readonly sled: string;
  /** What its log file holds. */
  readonly log: string;
  /** When it was killed, in milliseconds since the epoch: its guests died with it. `null`: it ended in order, or lives. */
  readonly killedAtMs: number | null;
}

/** Reads a log; a last line that its process was killed while writing is no entry. Throws at any other bad line. */
function readGuestLog(text: string): GuestLogEntry[] {
  const { entries, tornLines } = parseGuestLog(text);
  const unfinished = text.slice(text.lastIndexOf('\n') + 1);
  const bad = tornLines.filter((line) => line !== unfinished);
  if (bad.length > 0) throw new Error(`a guest log has a line that is no entry: ${bad[0]}`);
  return entries;
}

/** All that guests did, each VMM's in its order; a guest whose process was killed ceased with it. */
export function testimony(lives: readonly AgentLife[]): GuestLogEntry[] {
  return lives.flatMap(({ log, killedAtMs }) => {
    const entries = readGuestLog(log);
    if (killedAtMs === null) return entries;
    const executing = new Map<string, GuestLogEntry>();
    for (const entry of entries) {
      if (entry.event === 'began') executing.set(entry.vmm_id, entry);
      else executing.delete(entry.vmm_id);
    }
    const ends = [...executing.values()].map((entry) => ({
      ...entry,
      event: 'ceased' as const,
      reason: 'its sled agent was killed',
      time: new Date(Math.max(killedAtMs, Date.parse(entry.time))).toISOString(),
    }));
    return [...entries, ...ends];
  });
}
