/**
 * Who may run a guest that is handed from one hypervisor process to another. Pure rules; the processes and the network
 * are the caller's. One side decides: the source. Until it says that it has let the guest go, the guest is the source's;
 * after that it never resumes. The destination starts the guest only when it has all of it, and either the source's word
 * or the certainty that nothing can run it there any more.
 */

/** How far the destination's process has taken the guest in. */
export const ARRIVALS = ['waiting', 'complete', 'failed'] as const;
export type Arrival = (typeof ARRIVALS)[number];

/**
 * What the destination knows of the source. `kept`: the source has the guest and keeps it. `given`: it has let it go.
 * `gone`: the source's process has ended without a word. `undecided`: still under way. `unreachable`: no answer.
 */
export const SOURCE_STATUSES = ['kept', 'given', 'gone', 'undecided', 'unreachable'] as const;
export type SourceStatus = (typeof SOURCE_STATUSES)[number];

/** What the destination does: starts the guest, gives up (its own process is ended), or asks again. */
export type Settlement = 'arrive' | 'fail' | 'wait';

/**
 * Decides for a destination. `patienceOver`: the source has been gone for so long that what it sent must have come.
 */
export function settleArrival(arrival: Arrival, source: SourceStatus, patienceOver: boolean): Settlement {
  if (arrival === 'failed' || source === 'kept') return 'fail';
  switch (source) {
    case 'given':
      return arrival === 'complete' ? 'arrive' : 'wait';
    case 'gone':
      if (arrival === 'complete') return 'arrive';
      return patienceOver ? 'fail' : 'wait';
    case 'undecided':
    case 'unreachable':
      return 'wait';
  }
}

/** What a sled agent says of the source VMM, as far as it matters here. */
export interface SourceState {
  readonly state: string;
  readonly migrationOut: { readonly migrationId: string; readonly state: string } | null;
}

/** Reads a source's status from what its sled agent answers; `null`: that agent doesn't know the VMM. */
export function readSourceStatus(source: SourceState | null, migrationId: string): SourceStatus {
  if (source === null) return 'gone';
  const out = source.migrationOut?.migrationId === migrationId ? source.migrationOut.state : null;
  if (out === 'completed') return 'given';
  if (out === 'failed') return 'kept';
  if (source.state === 'failed' || source.state === 'destroyed') return 'gone';
  // It never began, and when it does, it finds its destination dead.
  return out === null ? 'kept' : 'undecided';
}
