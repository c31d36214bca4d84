/**
 * The steps of the sagas: each one effect on one system, idempotent, and thin. The database's rules live in `db/`, the
 * protocol's in `sled-client.ts`, what an error means in `failures.ts`.
 */
import { activityInfo, log } from '@temporalio/activity';
import { ApplicationFailure } from '@temporalio/common';
import type { Database } from '../db/connect.ts';
import { readLinkedVmms, readVmmPlace, type VmmPlace } from '../db/queries/saga-progress.ts';
import { applyReport } from '../db/transactions/apply-report.ts';
import { type ClaimMigrationRequest, claimMigration, type MigrationClaim } from '../db/transactions/claim-migration.ts';
import { type ClaimedVmm, type ClaimStartRequest, claimStart } from '../db/transactions/claim-start.ts';
import { commitUpdate } from '../db/transactions/commit-update.ts';
import { failVmm } from '../db/transactions/fail-vmm.ts';
import {
  type BegunUnwind,
  beginUnwind,
  type FinishUnwindRequest,
  finishUnwind,
  recordSucceededOperation,
} from '../db/transactions/unwind-vmm.ts';
import type { Attempt } from '../model/attempt.ts';
import { FAILURE_TYPES } from '../model/failures.ts';
import { isGoneVmmState } from '../model/states.ts';
import type { Metrics, StepOutcome } from '../platform/telemetry/metrics.ts';
import { signalIfNeeded } from '../temporal/signal-update.ts';
import type { WorkflowStarter } from '../temporal/workflow-starter.ts';
import type { SledVmmState, VmmCommand } from '../wire/sled-protocol.ts';
import { acting } from './acting.ts';
import { classifyFailure, finalFailure } from './failures.ts';
import { SilentSleds } from './silent-sleds.ts';
import { type SledAddress, type SledClient, SledError } from './sled-client.ts';

/** What the activities work with. */
export interface ActivityContext {
  readonly db: Database;
  readonly sleds: SledClient;
  readonly workflows: WorkflowStarter;
  readonly metrics?: Metrics;
  /** How long audit records are kept, in days; default 90. */
  readonly auditDays?: number | undefined;
}

/** Where a migration's destination was told to migrate in from. */
interface MigrateInCommand {
  readonly sled: SledAddress;
  readonly sourceAddress: string;
  readonly migrationId?: string;
}

/** How long one call to a sled agent may take, in milliseconds. */
const SLED_CALL_MS = 4_000;
const BRIEF_SLED_CALL_MS = 1_500;

export type ControlActivities = ReturnType<typeof createControlActivities>;

/** Makes the activities of the sagas over one database, one set of sleds and one Temporal client. */
export function createControlActivities({ db, sleds, workflows, metrics }: ActivityContext) {
  const silent = new SilentSleds();

  /** Applies a sled's word and signals the update if the stored state then needs one. */
  async function applyAnswer(vmmId: string, report: SledVmmState | null, saga: Parameters<typeof applyReport>[3] = {}) {
    if (report === null) return null;
    const applied = await applyReport(db, vmmId, report, saga);
    if (applied?.wrote && !applied.settled) await signalIfNeeded({ db, workflows }, applied.instanceId);
    return applied;
  }

  /** Throws what makes it pointless to go on telling a VMM to run or to migrate in. */
  async function checkStillWanted(vmmId: string, options: { readIntent: boolean }): Promise<void> {
    const place = await readVmmPlace(db, vmmId);
    if (place === null) return;
    if (options.readIntent && place.intendedState !== 'running') throw stopRequested();
    if (place.givenUp) {
      const message = `sled "${place.sledName}" was ${place.sledPolicy === 'expunged' ? 'expunged' : 'declared dead or stated to be powered off'}`;
      throw finalFailure(FAILURE_TYPES.sledExpunged, message, {
        status: 503,
        error_code: 'ServiceUnavailable',
        message,
      });
    }
    if (isGoneVmmState(place.state)) throw vmmLost(`the VMM on sled "${place.sledName}" is ${place.state}`);
  }

  function vmmLost(message: string) {
    return finalFailure(FAILURE_TYPES.vmmLost, message, { status: 503, error_code: 'ServiceUnavailable', message });
  }

  function stopRequested() {
    const message = 'the user asked for stop meanwhile';
    return finalFailure(FAILURE_TYPES.stopRequested, message, { status: 409, error_code: 'Conflict', message });
  }

  async function tell(
    attempt: Attempt & { sled: SledAddress },
    command: VmmCommand,
    { readIntent, whenTaken }: { readIntent: boolean; whenTaken?: () => Promise<void> },
  ): Promise<void> {
    // The first attempt comes right after the step that read the intent and marked the VMM as told.
    if (activityInfo().attempt > 1) await checkStillWanted(attempt.vmmId, { readIntent });
    const { updated_runtime } = await sleds.setState(attempt.sled, attempt.vmmId, command, SLED_CALL_MS);
    const [applied] = await Promise.all([
      applyAnswer(attempt.vmmId, updated_runtime, { succeed: attempt }),
      whenTaken?.(),
    ]);
    if (applied === null) await recordSucceededOperation(db, attempt);
  }

  return classified(metrics, {
    /** Start: claims the VMM. `null` when the instance is started already. */
    async claimStart(request: Omit<ClaimStartRequest, 'isRetry'> & { isRetry?: true }): Promise<ClaimedVmm | null> {
      const { attempt, isLocal } = activityInfo();
      // A workflow task that was lost has its local activities run again as if for the first time.
      const isRetry = request.isRetry === true || isLocal || attempt > 1;
      const claim = await claimStart(db, { ...request, isRetry });
      if (claim === null) await recordSucceededOperation(db, { ...request, kind: 'start' });
      return claim;
    },

    /** Migrate: claims the migration and its target VMM. */
    async claimMigration(request: Omit<ClaimMigrationRequest, 'isRetry'>): Promise<MigrationClaim> {
      const result = await claimMigration(db, { ...request, isRetry: activityInfo().attempt > 1 });
      if (result.outcome === 'already') await recordSucceededOperation(db, { ...request, kind: 'migrate' });
      return result;
    },

    /**
     * Registers a VMM with its sled, then writes the sled's word and, in the same transaction, reads the intent and marks
     * the VMM as about to be told. Final when the user asked for stop meanwhile, or when the VMM was ended: without the
     * mark nothing may tell the sled to run it.
     */
    async registerVmm(claim: ClaimedVmm & { instanceId: string; migrationId?: string; isRetry?: true }): Promise<void> {
      const { attempt, isLocal } = activityInfo();
      const sled = { name: claim.sledName, address: claim.sledAddress };
      if (isLocal) silent.refuse(sled);
      if (claim.isRetry === true || attempt > 1) await checkStillWanted(claim.vmmId, { readIntent: true });
      const state = await silent.heed(sled, () =>
        sleds.register(
          sled,
          claim.vmmId,
          {
            instance_id: claim.instanceId,
            ...(claim.migrationId === undefined ? {} : { migration_id: claim.migrationId }),
            vmm_runtime: {
              state: claim.migrationId === undefined ? 'starting' : 'migrating',
              gen: claim.registerGeneration,
              time_updated: new Date().toISOString(),
            },
            vmm_spec: { name: claim.instanceName, ncpus: claim.ncpus, memory_bytes: claim.memoryBytes },
            vmm_addr: claim.vmmAddress,
          },
          isLocal ? BRIEF_SLED_CALL_MS : SLED_CALL_MS,
        ),
      );
      const applied = await applyAnswer(claim.vmmId, state, { tell: true });
      if (applied !== null && applied.intendedState !== 'running') throw stopRequested();
      // Unwound meanwhile, by another workflow or an operator's reset of this one: it was not marked, so it isn't told.
      if (!applied?.commanded) throw vmmLost(`the VMM on sled "${claim.sledName}" was ended meanwhile`);
    },

    /** Start: tells the sled to run the guest, and records the start's success with the sled's word. */
    async runVmm(attempt: Attempt & { sled: SledAddress }): Promise<void> {
      await tell(attempt, { type: 'running' }, { readIntent: true });
    },

    /**
     * Migrate: tells the destination to migrate the guest in. A stop meanwhile doesn't end this: the guest may be on its
     * way already, and the stop is carried to both sides.
     */
    async migrateIn(
      attempt: Attempt & { sled: SledAddress; sourceAddress: string; migrationId?: string },
    ): Promise<void> {
      const { instanceId, migrationId, vmmId } = attempt;
      await tell(
        attempt,
        { type: 'migration_target', value: { src_vmm_addr: attempt.sourceAddress } },
        {
          readIntent: false,
          // A workflow of an earlier build gives no id. Nothing depends on the watch: it may fail.
          whenTaken: async () => {
            if (migrationId === undefined) return;
            await workflows.watchMigration({ instanceId, migrationId, vmmId }).catch((error: unknown) => {
              log.warn('a migration is not shown in the Web UI', { vmm_id: vmmId, reason: String(error) });
            });
          },
        },
      );
    },

    /** Unwind, first transaction. */
    async beginUnwind(
      request: Pick<Attempt, 'kind' | 'instanceId' | 'vmmId'> & { spareRunning: boolean },
    ): Promise<BegunUnwind> {
      return beginUnwind(db, request);
    },

    /** Unwind: makes sure that the sled does not have the VMM. Returns only at a definitive answer. */
    async unregisterVmm(request: { vmmId: string; sled: SledAddress }): Promise<void> {
      if (activityInfo().attempt > 1) {
        const place = await readVmmPlace(db, request.vmmId);
        if (place?.givenUp) return;
      }
      await unregister(request.sled, request.vmmId);
    },

    /** Unwind, last transaction; then the update saga is signalled. */
    async finishUnwind(request: FinishUnwindRequest): Promise<void> {
      await finishUnwind(db, request);
      await signalIfNeeded({ db, workflows }, request.instanceId);
    },

    /** Records a success that no sled's word came with. */
    async succeedOperation(attempt: Attempt): Promise<void> {
      await recordSucceededOperation(db, attempt);
    },

    /** Where a migration's destination was told to migrate in from; `null` when it never was. */
    async readMigrateInCommand(attempt: Pick<Attempt, 'vmmId'>): Promise<MigrateInCommand | null> {
      const place = await readVmmPlace(db, attempt.vmmId);
      if (!place?.commanded || place.sledName === null || place.sledAddress === null || place.sourceAddress === null)
        return null;
      return {
        sled: { name: place.sledName, address: place.sledAddress },
        sourceAddress: place.sourceAddress,
        ...(place.migrationId === null ? {} : { migrationId: place.migrationId }),
      };
    },

    /** Signals an instance's update saga. */
    async signalUpdate(request: { instanceId: string }): Promise<void> {
      await workflows.signalUpdate(request.instanceId);
    },

    /**
     * Update: brings the records in line, again until a fresh snapshot needs nothing; then starts what must happen on
     * sleds. Returns what it did, or `null` for nothing.
     */
    async updateInstance(request: { instanceId: string }): Promise<string | null> {
      const done: string[] = [];
      for (;;) {
        const update = await commitUpdate(db, request.instanceId);
        if (update === null) return null;
        if (update.changed) {
          done.push(update.case);
          const { factAgeSeconds } = update.snapshot;
          if (factAgeSeconds !== null) metrics?.updateLagSeconds.observe({ case: update.case }, factAgeSeconds);
          continue;
        }
        for (const vmmId of update.decision.unregister) await workflows.unregisterVmm(vmmId);
        if (update.decision.carryStop) await workflows.carryStop(request.instanceId);
        if (update.decision.ask === null || (await ask(update.decision.ask)) !== 'news') break;
      }
      return done.length === 0 ? null : done.join(', then ');
    },

    /** Stop: delivers a recorded stop. Fails, to be tried again, until nobody is left who has to be told. */
    async deliverStop(request: { instanceId: string }): Promise<string> {
      const vmms = await readLinkedVmms(db, request.instanceId);
      const living = vmms.filter((vmm) => !isGoneVmmState(vmm.state));
      if (living.length === 0) return 'nothing left to stop';
      if (living[0]?.intendedState === 'running') return 'the user wants it to run again';
      const waiting: string[] = [];
      for (const vmm of living) {
        const reason = await stopOne(vmm);
        if (reason !== null) waiting.push(reason);
      }
      if (waiting.length === 0) return `told ${living.map((vmm) => `sled "${vmm.sledName}"`).join(' and ')}`;
      throw new SledError('unavailable', `the stop is not delivered yet: ${waiting.join('; ')}`);
    },

    /** Ends a living VMM that its instance does not name any more. */
    async unregisterLeftover(request: { vmmId: string }): Promise<string> {
      const place = await readVmmPlace(db, request.vmmId);
      if (place === null || place.deleted || isGoneVmmState(place.state)) return 'gone already';
      if (place.linked) return 'named by its instance: not a leftover';
      if (place.unwinding) return 'being unwound by its saga';
      if (place.givenUp || place.sledName === null || place.sledAddress === null) {
        const instanceId = await failVmm(db, request.vmmId, 'its sled was given up', acting('clean-up of leftovers'));
        if (instanceId !== null) await workflows.signalUpdate(instanceId);
        return 'its sled was given up';
      }
      const word = await unregister({ name: place.sledName, address: place.sledAddress }, request.vmmId);
      await applyAnswer(request.vmmId, word);
      const instanceId = await failVmm(
        db,
        request.vmmId,
        'it was unregistered as a leftover',
        acting('clean-up of leftovers'),
      );
      if (instanceId !== null) await workflows.signalUpdate(instanceId);
      return 'unregistered';
    },
  });

  /** Unregisters; the VMM's last word where the sled knew it. */
  async function unregister(sled: SledAddress, vmmId: string): Promise<SledVmmState | null> {
    try {
      return (await sleds.unregister(sled, vmmId, BRIEF_SLED_CALL_MS)).updated_runtime;
    } catch (error) {
      if (error instanceof SledError && error.kind === 'gone') return null;
      throw error;
    }
  }

  /** Asks a VMM's sled for its word, once. */
  async function ask(vmmId: string): Promise<'news' | 'none'> {
    const place = await readVmmPlace(db, vmmId);
    if (place?.sledName == null || place.sledAddress === null || place.givenUp) return 'none';
    try {
      const word = await sleds.readState(
        { name: place.sledName, address: place.sledAddress },
        vmmId,
        BRIEF_SLED_CALL_MS,
      );
      return (await applyReport(db, vmmId, word))?.wrote ? 'news' : 'none';
    } catch (error) {
      if (!(error instanceof SledError)) throw error;
      if (error.kind !== 'gone') return 'none';
      return (await failVmm(db, vmmId, error.message, acting('update'))) === null ? 'none' : 'news';
    }
  }

  /** Tells one VMM to stop. Returns why it must be told again, or `null`. */
  async function stopOne(vmm: VmmPlace): Promise<string | null> {
    if (vmm.state === 'stopping' || vmm.state === 'stopped') return null;
    if (vmm.unwinding) return `VMM ${vmm.vmmId} is being unwound`;
    if (vmm.sledName === null || vmm.sledAddress === null) return `VMM ${vmm.vmmId} has no sled`;
    if (vmm.givenUp) return `VMM ${vmm.vmmId}: sled "${vmm.sledName}" was given up`;
    // Its sled may not know it yet; its saga reads the intent before it tells it to run.
    if (vmm.state === 'creating') return `VMM ${vmm.vmmId} is being created`;
    try {
      const { updated_runtime } = await sleds.setState(
        { name: vmm.sledName, address: vmm.sledAddress },
        vmm.vmmId,
        { type: 'stopped' },
        SLED_CALL_MS,
      );
      await applyAnswer(vmm.vmmId, updated_runtime);
      return null;
    } catch (error) {
      if (!(error instanceof SledError)) throw error;
      if (error.kind === 'gone') {
        const instanceId = await failVmm(db, vmm.vmmId, error.message, acting('stop'));
        if (instanceId !== null) await workflows.signalUpdate(instanceId);
        return null;
      }
      // Refused: a source whose guest has left, whose target is told too; or a state that does not last.
      return error.message;
    }
  }
}

/** Wraps every activity so that what it throws is classed in one place, and every attempt is measured. */
export function classified<Activities extends Record<string, (...args: never[]) => Promise<unknown>>>(
  metrics: Metrics | undefined,
  activities: Activities,
): Activities {
  return Object.fromEntries(
    Object.entries(activities).map(([name, activity]) => [
      name,
      async (...args: never[]) => {
        const begun = performance.now();
        let outcome: StepOutcome = 'done';
        try {
          return await activity(...args);
        } catch (error) {
          const failure = classifyFailure(error);
          outcome = failure instanceof ApplicationFailure && failure.nonRetryable ? 'final' : 'retry';
          logFailure(outcome, failure, args[0]);
          throw failure;
        } finally {
          metrics?.stepSeconds.observe({ step: name, outcome }, (performance.now() - begun) / 1000);
        }
      },
    ]),
  ) as Activities;
}

/** A step that is tried for hours gets a line at its 1st, 2nd, 4th, 8th … attempt. */
function logFailure(outcome: StepOutcome, failure: unknown, input: unknown): void {
  const { attempt } = activityInfo();
  if (outcome === 'retry' && (attempt & (attempt - 1)) !== 0) return;
  const { vmmId } = (input ?? {}) as { vmmId?: unknown };
  const fields = {
    ...(typeof vmmId === 'string' ? { vmm_id: vmmId } : {}),
    reason: failure instanceof Error ? failure.message : String(failure),
  };
  if (outcome === 'final') log.warn('a step failed for good', fields);
  else log.warn('a step failed and is tried again', fields);
}
