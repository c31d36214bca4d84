/**
 * The guests' own testimony: from the logs that sled agents keep on disk, whether a guest ever executed in two places at
 * a time (invariant 4 of the design). Pure.
 */
import { type GuestLogEntry, guestLogEntry } from '../sled-agent/simulated-hypervisor.ts';

/** The life of one sled agent process. */
export interface AgentLife {
  readonly sled: string;
  /** What its log file holds. */
  readonly log: string;
  /** When it was killed, in milliseconds since the epoch: its guests died with it. `null`: it ended in order, or lives. */
  readonly killedAtMs: number | null;
}

/** A guest that executed in two places. */
export interface DoubleExecution {
  readonly instanceId: string;
  readonly vmmIds: readonly string[];
  readonly time: string;
}

/** Reads a log; a last line that its process was killed while writing is no entry. Throws at any other bad line. */
export function readGuestLog(text: string): GuestLogEntry[] {
  const lines = text.split('\n');
  const torn = lines.pop() ?? '';
  const entries = lines.map((line) => guestLogEntry.parse(JSON.parse(line)));
  if (torn !== '') {
    try {
      entries.push(guestLogEntry.parse(JSON.parse(torn)));
    } catch {
      // The process ended in the middle of it.
    }
  }
  return entries;
}

interface Execution {
  readonly vmmId: string;
  readonly beganMs: number;
  readonly ceasedMs: number;
}

/** When each guest executed where, by instance. */
function executions(lives: readonly AgentLife[]): Map<string, Execution[]> {
  const byInstance = new Map<string, Execution[]>();
  for (const life of lives) {
    const open = new Map<string, GuestLogEntry>();
    const end = (began: GuestLogEntry, ceasedMs: number) => {
      const all = byInstance.get(began.instance_id) ?? [];
      all.push({ vmmId: began.vmm_id, beganMs: Date.parse(began.time), ceasedMs });
      byInstance.set(began.instance_id, all);
      open.delete(began.vmm_id);
    };
    for (const entry of readGuestLog(life.log)) {
      const began = open.get(entry.vmm_id);
      if (began !== undefined) end(began, Date.parse(entry.time));
      if (entry.event === 'began') open.set(entry.vmm_id, entry);
    }
    for (const began of [...open.values()]) end(began, life.killedAtMs ?? Number.POSITIVE_INFINITY);
  }
  return byInstance;
}

/**
 * Finds every guest that executed in two VMMs at a time. The clock counts milliseconds: one that ceased in the one in
 * which the other began, ceased before.
 */
export function findDoubleExecutions(lives: readonly AgentLife[]): DoubleExecution[] {
  const found: DoubleExecution[] = [];
  for (const [instanceId, all] of executions(lives)) {
    all.sort((one, other) => one.beganMs - other.beganMs);
    let longest: Execution | null = null;
    for (const next of all) {
      if (
        longest !== null &&
        longest.vmmId !== next.vmmId &&
        next.beganMs < longest.ceasedMs &&
        next.ceasedMs > next.beganMs
      ) {
        const time = new Date(next.beganMs).toISOString();
        found.push({ instanceId, vmmIds: [longest.vmmId, next.vmmId], time });
      }
      if (longest === null || next.ceasedMs > longest.ceasedMs) longest = next;
    }
  }
  return found;
}
