import { sql } from 'drizzle-orm';
import { refusalMessage, verdict } from '../../model/legality.ts';
import { Refusal } from '../../model/refusal.ts';
import { isGoneVmmState } from '../../model/states.ts';
import type { Database, Queryable } from '../connect.ts';
import { retryOnConflict } from '../errors.ts';
import { lockInstance } from '../queries/lock-instance.ts';
import { failLivingVmms, failTheirSides } from './fail-living-vmms.ts';
import { type RecordedIntent, writeStop } from './record-stop.ts';

/**
 * Records a stop by force, as an operator states that the sleds of the VMMs `vouched` are powered off: the intent is
 * `stopped`; those VMMs are failed at once and their sides of a migration with them, as when their sled is expunged; one
 * that its saga is unwinding is left to the saga, which waits for its sled no more. `seen` are all living VMMs that the
 * statement was checked against: when the instance names another one by now, nothing is written and `null` is returned.
 * Throws a {@link Refusal}.
 */
export async function recordForceStop(
  db: Database,
  instanceId: string,
  vmms: { readonly seen: readonly string[]; readonly vouched: readonly string[] },
): Promise<RecordedIntent | null> {
  return retryOnConflict(() =>
    db.transaction(async (transaction) => {
      const record = await lockInstance(transaction, instanceId);
      const { instance, active, target, externalState } = record;
      if (verdict(externalState, 'stop') === 'conflict')
        throw Refusal.conflict(refusalMessage('stop', instance.name, externalState));
      const living = [active, target].filter((vmm) => vmm !== null && !isGoneVmmState(vmm.state));
      if (living.some((vmm) => vmm !== null && !vmms.seen.includes(vmm.id))) return null;
      await writeStop(transaction, record);
      for (const vmmId of [...vmms.vouched].sort()) await vouchGone(transaction, vmmId);
      const after = await lockInstance(transaction, instanceId);
      const left = [after.active, after.target].some((vmm) => vmm !== null && !isGoneVmmState(vmm.state));
      return { record: after, carry: left };
    }),
  );
}

async function vouchGone(transaction: Queryable, vmmId: string): Promise<void> {
  await transaction.execute(sql`/* force-stop */
    UPDATE vmm SET vouched_gone_at = coalesce(vouched_gone_at, now()) WHERE id = ${vmmId} AND time_deleted IS NULL`);
  const thisOne = sql`vmm.id = ${vmmId}`;
  const reason = 'stopped by force: an operator stated that its sled is powered off';
  const failed = await failLivingVmms(transaction, 'force-stop', thisOne, reason);
  if (failed.length > 0) await failTheirSides(transaction, 'force-stop', thisOne);
}
