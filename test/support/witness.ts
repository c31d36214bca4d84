/** What the agents' own journals testify: whether a guest ever executed in two places at a time. Pure. */
import type { GuestLogEntry } from '../../sled-agent/hypervisor.ts';

export interface AgentJournal {
  readonly sled: string;
  readonly entries: readonly GuestLogEntry[];
}

interface Stretch {
  readonly sled: string;
  readonly vmmId: string;
  readonly beganMs: number;
  ceasedMs: number;
}

/**
 * Every moment at which two VMMs of one instance executed its guest, as text, by the monotonic clock that the processes of
 * one machine share. What is logged twice counts once: an agent that was killed has its end from whoever wrote it first.
 */
export function findOverlaps(journals: readonly AgentJournal[]): string[] {
  const stretches = new Map<string, Stretch[]>();
  for (const { sled, entries } of journals) {
    const open = new Map<string, Stretch>();
    for (const entry of entries) {
      if (entry.monotonic_ms === undefined) throw new Error(`an entry of ${sled} has no monotonic time`);
      const known = open.get(entry.vmm_id);
      if (entry.event === 'ceased') {
        if (known !== undefined) known.ceasedMs = entry.monotonic_ms;
        open.delete(entry.vmm_id);
      } else if (known === undefined) {
        const stretch = {
          sled,
          vmmId: entry.vmm_id,
          beganMs: entry.monotonic_ms,
          ceasedMs: Number.POSITIVE_INFINITY,
        };
        open.set(entry.vmm_id, stretch);
        stretches.set(entry.instance_id, [...(stretches.get(entry.instance_id) ?? []), stretch]);
      }
    }
  }
  const found: string[] = [];
  for (const [instanceId, ofInstance] of stretches) {
    const inOrder = [...ofInstance].sort((a, b) => a.beganMs - b.beganMs);
    for (const [index, one] of inOrder.entries()) {
      for (const other of inOrder.slice(index + 1)) {
        if (other.vmmId === one.vmmId || other.beganMs >= one.ceasedMs) continue;
        const togetherMs = Math.min(one.ceasedMs, other.ceasedMs) - other.beganMs;
        found.push(
          `instance ${instanceId}: VMM ${one.vmmId} on ${one.sled} and VMM ${other.vmmId} on ${other.sled}, for ${togetherMs.toFixed(0)} ms`,
        );
      }
    }
  }
  return found;
}

/** When each stretch of an instance's guest ended, in milliseconds of the monotonic clock, by its VMM; open ones are absent. */
export function ends(journals: readonly AgentJournal[]): Map<string, number> {
  const found = new Map<string, number>();
  for (const { entries } of journals)
    for (const entry of entries)
      if (entry.event === 'ceased' && entry.monotonic_ms !== undefined) found.set(entry.vmm_id, entry.monotonic_ms);
  return found;
}
