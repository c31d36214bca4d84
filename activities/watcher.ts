/** The watcher: asks every sled what it has, and sets right what disagrees with the database. */

import { readSledVmms } from '../db/queries/read-sled-vmms.ts';
import { readWatchedSleds } from '../db/queries/read-watched-sleds.ts';
import { applyReport } from '../db/transactions/apply-report.ts';
import { failVmm } from '../db/transactions/fail-vmm.ts';
import { releaseUnwound } from '../db/transactions/release-unwound.ts';
import type { WatcherFindings } from '../model/reconcilers.ts';
import { isGoneVmmState } from '../model/states.ts';
import { signalAfterReport, signalIfNeeded } from '../temporal/signal-update.ts';
import type { ActivityContext } from './context.ts';
import { forEach } from './for-each.ts';
import { automaticActor, recordAction } from './record-action.ts';
import { type SledAddress, SledError } from './sled-client.ts';

/** How many sleds are asked at a time: more than can be silent at once in a rack, so that these delay nobody. */
const CONCURRENT_SLEDS = 32;
/** How long one call to a sled may take, in milliseconds. */
const POLL_MS = 3_000;
/** How long one sled may take of a pass, in milliseconds: what is not looked at by then is looked at in the next one. */
const SLED_BUDGET_MS = 6_000;

type Found = { -readonly [Key in keyof WatcherFindings]: WatcherFindings[Key] extends number ? number : string[] };

/**
 * One pass over all sleds. Only what a sled says by name fails a VMM: silence, refusal or nonsense proves nothing about
 * what runs there. Throws what the database threw, after every sled has had its turn.
 */
export async function watchSleds({ db, sleds, workflows, metrics }: ActivityContext): Promise<WatcherFindings> {
  const found: Found = { sleds: 0, silent: [], slow: [], lost: [], unregistered: [], released: [] };
  const watched = shuffled(await readWatchedSleds(db));
  found.sleds = watched.length;
  await forEach(watched, CONCURRENT_SLEDS, (one) => watchSled(one.id, one));
  return found;

  async function watchSled(sledId: string, address: SledAddress): Promise<void> {
    const deadline = performance.now() + SLED_BUDGET_MS;
    try {
      const { vmms: reported } = await sleds.readInventory(address, POLL_MS);
      // Read after the inventory: what the sled had been told to register was in the database before.
      const known = await readSledVmms(db, sledId, reported);
      const byId = new Map(known.map((vmm) => [vmm.id, vmm]));
      const present = new Set(reported.map((vmm) => vmm.vmm_id));
      // In an order of its own each time: a sled that is slow is got through in a few passes.
      for (const { vmm_id, instance_id: _, ...state } of shuffled(reported)) {
        if (performance.now() > deadline) return void found.slow.push(address.name);
        const vmm = byId.get(vmm_id);
        if (vmm?.foreign) {
          metrics?.reportsRefused.inc({ reason: 'foreign_vmm' });
          continue;
        }
        if (vmm === undefined || vmm.deleted || isGoneVmmState(vmm.state)) {
          // Its saga is about to ask the sled itself; not of a row that is deleted, as when its sled was given up meanwhile.
          if (vmm?.unwinding && !vmm.deleted && vmm.state !== 'saga_unwound') continue;
          await unregister(address, vmm_id);
          found.unregistered.push(vmm_id);
          await settleUnwound(vmm_id, vmm?.instance_id);
        } else if (vmm.newer) {
          const applied = await applyReport(db, vmm_id, state);
          if (applied === null) await signalIfNeeded({ db, workflows }, vmm.instance_id);
          else await signalAfterReport({ db, workflows }, applied);
        }
      }
      for (const vmm of shuffled(known)) {
        if (present.has(vmm.id) || vmm.deleted || vmm.foreign) continue;
        if (performance.now() > deadline) return void found.slow.push(address.name);
        if (vmm.state === 'saga_unwound') {
          if (!vmm.reserved) continue;
          await unregister(address, vmm.id);
          await settleUnwound(vmm.id, vmm.instance_id);
        } else if (!isGoneVmmState(vmm.state) && vmm.state !== 'creating' && !vmm.unwinding) {
          await askForMissing(address, vmm);
        }
      }
    } catch (error) {
      if (!(error instanceof SledError)) throw error;
      found.silent.push(address.name);
    }
  }

  /** A VMM that the inventory lacks is lost only when its sled says so by name. */
  async function askForMissing(address: SledAddress, vmm: { id: string; instance_id: string }): Promise<void> {
    try {
      await applyReport(db, vmm.id, await sleds.readState(address, vmm.id, POLL_MS));
    } catch (error) {
      if (!(error instanceof SledError) || error.kind !== 'gone') throw error;
      if (
        (await failVmm(db, vmm.id, `sled "${address.name}" does not know it any more`, automaticActor('watcher'))) !==
        null
      )
        found.lost.push(vmm.id);
    }
    await signalIfNeeded({ db, workflows }, vmm.instance_id);
  }

  async function unregister(address: SledAddress, vmmId: string): Promise<void> {
    const action = {
      operation: 'vmm_unregister',
      subjectKind: 'vmm' as const,
      subject: vmmId,
      ...automaticActor('watcher'),
    };
    await recordAction(db, action, () => sleds.unregister(address, vmmId, POLL_MS).catch(ignoreGone));
  }

  async function settleUnwound(vmmId: string, instanceId: string | undefined): Promise<void> {
    if (await releaseUnwound(db, vmmId)) found.released.push(vmmId);
    if (instanceId !== undefined) await signalIfNeeded({ db, workflows }, instanceId);
  }
}

function ignoreGone(error: unknown): void {
  if (!(error instanceof SledError) || error.kind !== 'gone') throw error;
}

function shuffled<T>(items: readonly T[]): T[] {
  return items
    .map((item) => ({ item, at: Math.random() }))
    .sort((a, b) => a.at - b.at)
    .map(({ item }) => item);
}
