import { log } from '@temporalio/activity';
import { readVmmPlace } from '../db/queries/read-vmm-place.ts';
import { type ClaimMigrationRequest, claimMigration, type MigrationClaim } from '../db/transactions/claim-migration.ts';
import type { Attempt } from '../model/attempt.ts';
import { isGoneVmmState } from '../model/states.ts';
import { type CommandedAttempt, commandVmm } from './command-vmm.ts';
import type { SagaContext } from './context.ts';
import { sledOf } from './sled-calls.ts';
import type { SledAddress } from './sled-client.ts';

/** What a migration's destination is commanded with. */
export interface MigrateInCommand {
  readonly sled: SledAddress;
  readonly sourceAddress: string;
  readonly migrationId: string;
}

/** The steps of a migration. */
export function migrateActivities(context: SagaContext) {
  const { db, workflows } = context;
  return {
    /** Claims the migration and its target VMM. */
    async claimMigration(request: ClaimMigrationRequest): Promise<MigrationClaim> {
      return claimMigration(db, request);
    },

    /**
     * Commands the destination to migrate the guest in. A stop meanwhile doesn't end this: the guest may be on its way
     * already, and the stop is carried to both sides.
     */
    async migrateIn(request: CommandedAttempt & MigrateInCommand): Promise<void> {
      const { instanceId, migrationId, sourceAddress, vmmId } = request;
      await commandVmm(
        context,
        request,
        (place) => ({
          type: 'migration_target',
          value: { src_vmm_addr: place?.sourceAddress ?? sourceAddress },
        }),
        {
          readIntent: false,
          // Nothing depends on the watch: it may fail.
          whenAccepted: () =>
            workflows.watchMigration({ instanceId, migrationId, vmmId }).catch((error: unknown) => {
              log.warn('a migration is not shown in the Web UI', { vmm_id: vmmId, reason: String(error) });
            }),
        },
      );
    },

    /**
     * What a migration's destination was commanded with, or is about to be; `null` when it never was, or when that is over: the
     * same as `begin-unwind` decides under the VMM's lock.
     */
    async readMigrateInCommand({ vmmId }: Pick<Attempt, 'vmmId'>): Promise<MigrateInCommand | null> {
      const place = await readVmmPlace(db, vmmId);
      if (place === null || !place.commanded || place.unwinding || place.givenUp || isGoneVmmState(place.state))
        return null;
      const { sourceAddress, migrationId } = place;
      const sled = sledOf(place);
      if (sled === null || sourceAddress === null || migrationId === null) return null;
      return { sled, sourceAddress, migrationId };
    },

    /** Signals an instance's update saga. */
    async signalUpdate(request: { instanceId: string }): Promise<void> {
      await workflows.signalUpdate(request.instanceId);
    },
  };
}
