/** Whether a migration out of a QEMU process is over, and who has the guest then. */
export type SourceVerdict = 'given' | 'kept' | 'under_way';

/**
 * Reads the source's verdict from QEMU's run state and `query-migrate`. Only `kept` lets the source run its guest on: QEMU
 * itself would let it run after `given` too. A process that its guest has once arrived in goes on answering `completed` for
 * that, and one whose migration failed late may be in `postmigrate`: neither status is enough alone.
 * Source: qapi/run-state.json, qapi/migration.json, and `fill_source_migration_info` and `migration_iteration_finish`
 * in QEMU's migration/migration.c.
 */
export function readSourceVerdict(runState: string, migrationStatus: string): SourceVerdict {
  switch (migrationStatus) {
    case 'completed':
      if (runState === 'postmigrate') return 'given';
      return runState === 'finish-migrate' ? 'under_way' : 'kept';
    case 'none':
    case 'failed':
    case 'cancelled':
      return runState === 'finish-migrate' ? 'under_way' : 'kept';
    // setup, active, device, pre-switchover, cancelling, wait-unplug, and what later versions add.
    default:
      return 'under_way';
  }
}
