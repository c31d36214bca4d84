/**
 * The world around the database while transactions race: what the sleds truly have, as plain data that can be copied, so
 * that every order of steps can be tried from the same state. The sleds follow section 7 of docs/design.md.
 */
import type { Database } from '../../db/connect.ts';
import { readInstance } from '../../db/queries/read-instance.ts';
import { type AppliedReport, applyReport } from '../../db/transactions/apply-report.ts';
import type { MigrationState, WireVmmState } from '../../model/states.ts';
import type { SledVmmState } from '../../wire/sled-protocol.ts';
import { type SagaAttempt, vmmReport } from '../support/saga-steps.ts';

/** The lease of a sled that has one, in milliseconds: no test lasts as long. */
export const LEASE_MS = 3_600_000;

interface SledSide {
  state: MigrationState;
  gen: number;
}

/** A VMM in a sled agent's records. */
export interface SledVmm {
  readonly id: string;
  readonly sledId: string;
  state: WireVmmState;
  gen: number;
  commanded: boolean;
  /** It executes guest code. */
  guest: boolean;
  /** The migration that it was registered to receive. */
  readonly incoming: { readonly id: string; readonly sourceVmmId: string } | null;
  in: SledSide | null;
  out: (SledSide & { readonly id: string; readonly targetVmmId: string }) | null;
  stopOnArrival: boolean;
}

/** Everything but the database. */
export interface World {
  readonly instanceId: string;
  readonly here: string;
  readonly there: string;
  readonly spare: string;
  readonly attempts: Readonly<Record<string, SagaAttempt>>;
  vmms: Record<string, SledVmm>;
  /** Ids that were unregistered: they stay dead. */
  dead: string[];
  /** Sleds that were expunged: nothing runs there, and nothing answers. */
  lostSleds: string[];
  /** Sleds that are cut off: nothing answers, and their guests go on. */
  silentSleds: string[];
  /** Where each actor is in its script: `null` when it has ended. */
  at: Record<string, string | null>;
  /** What actors remember from one step to the next. */
  notes: Record<string, string>;
  /** What the world saw that must never be. */
  wrongs: string[];
}

export const isOver = (side: SledSide | null): boolean => side?.state === 'completed' || side?.state === 'failed';
/** No call reaches the sled. */
const isSilent = (world: World, sledId: string): boolean =>
  world.lostSleds.includes(sledId) || world.silentSleds.includes(sledId);
const isEnded = (vmm: SledVmm): boolean => vmm.state === 'destroyed' || vmm.state === 'failed';

function become(vmm: SledVmm, state: WireVmmState): void {
  if (isEnded(vmm)) return;
  vmm.state = state;
  vmm.gen += 1;
}

function advance<Side extends SledSide>(side: Side, state: MigrationState): void {
  side.state = state;
  side.gen += 1;
}

/** What a VMM's sled reports of it now. */
function reportOf(vmm: SledVmm): SledVmmState {
  return vmmReport(vmm.state, vmm.gen, {
    ...(vmm.in === null || vmm.incoming === null ? {} : { in: { id: vmm.incoming.id, ...vmm.in } }),
    ...(vmm.out === null ? {} : { out: { id: vmm.out.id, state: vmm.out.state, gen: vmm.out.gen } }),
  });
}

/** A report arrives: a VMM's state as its sled has it. A terminal one is forgotten by the sled once it was taken. */
export async function deliver(db: Database, world: World, vmmId: string): Promise<void> {
  const vmm = world.vmms[vmmId];
  if (vmm === undefined || isSilent(world, vmm.sledId)) return;
  await applyReport(db, vmmId, reportOf(vmm));
  if (isEnded(vmm)) forget(world, vmmId);
}

function forget(world: World, vmmId: string): void {
  delete world.vmms[vmmId];
  if (!world.dead.includes(vmmId)) world.dead.push(vmmId);
}

export type SledReply = SledVmmState | 'gone' | 'refused' | 'silent';

export function register(world: World, vmmId: string, sledId: string, incoming: SledVmm['incoming'] = null): SledReply {
  if (isSilent(world, sledId)) return 'silent';
  if (world.dead.includes(vmmId)) return 'refused';
  world.vmms[vmmId] ??= {
    id: vmmId,
    sledId,
    state: incoming === null ? 'starting' : 'migrating',
    gen: 2,
    commanded: false,
    guest: false,
    incoming,
    in: null,
    out: null,
    stopOnArrival: false,
  };
  return reportOf(world.vmms[vmmId]);
}

/** Commands a VMM to run, or to migrate in: it takes note; what comes of it are events of their own. */
export function command(world: World, vmmId: string, sledId: string): SledReply {
  if (isSilent(world, sledId)) return 'silent';
  const vmm = world.vmms[vmmId];
  if (vmm === undefined) return 'gone';
  if (!vmm.commanded && (isEnded(vmm) || vmm.state === 'stopping' || vmm.state === 'stopped')) return 'silent';
  vmm.commanded = true;
  return reportOf(vmm);
}

/** Ends a VMM for good. A guest that the user wants to run must not be among what is ended. */
export async function unregister(
  db: Database,
  world: World,
  vmmId: string,
  sledId: string,
): Promise<SledVmmState | null> {
  if (world.lostSleds.includes(sledId)) return null;
  const vmm = world.vmms[vmmId];
  if (vmm === undefined) {
    if (!world.dead.includes(vmmId)) world.dead.push(vmmId);
    return null;
  }
  if (vmm.guest && (await readInstance(db, world.instanceId))?.instance.intendedState === 'running') {
    world.wrongs.push(`VMM ${nameOf(world, vmmId)} was unregistered while it ran the guest, which was meant to run`);
  }
  end(world, vmm, 'failed');
  const last = reportOf(vmm);
  forget(world, vmmId);
  return last;
}

/** A VMM ends: its guest with it, and the other side of a migration on its way notices. */
export function end(world: World, vmm: SledVmm, state: 'failed' | 'destroyed'): void {
  vmm.guest = false;
  if (vmm.incoming !== null && !isOver(vmm.in)) {
    vmm.in = { state: 'failed', gen: (vmm.in?.gen ?? 1) + 1 };
    keepGuest(world, vmm.incoming.sourceVmmId);
  }
  become(vmm, state);
}

/** The source of a migration that broke off before its guest left: it goes on. */
function keepGuest(world: World, sourceVmmId: string): void {
  const source = world.vmms[sourceVmmId];
  if (source?.out == null || isOver(source.out) || isEnded(source)) return;
  advance(source.out, 'failed');
  become(source, 'running');
}

export function stop(world: World, vmmId: string, sledId: string): SledReply {
  if (isSilent(world, sledId)) return 'silent';
  const vmm = world.vmms[vmmId];
  if (vmm === undefined) return 'gone';
  if (vmm.out?.state === 'completed') return 'refused';
  if (isEnded(vmm) || vmm.state === 'stopping' || vmm.state === 'stopped') return reportOf(vmm);
  if (vmm.incoming !== null && !isOver(vmm.in)) {
    vmm.stopOnArrival = true;
    return reportOf(vmm);
  }
  if (vmm.out !== null && !isOver(vmm.out)) {
    const target = world.vmms[vmm.out.targetVmmId];
    advance(vmm.out, 'failed');
    if (target !== undefined) {
      target.in = { state: 'failed', gen: (target.in?.gen ?? 1) + 1 };
      become(target, 'failed');
    }
  }
  vmm.guest = false;
  become(vmm, 'stopping');
  return reportOf(vmm);
}

/** A VMM that was commanded to run does. */
export function boot(world: World, vmmId: string): void {
  const vmm = world.vmms[vmmId];
  if (vmm === undefined || !vmm.commanded || vmm.state !== 'starting') return;
  become(vmm, 'running');
  vmm.guest = true;
}

/** The target that was commanded to migrate in, with its source; `null` while there is none. */
export function handOverOf(world: World): { target: SledVmm; source: SledVmm | undefined } | null {
  for (const target of Object.values(world.vmms)) {
    if (target.incoming === null || !target.commanded || isOver(target.in) || isEnded(target)) continue;
    return { target, source: world.vmms[target.incoming.sourceVmmId] };
  }
  return null;
}

/** The hand-over begins on both sides; it fails at once where the source has no running guest. */
export function beginHandOver({ target, source }: { target: SledVmm; source: SledVmm | undefined }): void {
  if (target.in !== null) return;
  if (source?.state !== 'running' || target.incoming === null) {
    target.in = { state: 'failed', gen: 2 };
    become(target, 'failed');
    return;
  }
  become(source, 'migrating');
  source.out = { id: target.incoming.id, targetVmmId: target.id, state: 'in_progress', gen: 2 };
  target.in = { state: 'in_progress', gen: 2 };
}

/** The guest arrives. A source that died in the middle runs nothing: everything was there already. */
export function completeHandOver({ target, source }: { target: SledVmm; source: SledVmm | undefined }): void {
  if (target.in?.state !== 'in_progress') return;
  if (source?.out != null && !isEnded(source)) {
    advance(source.out, 'completed');
    source.guest = false;
  }
  advance(target.in, 'completed');
  become(target, 'running');
  target.guest = true;
  if (target.stopOnArrival) {
    target.guest = false;
    become(target, 'stopping');
  }
}

/** The hand-over breaks off: the guest stays with the source, or dies with it. */
export function failHandOver(world: World, { target }: { target: SledVmm }): void {
  end(world, target, 'failed');
}

/** A VMM's process or its sled's memory of it is gone, without a report. */
export function lose(world: World, vmmId: string): void {
  const vmm = world.vmms[vmmId];
  if (vmm === undefined) return;
  end(world, vmm, 'failed');
  delete world.vmms[vmmId];
}

/** A whole sled is gone. */
export function loseSled(world: World, sledId: string): void {
  world.lostSleds.push(sledId);
  for (const vmm of Object.values(world.vmms)) if (vmm.sledId === sledId) lose(world, vmm.id);
}

/** Whether a sled answers who asks for a sign of life. */
export function answers(world: World, sledId: string): boolean {
  return !isSilent(world, sledId);
}

/** A sled ends all that it has, and can say so. */
export function endAll(world: World, sledId: string): void {
  for (const vmm of Object.values(world.vmms)) if (vmm.sledId === sledId) end(world, vmm, 'failed');
}

/** Where the guest executes, by the sleds' truth. */
export function guestsOf(world: World): SledVmm[] {
  return Object.values(world.vmms).filter((vmm) => vmm.guest);
}

/** A VMM's name in messages: the attempt that made it. */
export function nameOf(world: World, vmmId: string): string {
  const name = Object.entries(world.attempts).find(([, attempt]) => attempt.vmmId === vmmId)?.[0];
  return name === undefined ? vmmId : `${vmmId} (of ${name})`;
}

/** What a step of a saga does with a sled's answer. */
export async function applyAnswer(
  db: Database,
  vmmId: string,
  reply: SledVmmState | null,
  saga?: Parameters<typeof applyReport>[3],
): Promise<AppliedReport | null> {
  return reply === null ? null : applyReport(db, vmmId, reply, saga);
}
