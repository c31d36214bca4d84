/**
 * The steps of every workflow, in order, each named for its activity: one declaration that the Web UI's progress, the
 * fault matrix and the tests all read. A test holds it against recorded histories, so that a step can't be missing here.
 */
import { RECONCILER_PURPOSE } from './reconcilers.ts';

export interface SagaStep {
  /** The activity that does it. */
  readonly activity: string;
  /** What it does, in words for an operator; follows "to" or stands alone. */
  readonly title: string;
  /** The same of one run, with `{vmm}`, `{sled}` and `{instance}` for whom it is about; the title when absent. */
  readonly summary?: string;
  /** It runs only when what came before asks for it. */
  readonly sometimes?: boolean;
}

export interface SagaSteps {
  readonly steps: readonly SagaStep[];
  /** What undoes the steps, in the order in which it runs. */
  readonly compensations: readonly SagaStep[];
  /**
   * It ends within moments, so that it may end on the build of the worker that began it. The others may last, and go over
   * to a new build with their next step.
   */
  readonly pinned?: true;
}

const UNWIND_VMM: readonly SagaStep[] = [
  { activity: 'beginUnwind', title: 'mark the VMM as unwinding', summary: 'mark {vmm} as unwinding' },
  {
    activity: 'unregisterVmm',
    title: 'unregister the VMM from its sled',
    summary: 'unregister {vmm} from {sled}',
    sometimes: true,
  },
  {
    activity: 'finishUnwind',
    title: 'write saga_unwound and release what was held',
    summary: 'write saga_unwound on {vmm} and release what it held',
  },
];

/** How an attempt begins to end that was cut off: whether the point of no return was passed decides in which direction. */
const READ_COMMAND: SagaStep = {
  activity: 'readMigrateInCommand',
  title: 'see whether the destination was commanded to migrate in',
  sometimes: true,
};

/** By workflow type. */
export const SAGA_STEPS = {
  instanceStart: {
    pinned: true,
    steps: [
      {
        activity: 'claimStart',
        title: 'claim a place, its capacity and quota',
        summary: 'claim a place for {instance}, its capacity and quota',
      },
      { activity: 'registerVmm', title: 'register the VMM with its sled', summary: 'register {vmm} on {sled}' },
      {
        activity: 'readOtherSleds',
        title: 'ask whether another sled answers, and go on there',
        summary: 'ask whether another sled than {sled} answers, and go on there',
        sometimes: true,
      },
      { activity: 'runVmm', title: 'tell the sled to run it', summary: 'tell {sled} to run {vmm}' },
    ],
    compensations: UNWIND_VMM,
  },
  instanceMigrate: {
    pinned: true,
    steps: [
      {
        activity: 'claimMigration',
        title: 'claim a place on the destination',
        summary: 'claim a place for {instance} on {sled}',
      },
      {
        activity: 'signalUpdate',
        title: 'have what an earlier migration left cleared',
        summary: 'have what an earlier migration of {instance} left cleared',
        sometimes: true,
      },
      {
        activity: 'registerVmm',
        title: 'register the target VMM with the destination',
        summary: 'register target {vmm} on {sled}',
      },
      {
        activity: 'migrateIn',
        title: 'tell the destination to migrate it in',
        summary: 'tell {sled} to migrate {vmm} in',
      },
    ],
    compensations: [READ_COMMAND, ...UNWIND_VMM],
  },
  instanceUpdate: {
    steps: [
      {
        activity: 'updateInstance',
        title: 'bring the records in line with what happened',
        summary: 'bring the records of {instance} in line with what happened',
      },
    ],
    compensations: [],
  },
  instanceStop: {
    steps: [
      {
        activity: 'deliverStop',
        title: 'tell whichever sled has the guest to stop it',
        summary: 'tell whichever sled has {instance} to stop it',
      },
    ],
    compensations: [],
  },
  vmmUnregister: {
    steps: [
      {
        activity: 'unregisterLeftover',
        title: 'unregister the leftover VMM from its sled',
        summary: 'unregister leftover {vmm} from {sled}',
      },
    ],
    compensations: [],
  },
  vmmUnwind: {
    steps: [
      READ_COMMAND,
      {
        activity: 'migrateIn',
        title: 'carry the migration forward',
        summary: 'tell {sled} again to migrate {vmm} in',
        sometimes: true,
      },
    ],
    compensations: UNWIND_VMM,
  },
  sledDrain: {
    steps: [
      { activity: 'beginDrain', title: 'take the sled out of service for new VMMs' },
      { activity: 'readDrainWork', title: 'read what is on the sled' },
      { activity: 'planMove', title: 'pick a destination for an instance, or wait for it', sometimes: true },
    ],
    compensations: [],
  },
  watcher: {
    steps: [{ activity: 'watchSleds', title: RECONCILER_PURPOSE.watcher }],
    compensations: [],
  },
  updaterScan: {
    steps: [{ activity: 'scanForUpdates', title: 'signal every instance that needs an update' }],
    compensations: [],
  },
  reaper: {
    steps: [{ activity: 'reap', title: RECONCILER_PURPOSE.reaper }],
    compensations: [],
  },
  fencing: {
    steps: [{ activity: 'judgeLeases', title: 'judge the leases of sleds that do not renew them' }],
    compensations: [],
  },
  autoRestart: {
    steps: [{ activity: 'restartInstances', title: RECONCILER_PURPOSE['auto-restart'] }],
    compensations: [],
  },
} as const satisfies Record<string, SagaSteps>;
export type SagaType = keyof typeof SAGA_STEPS;

/**
 * Workflows that only look on: no saga. What they do changes nothing and is depended on by nothing, so that there is no
 * fault of a step for the matrix to try; they have summaries and a story like the others.
 */
export const ONLOOKER_STEPS = {
  migrationWatch: {
    steps: [
      {
        activity: 'watchMigration',
        title: 'ask the sleds how far the migration is',
        summary: 'ask the sleds how far the migration of {instance} is',
      },
    ],
    compensations: [],
  },
} as const satisfies Record<string, SagaSteps>;

/** The declared steps of a workflow, by its type; `undefined` for a type that nobody declared. */
export function declaredSteps(workflowType: string): SagaSteps | undefined {
  return ({ ...SAGA_STEPS, ...ONLOOKER_STEPS } as Readonly<Record<string, SagaSteps>>)[workflowType];
}
