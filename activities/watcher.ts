/** The watcher: asks every sled what it has, and sets right what disagrees with the database. */

import { readSledVmms } from '../db/queries/read-sled-vmms.ts';
import {
  readExpungedSleds,
  readVmmsOfExpunged,
  readWatchedSleds,
  type WatchedSled,
} from '../db/queries/read-watched-sleds.ts';
import { applyReport } from '../db/transactions/apply-report.ts';
import { failVmm } from '../db/transactions/fail-vmm.ts';
import { adoptAgent, keptIdOf, recordSledAnswer, recordSledSilence } from '../db/transactions/record-sled-answer.ts';
import { releaseUnwound } from '../db/transactions/release-unwound.ts';
import type { WatcherFindings } from '../model/reconcilers.ts';
import { isGoneVmmState, isTerminalVmmState } from '../model/states.ts';
import { signalAfterReport, signalIfNeeded } from '../temporal/signal-update.ts';
import type { AgentDescription, SledVmmState } from '../wire/sled-protocol.ts';
import type { ActivityContext } from './context.ts';
import { forEach } from './for-each.ts';
import { automaticActor, recordAction } from './record-action.ts';
import { unregisterFromSled } from './sled-calls.ts';
import {
  AnotherInstallation,
  CannotAsk,
  type ExpungedSledAddress,
  NoAgent,
  type SledAddress,
  SledError,
} from './sled-client.ts';

/** How many sleds are asked at a time: more than can be silent at once in a rack, so that these delay nobody. */
const CONCURRENT_SLEDS = 32;
/** How long one call to a sled may take, in milliseconds. */
const POLL_MS = 3_000;
/** How long one sled may take of a pass, in milliseconds: what is not looked at by then is looked at in the next one. */
const SLED_BUDGET_MS = 6_000;
/** How many expunged sleds are asked in a pass, in turn: there should be none that answers, and there may be many. */
const EXPUNGED_SLEDS = 16;

type Found = { -readonly [Key in keyof WatcherFindings]: WatcherFindings[Key] extends number ? number : string[] };

/**
 * One pass over all sleds. Only what a sled says by name fails a VMM: silence, refusal or nonsense proves nothing about
 * what runs there. Throws what the database threw, after every sled has had its turn.
 */
export async function watchSleds({ db, sleds, workflows, metrics }: ActivityContext): Promise<WatcherFindings> {
  const found: Found = { sleds: 0, silent: [], slow: [], lost: [], unregistered: [], released: [] };
  const watched = shuffled(await readWatchedSleds(db));
  found.sleds = watched.length;
  sleds.learnAgents(watched);
  const byAgent = new Map(watched.flatMap((one) => (one.agentId === null ? [] : [[one.agentId, one]])));
  const expunged = shuffled(await readExpungedSleds(db)).slice(0, EXPUNGED_SLEDS);
  await forEach(
    [
      ...watched.map((one) => () => watchSled(one)),
      ...expunged.map((one) => () => endWhatIsLeft({ ...one, expunged: true })),
    ],
    CONCURRENT_SLEDS,
    (look) => look(),
  );
  return found;

  /**
   * A sled that is expunged, and answers: the operator was wrong, or it came back. What it still has of its own is ended;
   * nothing that it says is believed.
   */
  async function endWhatIsLeft(sled: ExpungedSledAddress): Promise<void> {
    try {
      const { vmms } = await sleds.readInventory(sled, POLL_MS);
      const living = vmms.filter((vmm) => !isTerminalVmmState(vmm.vmm_state.state)).map((vmm) => vmm.vmm_id);
      for (const vmmId of living.length === 0 ? [] : await readVmmsOfExpunged(db, living)) {
        await unregister(sled, vmmId);
        found.unregistered.push(vmmId);
      }
    } catch (error) {
      if (!(error instanceof SledError)) throw error;
    }
  }

  async function watchSled(address: WatchedSled): Promise<void> {
    const deadline = performance.now() + SLED_BUDGET_MS;
    const { id: sledId, leaves } = address;
    try {
      const [inventory, agent] = await Promise.allSettled([
        sleds.readInventory(address, POLL_MS),
        sleds.describe(address, POLL_MS),
      ]);
      const who = await remember(address, inventory, agent);
      if (who === 'another') return void found.silent.push(address.name);
      // Nothing of the former agent's is left there: what the new one has is looked at in the next pass, as its own.
      if (who === 'new') return;
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
          // It was told to make it at another's address: it ends it, and says nothing of that one's by it.
          if (vmm.stray && (vmm.deleted || !vmm.unwinding || vmm.state === 'saga_unwound')) {
            await unregister(address, vmm_id);
            found.unregistered.push(vmm_id);
          }
          continue;
        }
        if (vmm === undefined || vmm.deleted || isGoneVmmState(vmm.state)) {
          // Its saga is about to ask the sled itself; not of a row that is deleted, as when its sled was given up meanwhile.
          if (vmm?.unwinding && !vmm.deleted && vmm.state !== 'saga_unwound') continue;
          await unregister(address, vmm_id);
          found.unregistered.push(vmm_id);
          await settleUnwound(vmm_id, vmm?.instance_id);
        } else if (leaves && !vmm.unwinding && !isTerminalVmmState(state.vmm_state.state)) {
          await endOnLeavingSled(address, vmm);
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
      (error instanceof CannotAsk ? found.slow : found.silent).push(address.name);
    }
  }

  /**
   * Keeps in the sled's row whether it answers, and what its agent says of itself, where that is news. Returns whose word it
   * is: where another host has come to its address, that one's is not this sled's, and counts as its silence as long as
   * VMMs live there of which only its own agent can speak.
   */
  async function remember(
    sled: WatchedSled,
    inventory: PromiseSettledResult<unknown>,
    description: PromiseSettledResult<AgentDescription | null>,
  ): Promise<'own' | 'another' | 'new'> {
    // Whatever this process lacks, the sled has not been silent.
    if (couldNotAsk(inventory) || couldNotAsk(description)) return 'own';
    const described = description.status === 'fulfilled' ? description.value : undefined;
    if (inventory.status === 'rejected' && inventory.reason instanceof AnotherInstallation) {
      await recordTrouble(sled, inventory.reason.message);
      return 'another';
    }
    // An agent that has said who it is knows the question: who doesn't is somebody else, for a moment.
    const agent = described === null && sled.agentId !== null ? undefined : described;
    const owner = agent == null ? undefined : byAgent.get(agent.agent_id);
    if (owner !== undefined && owner.id !== sled.id) {
      await recordTrouble(sled, `the agent at ${sled.address} is that of sled "${owner.name}": one host is one sled`);
      return 'another';
    }
    if (agent != null && sled.keptAgentId !== null && !sled.identified && agent.agent_id !== sled.keptAgentId) {
      // What was read at the beginning of the pass may be seconds old.
      if (!sled.guests && (await adoptAgent(db, sled.id, agent))) return 'new';
      await recordTrouble(sled, explainAnotherAgent(sled, agent.agent_id));
      return 'another';
    }
    // Its own agent knows the question: whoever this is, that a VMM is not there is not believed of him either.
    if (described === null && sled.keptAgentId !== null && !sled.identified) {
      if (sled.guests) {
        await recordTrouble(sled, explainAnotherAgent(sled, null));
        return 'another';
      }
      // An agent that others wrote has taken the place of one that kept an id: asked for that, it would never answer.
      if (inventory.status === 'fulfilled' && (await adoptAgent(db, sled.id, null))) return 'new';
    }
    // An error of a portal or of our own API may look like an agent's: who was asked twice and has no inventory is none.
    const isNobody = description.status === 'rejected' && description.reason instanceof NoAgent;
    if (inventory.status === 'rejected' && (isNobody || !saidSomething(inventory.reason))) {
      if (!sled.silent) await recordSledSilence(db, sled);
      return 'own';
    }
    const known =
      agent === undefined ||
      (sled.agentId === (agent?.agent_id ?? null) &&
        sled.keptAgentId === keptIdOf(agent) &&
        sled.agentVersion === (agent?.version ?? null) &&
        sameTexts(sled.agentTrouble, agent?.trouble ?? []) &&
        sameModels(sled.cpuModels, agent?.cpu_models ?? null));
    const isBack = sled.anotherAnswers && agent !== undefined;
    if (sled.silent || !sled.answeredLately || !known || isBack) await recordSledAnswer(db, sled, agent);
    return 'own';
  }

  /** Another agent than the sled's own, or than one of this installation, answers. */
  async function recordTrouble(sled: WatchedSled, trouble: string): Promise<void> {
    if (!sled.silent || !sled.anotherAnswers || !sameTexts(sled.agentTrouble, [trouble]))
      await recordSledSilence(db, sled, [trouble]);
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

  /** An operator has expunged a sled that answers: its own answer that it has ended a VMM is what makes that one Failed. */
  async function endOnLeavingSled(address: SledAddress, vmm: { id: string; instance_id: string }): Promise<void> {
    const ended = await unregister(address, vmm.id);
    found.unregistered.push(vmm.id);
    if (ended !== null) await applyReport(db, vmm.id, ended);
    await failVmm(db, vmm.id, `sled "${address.name}" was expunged`, automaticActor('watcher'));
    await signalIfNeeded({ db, workflows }, vmm.instance_id);
  }

  /** The state in which a VMM ended, where its sled knew it. */
  async function unregister(address: SledAddress, vmmId: string): Promise<SledVmmState | null> {
    const action = {
      operation: 'vmm_unregister',
      subjectKind: 'vmm' as const,
      subject: vmmId,
      ...automaticActor('watcher'),
    };
    return recordAction(db, action, () => unregisterFromSled(sleds, address, vmmId, POLL_MS));
  }

  async function settleUnwound(vmmId: string, instanceId: string | undefined): Promise<void> {
    if (await releaseUnwound(db, vmmId)) found.released.push(vmmId);
    if (instanceId !== undefined) await signalIfNeeded({ db, workflows }, instanceId);
  }
}

/** What ails a sled at whose address an agent answers that is not its own. */
function explainAnotherAgent(sled: WatchedSled, agentId: string | null): string {
  const who =
    agentId === null
      ? `what answers at ${sled.address} does not say that it is the sled's own agent (${sled.keptAgentId})`
      : `another agent (${agentId}) than the sled's own (${sled.keptAgentId}) answers at ${sled.address}`;
  return `${who}, and VMMs live on the sled: nothing that it says is believed. Start the sled's own agent there, with its data; or set the address at which it is; or, when the sled is powered off, say so ("mooring sled declare-dead ${sled.name}")`;
}

function couldNotAsk(asked: PromiseSettledResult<unknown>): boolean {
  return asked.status === 'rejected' && asked.reason instanceof CannotAsk;
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

function shuffled<T>(items: readonly T[]): T[] {
  return items
    .map((item) => ({ item, at: Math.random() }))
    .sort((a, b) => a.at - b.at)
    .map(({ item }) => item);
}
