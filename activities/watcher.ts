/** The watcher: asks every sled what it has, and sets right what disagrees with the database. */

import { readSledVmms } from '../db/queries/read-sled-vmms.ts';
import { readWatchedSleds, type WatchedSled } from '../db/queries/read-watched-sleds.ts';
import { applyReport } from '../db/transactions/apply-report.ts';
import { failVmm } from '../db/transactions/fail-vmm.ts';
import { recordSledAnswer, recordSledSilence } from '../db/transactions/record-sled-answer.ts';
import { releaseUnwound } from '../db/transactions/release-unwound.ts';
import type { WatcherFindings } from '../model/reconcilers.ts';
import { isGoneVmmState } from '../model/states.ts';
import { signalAfterReport, signalIfNeeded } from '../temporal/signal-update.ts';
import type { AgentDescription } from '../wire/sled-protocol.ts';
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
  const byAgent = new Map(watched.flatMap((one) => (one.agentId === null ? [] : [[one.agentId, one]])));
  await forEach(watched, CONCURRENT_SLEDS, (one) => watchSled(one));
  return found;

  async function watchSled(address: WatchedSled): Promise<void> {
    const deadline = performance.now() + SLED_BUDGET_MS;
    const sledId = address.id;
    try {
      const [inventory, agent] = await Promise.allSettled([
        sleds.readInventory(address, POLL_MS),
        sleds.describe(address, POLL_MS),
      ]);
      if (!(await remember(address, inventory, agent))) return void found.silent.push(address.name);
      if (inventory.status === 'rejected') throw inventory.reason;
      const { vmms: reported } = inventory.value;
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

  /**
   * Keeps in the sled's row whether it answers, and what its agent says of itself, where that is news. Returns whether what
   * it answered counts as this sled's: where another host has come to its address, that one's word is not.
   */
  async function remember(
    sled: WatchedSled,
    inventory: PromiseSettledResult<unknown>,
    description: PromiseSettledResult<AgentDescription | null>,
  ): Promise<boolean> {
    const agent = description.status === 'fulfilled' ? description.value : undefined;
    const owner = agent == null ? undefined : byAgent.get(agent.agent_id);
    if (owner !== undefined && owner.id !== sled.id) {
      const trouble = `the agent at ${sled.address} is that of sled "${owner.name}": one host is one sled`;
      if (!sled.silent || !sameTexts(sled.agentTrouble, [trouble])) await recordSledSilence(db, sled, [trouble]);
      return false;
    }
    if (inventory.status === 'rejected' && !saidSomething(inventory.reason)) {
      if (!sled.silent) await recordSledSilence(db, sled);
      return true;
    }
    const known =
      agent === undefined ||
      (sled.agentId === (agent?.agent_id ?? null) &&
        sled.agentVersion === (agent?.version ?? null) &&
        sameTexts(sled.agentTrouble, agent?.trouble ?? []) &&
        sameModels(sled.cpuModels, agent?.cpu_models ?? null));
    if (sled.silent || !sled.answeredLately || !known) await recordSledAnswer(db, sled, agent);
    return true;
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

function saidSomething(error: unknown): boolean {
  return error instanceof SledError && error.answered === true;
}

function sameModels(some: readonly string[] | null, others: readonly string[] | null): boolean {
  return some === null || others === null ? some === others : sameTexts(some, others);
}

function sameTexts(some: readonly string[], others: readonly string[]): boolean {
  return some.length === others.length && some.every((text, index) => text === others[index]);
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
