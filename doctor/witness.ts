import type { GuestLogEntry } from '../sled-agent/hypervisor.ts';
import type { Finding } from './finding.ts';

interface Stretch {
  readonly vmmId: string;
  readonly began: number;
  ceased: number;
}

/**
 * Invariant 4 by the witness of simulated guests: from the logs of all sleds together, every moment at which two VMMs of
 * an instance executed its guest. Each VMM's entries must be in their order; stretches that touch don't overlap.
 */
export function findDoubleRuns(log: readonly GuestLogEntry[]): Finding[] {
  const stretches = new Map<string, Stretch[]>();
  for (const entry of log) {
    const ofInstance = stretches.get(entry.instance_id) ?? [];
    stretches.set(entry.instance_id, ofInstance);
    const time = Date.parse(entry.time);
    if (entry.event === 'began')
      ofInstance.push({ vmmId: entry.vmm_id, began: time, ceased: Number.POSITIVE_INFINITY });
    else {
      const open = ofInstance.findLast((stretch) => stretch.vmmId === entry.vmm_id);
      if (open !== undefined) open.ceased = time;
    }
  }
  const findings: Finding[] = [];
  for (const [instanceId, ofInstance] of stretches) {
    const inOrder = [...ofInstance].sort((a, b) => a.began - b.began || a.ceased - b.ceased);
    let longest: Stretch | undefined;
    for (const stretch of inOrder) {
      if (longest !== undefined && stretch.began < longest.ceased && stretch.vmmId !== longest.vmmId) {
        findings.push({
          invariant: 4,
          rule: 'one guest at a time',
          holds: 'always',
          instanceId,
          sledId: null,
          message: `instance ${instanceId} ran twice: VMM ${stretch.vmmId} began at ${new Date(stretch.began).toISOString()} while VMM ${longest.vmmId} ran`,
        });
      }
      if (longest === undefined || stretch.ceased > longest.ceased) longest = stretch;
    }
  }
  return findings;
}
