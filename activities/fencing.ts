/**
 * Fencing: declares the sleds dead whose guests are off for certain, so that auto-restart can bring these up elsewhere; and
 * takes back those without fencing that have come back and prove what they run. A sled with fencing proves it when it
 * renews its lease. Of a sled that was expunged while its guests could run it sees the end. Each verdict is one transaction
 * (`db/transactions/declare-dead.ts`, `expunge-sled.ts`).
 */
import { readDeadSledsWithoutFencing, readFencedSleds, readLeavingSleds } from '../db/queries/read-fenced-sleds.ts';
import { forgetOldGaps } from '../db/transactions/beat-lease-service.ts';
import { type Declaration, judgeLease, returnDeadSled } from '../db/transactions/declare-dead.ts';
import { settleExpunge } from '../db/transactions/expunge-sled.ts';
import { MAX_LEASE_MS } from '../model/lease.ts';
import type { FencingFindings } from '../model/reconcilers.ts';
import { isTerminalVmmState } from '../model/states.ts';
import type { ActivityContext } from './context.ts';
import { forEach, throwAll } from './for-each.ts';
import { automaticActor } from './record-action.ts';
import { type SledAddress, SledError } from './sled-client.ts';

/** How long a sled without fencing that was declared dead is listened to, in milliseconds, and how many at a time. */
const PROBE_MS = 3_000;
const CONCURRENT_SLEDS = 16;

type Found = { -readonly [Key in keyof FencingFindings]: FencingFindings[Key] extends number ? number : string[] };

/** One pass. Throws what the database threw, after every sled has had its turn. */
export async function judgeLeases({ db, sleds, workflows }: ActivityContext): Promise<FencingFindings> {
  const fenced = await readFencedSleds(db);
  const found: Found = { sleds: fenced.length, late: [], unattended: [], dead: [], failed: [], returned: [] };
  const errors: unknown[] = [];
  const collect = (error: unknown) => void errors.push(error);
  await forEach(
    fenced.filter(({ late }) => late),
    1,
    async ({ id, name }) => {
      const judged = await judgeLease(db, id, automaticActor('fencing'));
      if (judged === null) return;
      if (judged.standing === 'late' || judged.standing === 'lapsed') found.late.push(name);
      if (judged.standing === 'unattended') found.unattended.push(name);
      if (judged.declaration === null) return;
      found.dead.push(name);
      await follow(judged.declaration);
    },
  ).catch(collect);
  await forEach(await readLeavingSleds(db), 1, async ({ id, name }) => {
    const settled = await settleExpunge(db, id, automaticActor('fencing'));
    if (settled === null) return;
    if (settled.failed.length > 0) found.dead.push(name);
    await follow(settled);
  }).catch(collect);
  await forEach(await readDeadSledsWithoutFencing(db), CONCURRENT_SLEDS, async (sled) => {
    const living = await livingVmms(sled);
    if (living !== null && (await returnDeadSled(db, sled.id, living, automaticActor('fencing'))).length === 0)
      found.returned.push(sled.name);
  }).catch(collect);
  await forgetOldGaps(db, 4 * MAX_LEASE_MS);
  throwAll(errors);
  return found;

  /** Notes whose VMMs are lost by a verdict, and signals their updates. Should a signal be lost, the scan finds whom it was for. */
  async function follow({ failed, instanceIds }: Pick<Declaration, 'failed' | 'instanceIds'>): Promise<void> {
    found.failed.push(...failed);
    await Promise.all(instanceIds.map((instanceId) => workflows.signalUpdate(instanceId)));
  }

  /** What a sled says lives there; `null` when it gives no answer that proves anything. */
  async function livingVmms(sled: SledAddress): Promise<string[] | null> {
    try {
      const { vmms } = await sleds.readInventory(sled, PROBE_MS);
      return vmms.filter((vmm) => !isTerminalVmmState(vmm.vmm_state.state)).map((vmm) => vmm.vmm_id);
    } catch (error) {
      if (error instanceof SledError) return null;
      throw error;
    }
  }
}
