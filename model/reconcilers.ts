/** The reconciling loops: their names, and what a pass of each found and did, as data and in words. */

/** By name, which is also the id of the schedule that runs it. */
export const RECONCILERS = ['watcher', 'updater', 'reaper', 'fencing', 'auto-restart'] as const;
export type ReconcilerName = (typeof RECONCILERS)[number];

/** What each loop is for, in words for an operator. */
export const RECONCILER_PURPOSE: Readonly<Record<ReconcilerName, string>> = {
  watcher: 'poll every sled and compare its inventory with the database',
  updater: 'signal every instance that needs an update, and find sagas that were cut off',
  reaper: 'delete abandoned VMM rows and orphan reservations and charges, and what has been over for long',
  fencing: 'declare sleds dead whose lease has lapsed, and take back those that prove what they run',
  'auto-restart': 'start instances again that failed and are meant to run',
};

/** What a pass of the watcher found and did; VMMs by id, sleds by name. */
export interface WatcherFindings {
  readonly sleds: number;
  /** Sleds that gave no answer that proves anything. */
  readonly silent: readonly string[];
  /** Sleds that answered too slowly for all of their VMMs to be looked at in this pass. */
  readonly slow: readonly string[];
  /** VMMs that their sled does not know: failed. */
  readonly lost: readonly string[];
  /** VMMs on a sled that the database does not know, or knows as gone: unregistered. */
  readonly unregistered: readonly string[];
  /** Reservations released for unwound VMMs whose sled has now answered. */
  readonly released: readonly string[];
}

/** What a pass of the updater found and did. */
export interface UpdaterFindings {
  readonly candidates: number;
  /** Instances that need an update: signalled. */
  readonly signalled: readonly string[];
  /** VMMs whose saga was cut off: unwound by a workflow of their own. */
  readonly unwinding: readonly string[];
}

/** What a pass of the reaper deleted. */
export interface ReaperFindings {
  /** Instances with a VMM that they don't name, or a charge without a VMM: signalled. */
  readonly signalled: readonly string[];
  /** VMM rows that were gone and that no instance names. */
  readonly vmms: readonly string[];
  /** Reservations, by the VMM that they were for. */
  readonly reservations: readonly string[];
  /** Charges, by the instance that they were for. */
  readonly charges: readonly string[];
  /** How many idempotency keys were old enough to be forgotten. */
  readonly oldKeys: number;
  /** How many audit records were older than they are kept; absent for none, as the next. */
  readonly oldRecords?: number;
  /** How many audit records were completed as `unknown`, since nobody was left to write how their action ended. */
  readonly openRecords?: number;
  /** How many rows were deleted of what has been over for longer than it is kept. */
  readonly oldOperations?: number;
  readonly oldMigrations?: number;
  readonly oldVmms?: number;
  readonly oldInstances?: number;
  readonly oldProjects?: number;
  readonly oldTokens?: number;
  readonly oldCertificates?: number;
  readonly oldInvites?: number;
}

/** What a pass of fencing found and did; sleds by name, VMMs by id. */
export interface FencingFindings {
  /** How many sleds have a lease. */
  readonly sleds: number;
  /** Sleds that miss renewals, or whose margin is not over yet. */
  readonly late: readonly string[];
  /** Sleds whose wait begins anew, since the control plane itself was away for a part of it. */
  readonly unattended: readonly string[];
  /** Sleds that were declared dead. */
  readonly dead: readonly string[];
  /** VMMs of theirs: Failed. */
  readonly failed: readonly string[];
  /** Sleds without fencing that were declared dead and have proved what they run: in service again. */
  readonly returned: readonly string[];
}

/** What a pass of auto-restart found and did; instances by id. */
export interface AutoRestartFindings {
  readonly candidates: number;
  readonly started: readonly string[];
  readonly coolingDown: readonly string[];
  /** No sled has room for them, or their project has no quota left: not begun. */
  readonly withoutRoom: readonly string[];
  /** Left for the next pass, since a pass begins only so many. */
  readonly postponed: readonly string[];
}

export interface ReconcilerFindings {
  readonly watcher: WatcherFindings;
  readonly updater: UpdaterFindings;
  readonly reaper: ReaperFindings;
  readonly fencing: FencingFindings;
  readonly 'auto-restart': AutoRestartFindings;
}

/** A pass of a loop: what it found and did, in words and as data. */
export interface ReconcilerPass<Name extends ReconcilerName = ReconcilerName> {
  readonly summary: string;
  readonly found: ReconcilerFindings[Name];
}

/** Says in words what a pass found and did. */
export function summarizePass<Name extends ReconcilerName>(name: Name, found: ReconcilerFindings[Name]): string {
  return SUMMARIES[name](found);
}

const OLD_ROWS = [
  ['oldOperations', 'operation'],
  ['oldMigrations', 'migration'],
  ['oldVmms', 'VMM'],
  ['oldInstances', 'deleted instance'],
  ['oldProjects', 'deleted project'],
  ['oldTokens', 'token'],
  ['oldCertificates', 'certificate'],
  ['oldInvites', 'invitation'],
] as const satisfies readonly (readonly [keyof ReaperFindings, string])[];

const SUMMARIES: { readonly [Name in ReconcilerName]: (found: ReconcilerFindings[Name]) => string } = {
  watcher: (found) =>
    sentence(`asked ${count(found.sleds, 'sled')}`, [
      listed(found.silent, 'gave no answer'),
      listed(found.slow, 'answered slowly'),
      found.lost.length > 0 && `failed ${count(found.lost.length, 'VMM')} that a sled does not know any more`,
      found.unregistered.length > 0 &&
        `unregistered ${count(found.unregistered.length, 'VMM')} that should not be on a sled`,
      found.released.length > 0 && `released ${count(found.released.length, 'reservation')} of unwound VMMs`,
    ]),
  updater: (found) =>
    sentence(`looked at ${count(found.candidates, 'instance')}`, [
      found.signalled.length > 0 && `signalled the update of ${found.signalled.length}`,
      found.unwinding.length > 0 && `began to unwind ${count(found.unwinding.length, 'VMM')} whose saga was cut off`,
    ]),
  reaper: (found) =>
    sentence('looked for what nobody needs', [
      found.signalled.length > 0 && `signalled the update of ${found.signalled.length}`,
      found.vmms.length > 0 && `deleted ${count(found.vmms.length, 'abandoned VMM row')}`,
      found.reservations.length > 0 && `deleted ${count(found.reservations.length, 'orphan reservation')}`,
      found.charges.length > 0 && `deleted ${count(found.charges.length, 'orphan charge')}`,
      found.oldKeys > 0 && `forgot ${count(found.oldKeys, 'old idempotency key')}`,
      found.oldRecords !== undefined && `deleted ${count(found.oldRecords, 'old audit record')}`,
      found.openRecords !== undefined && `closed ${count(found.openRecords, 'audit record')} whose end is unknown`,
      ...OLD_ROWS.map(([finding, noun]) => {
        const rows = found[finding];
        return rows !== undefined && `forgot ${count(rows, `old ${noun}`)}`;
      }),
    ]),
  fencing: (found) =>
    sentence(`looked at the leases of ${count(found.sleds, 'sled')}`, [
      listed(found.late, 'late'),
      listed(found.unattended, 'given more time, since the control plane was away'),
      listed(found.dead, 'declared dead'),
      found.failed.length > 0 && `failed ${count(found.failed.length, 'VMM')}`,
      listed(found.returned, 'in service again'),
    ]),
  'auto-restart': (found) =>
    sentence(`looked at ${count(found.candidates, 'instance')}`, [
      found.started.length > 0 && `began to start ${found.started.length}`,
      found.coolingDown.length > 0 && `${found.coolingDown.length} cooling down`,
      found.withoutRoom.length > 0 && `no room or quota for ${found.withoutRoom.length}`,
      found.postponed.length > 0 && `left ${found.postponed.length} for the next pass`,
    ]),
};

function sentence(first: string, rest: readonly (string | false)[]): string {
  const parts = rest.filter((part): part is string => part !== false);
  return `${first}: ${parts.length === 0 ? 'nothing to do' : parts.join(', ')}`;
}

function count(n: number, noun: string): string {
  return `${n} ${noun}${n === 1 ? '' : 's'}`;
}

function listed(names: readonly string[], what: string): string | false {
  return names.length > 0 && `${names.slice(0, 10).join(', ')}${names.length > 10 ? ', …' : ''} ${what}`;
}
