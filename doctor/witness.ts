/** Whether a guest ever executed in two places at a time, by the logs of whoever ran it. Pure. */
import type { GuestLogEntry } from '../sled-agent/hypervisor.ts';
import type { Finding } from './finding.ts';

/** A stretch of time in which a VMM executed its instance's guest, in milliseconds of the clock that it was read by. */
export interface GuestRun {
  readonly instanceId: string;
  readonly vmmId: string;
  readonly beganMs: number;
  /** Infinite while it has not ceased. */
  ceasedMs: number;
}

export interface Overlap {
  readonly earlier: GuestRun;
  readonly later: GuestRun;
}

/**
 * The runs that a log testifies; each VMM's entries must be in their order. An end that is logged twice counts once: that
 * of an agent which was killed comes from whoever wrote it first. `clock`: the time of day, or the monotonic clock that the
 * processes of one machine share. Throws at an entry without a monotonic time where that is asked for.
 */
export function readGuestRuns(log: readonly GuestLogEntry[], clock: 'time of day' | 'monotonic'): GuestRun[] {
  const runs: GuestRun[] = [];
  const open = new Map<string, GuestRun[]>();
  for (const entry of log) {
    const atMs = clock === 'monotonic' ? entry.monotonic_ms : Date.parse(entry.time);
    if (atMs === undefined) throw new Error(`an entry of VMM ${entry.vmm_id} has no monotonic time`);
    const ofVmm = open.get(entry.vmm_id) ?? [];
    if (entry.event === 'began') {
      const run = { instanceId: entry.instance_id, vmmId: entry.vmm_id, beganMs: atMs, ceasedMs: Infinity };
      runs.push(run);
      open.set(entry.vmm_id, [...ofVmm, run]);
    } else {
      for (const run of ofVmm) run.ceasedMs = atMs;
      open.delete(entry.vmm_id);
    }
  }
  return runs;
}

/** Every two runs of one instance's guest at the same time, also of one VMM. Runs that touch don't overlap. */
export function findOverlaps(runs: readonly GuestRun[]): Overlap[] {
  const found: Overlap[] = [];
  const byInstance = new Map<string, GuestRun[]>();
  for (const run of runs) byInstance.set(run.instanceId, [...(byInstance.get(run.instanceId) ?? []), run]);
  for (const ofInstance of byInstance.values()) {
    const inOrder = ofInstance.sort((a, b) => a.beganMs - b.beganMs || a.ceasedMs - b.ceasedMs);
    for (const [index, earlier] of inOrder.entries())
      for (const later of inOrder.slice(index + 1)) {
        if (later.beganMs >= earlier.ceasedMs) break;
        found.push({ earlier, later });
      }
  }
  return found;
}

/** Invariant 4 by the witness of simulated guests: from the logs of all sleds together, by the time of day. */
export function findDoubleRuns(log: readonly GuestLogEntry[]): Finding[] {
  return findOverlaps(readGuestRuns(log, 'time of day')).map(({ earlier, later }) => ({
    invariant: 4,
    rule: 'one guest at a time',
    holds: 'always',
    instanceId: later.instanceId,
    sledId: null,
    message: `instance ${later.instanceId} ran twice: VMM ${later.vmmId} began at ${new Date(later.beganMs).toISOString()} while VMM ${earlier.vmmId} ran`,
  }));
}
