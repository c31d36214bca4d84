/** Quiet: what the reconcilers, the update saga and the sleds do until nothing is left to do, and what must hold then. */
import { sql } from 'drizzle-orm';
import type { Database } from '../../db/connect.ts';
import { isSledExpunged } from '../../db/queries/is-sled-expunged.ts';
import { readInstance } from '../../db/queries/read-instance.ts';
import { readSledVmms } from '../../db/queries/read-sled-vmms.ts';
import { readVmmPlace } from '../../db/queries/read-vmm-place.ts';
import { applyReport } from '../../db/transactions/apply-report.ts';
import { claimMigration } from '../../db/transactions/claim-migration.ts';
import { claimStart } from '../../db/transactions/claim-start.ts';
import { commitUpdate } from '../../db/transactions/commit-update.ts';
import { judgeLease } from '../../db/transactions/declare-dead.ts';
import { settleExpunge } from '../../db/transactions/expunge-sled.ts';
import { failVmm } from '../../db/transactions/fail-vmm.ts';
import { releaseUnwound } from '../../db/transactions/release-unwound.ts';
import { isGoneVmmState } from '../../model/states.ts';
import { newAttempt } from '../support/saga-steps.ts';
import { deliverStop, lapse } from './actors.ts';
import type { World } from './world.ts';
import * as sleds from './world.ts';

const MAX_ROUNDS = 20;

/** The state of the database in one text, without times and other accidents. */
export async function fingerprint(db: Database): Promise<string> {
  const result = await db.execute(sql`
    SELECT md5(concat_ws('|',
      (SELECT string_agg(concat_ws(',', id, state, active_vmm_id, target_vmm_id, migration_id, state_generation, intended_state, time_deleted IS NULL), ';' ORDER BY id) FROM instance),
      (SELECT string_agg(concat_ws(',', id, state, state_generation, unwinding_since IS NULL, commanded_at IS NULL, time_deleted IS NULL, sled_id), ';' ORDER BY id) FROM vmm),
      (SELECT string_agg(concat_ws(',', id, source_state, source_generation, target_state, target_generation), ';' ORDER BY id) FROM migration),
      (SELECT string_agg(concat_ws(',', vmm_id, kind), ';' ORDER BY vmm_id) FROM sled_reservation),
      (SELECT string_agg(instance_id::text, ';' ORDER BY instance_id) FROM provisioning_charge),
      (SELECT string_agg(concat_ws(',', id, vmm_id, succeeded), ';' ORDER BY id) FROM operation),
      (SELECT string_agg(concat_ws(',', id, policy, expunging_since IS NULL, time_declared_dead IS NULL, lease_epoch,
        lease_renewed_at < now() - lease_ms * interval '1 millisecond'), ';' ORDER BY id) FROM sled))) AS print`);
  return String(result.rows[0]?.print);
}

/** Lets everything that is under way come to its end. */
export async function settle(db: Database, world: World): Promise<void> {
  for (let round = 1; ; round++) {
    const before = `${await fingerprint(db)} ${JSON.stringify(world)}`;
    await timePasses(db, world);
    await sledEvents(db, world);
    await watch(db, world);
    for (const sledId of [world.here, world.there, world.spare]) {
      await judgeLease(db, sledId);
      await settleExpunge(db, sledId);
    }
    await update(db, world);
    if (`${await fingerprint(db)} ${JSON.stringify(world)}` === before) return;
    if (round === MAX_ROUNDS) {
      world.wrongs.push(`it never came to rest in ${MAX_ROUNDS} rounds`);
      return;
    }
  }
}

/** Whoever is cut off loses its lease, and its guests with it; whoever was expunged, and answers, hears so. */
async function timePasses(db: Database, world: World): Promise<void> {
  for (const sledId of world.silentSleds) {
    if (!world.lostSleds.includes(sledId)) sleds.loseSled(world, sledId);
    await lapse(db, sledId);
  }
  for (const sledId of [world.here, world.there, world.spare])
    if (sleds.answers(world, sledId) && (await isSledExpunged(db, sledId))) sleds.endAll(world, sledId);
}

/** What happens on the sleds by itself; each is reported. */
async function sledEvents(db: Database, world: World): Promise<void> {
  const found = sleds.handOverOf(world);
  if (found !== null) {
    if (found.target.in === null) sleds.beginHandOver(found);
    else sleds.completeHandOver(found);
  }
  for (const vmm of Object.values(world.vmms)) {
    if (vmm.commanded && vmm.state === 'starting') sleds.boot(world, vmm.id);
    else if (vmm.state === 'stopping' || vmm.out?.state === 'completed') sleds.end(world, vmm, 'destroyed');
  }
  for (const vmmId of Object.keys(world.vmms)) await sleds.deliver(db, world, vmmId);
}

/** One pass of the watcher over every sled that answers. */
async function watch(db: Database, world: World): Promise<void> {
  for (const sledId of [world.here, world.there, world.spare]) {
    if (!sleds.answers(world, sledId)) continue;
    const present = Object.values(world.vmms).filter((vmm) => vmm.sledId === sledId);
    const known = await readSledVmms(
      db,
      sledId,
      // Nothing of what they hold matters here, only that they are there.
      present.map((vmm) => ({
        vmm_id: vmm.id,
        vmm_state: { state: 'starting' as const, gen: 1, time_updated: new Date(0).toISOString() },
      })),
    );
    for (const { id } of present) {
      const vmm = known.find((each) => each.id === id);
      if (vmm !== undefined && !vmm.deleted && !isGoneVmmState(vmm.state)) continue;
      if (vmm?.unwinding && vmm.state !== 'saga_unwound') continue;
      await sleds.unregister(db, world, id, sledId);
      await releaseUnwound(db, id);
    }
    for (const vmm of known) {
      if (vmm.deleted || present.some((each) => each.id === vmm.id)) continue;
      if (vmm.state === 'saga_unwound') {
        if (!vmm.reserved) continue;
        await sleds.unregister(db, world, vmm.id, sledId);
        await releaseUnwound(db, vmm.id);
      } else if (!isGoneVmmState(vmm.state) && vmm.state !== 'creating' && !vmm.unwinding) {
        await failVmm(db, vmm.id, 'its sled does not know it');
      }
    }
  }
}

/** The update saga, and what it starts: `updateInstance`, `unregisterLeftover` and `deliverStop` of the activities. */
async function update(db: Database, world: World): Promise<void> {
  const update = await commitUpdate(db, world.instanceId);
  if (update === null) return;
  const { unregister, carryStop, ask } = update.left;
  for (const vmmId of unregister) await unregisterLeftover(db, world, vmmId);
  if (carryStop) await deliverStop(db, world);
  if (ask === null) return;
  const vmm = world.vmms[ask];
  if (vmm !== undefined) await sleds.deliver(db, world, vmm.id);
  else if ((await readVmmPlace(db, ask))?.sledPolicy !== 'expunged')
    await failVmm(db, ask, 'its sled does not know it');
}

async function unregisterLeftover(db: Database, world: World, vmmId: string): Promise<void> {
  const place = await readVmmPlace(db, vmmId);
  if (place === null || place.deleted || isGoneVmmState(place.state) || place.linked || place.unwinding) return;
  const sledId = world.vmms[vmmId]?.sledId ?? '';
  if (place.sledPolicy !== 'expunged') {
    const last = await sleds.unregister(db, world, vmmId, sledId);
    if (last !== null) await applyReport(db, vmmId, last);
  }
  await failVmm(db, vmmId, 'it was unregistered as a leftover');
}

/** What must hold of an instance at rest, beyond the doctor's rules: the truth of the sleds, and that the next call succeeds. */
export async function checkRest(db: Database, world: World): Promise<string[]> {
  const record = await readInstance(db, world.instanceId);
  if (record === null) return ['the instance is gone'];
  const { instance, active, externalState } = record;
  const wrongs: string[] = [];
  const guests = sleds.guestsOf(world);
  for (const guest of guests) {
    if (guest.id !== active?.id)
      wrongs.push(
        `VMM ${sleds.nameOf(world, guest.id)} runs the guest, but the instance shows ${externalState} with active VMM ${active?.id ?? 'none'}`,
      );
  }
  if (externalState === 'running' && guests.length === 0)
    wrongs.push('the instance shows running, but no sled runs its guest');
  if (!['running', 'stopped', 'failed'].includes(externalState))
    wrongs.push(`at rest the instance shows ${externalState}`);
  if (instance.intendedState === 'stopped' && externalState !== 'stopped')
    wrongs.push(`the user asked for stop, but the instance shows ${externalState}`);
  if (wrongs.length > 0 || instance.timeDeleted !== null) return wrongs;

  // The very next call succeeds.
  try {
    if (externalState === 'running') {
      const attempt = newAttempt('migrate', instance.id);
      const claimed = await claimMigration(db, {
        ...attempt,
        destinationSledId: active?.sledId === world.spare ? world.there : world.spare,
      });
      if (claimed.outcome !== 'claimed') wrongs.push(`the next migration: ${claimed.outcome}`);
    } else {
      const claim = await claimStart(db, { ...newAttempt('start', instance.id), reason: 'user' });
      if (claim === null) wrongs.push('the next start: started already');
    }
  } catch (error) {
    wrongs.push(`the next call: ${error instanceof Error ? error.message : error}`);
  }
  return wrongs;
}
