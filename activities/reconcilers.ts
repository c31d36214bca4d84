/** What the reconciling loops do: find what stored state or a sled's inventory shows to be amiss, and set it right. */
import { activityInfo, heartbeat } from '@temporalio/activity';
import { ne } from 'drizzle-orm';
import { readSnapshot } from '../db/queries/read-snapshot.ts';
import { findOpenOperations, findStrays, findUpdateCandidates, readSledVmms } from '../db/queries/reconcile.ts';
import { sled } from '../db/schema.ts';
import { applyReport } from '../db/transactions/apply-report.ts';
import { failVmm } from '../db/transactions/fail-vmm.ts';
import { recordRefusedOperation, releaseUnwound } from '../db/transactions/unwind-vmm.ts';
import { Refusal } from '../model/refusal.ts';
import { isGoneVmmState } from '../model/states.ts';
import { needsAction } from '../model/update-decision.ts';
import type { ActivityContext } from './activities.ts';
import { classifyFailure } from './failures.ts';
import { signalIfNeeded } from './signal-update.ts';
import { type SledAddress, SledError } from './sled-client.ts';

/** How many sleds are asked at a time: one slow sled delays nobody. */
const CONCURRENT_SLEDS = 16;
const POLL_MS = 3_000;
/** A saga younger than this is not looked at: its workflow may be about to be seen, in milliseconds. */
const OPERATION_GRACE_MS = 5_000;
/** How often a worker's scan also looks for what should not be there at all, in milliseconds. */
const STRAYS_EVERY_MS = 60_000;

export type ReconcilerActivities = ReturnType<typeof createReconcilerActivities>;

/** What a pass of the watcher found and did. */
export interface WatcherFindings {
  readonly sleds: number;
  readonly silent: string[];
  /** VMMs that their sled does not know: failed. */
  readonly lost: string[];
  /** VMMs on a sled that the database does not know, or knows as gone: unregistered. */
  readonly unregistered: string[];
  /** Reservations released for unwound VMMs whose sled has now answered. */
  readonly released: string[];
}

/** What a pass of the updater scan found and did. */
export interface ScanFindings {
  readonly candidates: number;
  readonly signalled: string[];
  /** VMMs whose saga was cut off: unwound by a workflow of their own. */
  readonly unwinding: string[];
}

/** Makes the activities of the reconciling loops. */
export function createReconcilerActivities({ db, sleds, workflows }: ActivityContext) {
  let straysDueMs = 0;
  return {
    async watchSleds(): Promise<WatcherFindings> {
      const findings: WatcherFindings = { sleds: 0, silent: [], lost: [], unregistered: [], released: [] };
      try {
        const all = await db.select().from(sled).where(ne(sled.policy, 'expunged'));
        const queue = [...all];
        const work = async () => {
          for (let next = queue.pop(); next !== undefined; next = queue.pop()) {
            await watchSled(next.id, next, findings);
            beat();
          }
        };
        await Promise.all(Array.from({ length: Math.min(CONCURRENT_SLEDS, all.length) }, work));
        return { ...findings, sleds: all.length };
      } catch (error) {
        throw classifyFailure(error);
      }
    },

    async scanForUpdates(): Promise<ScanFindings> {
      const signalled: string[] = [];
      const unwinding: string[] = [];
      try {
        const candidates = await findUpdateCandidates(db);
        if (performance.now() >= straysDueMs) {
          straysDueMs = performance.now() + STRAYS_EVERY_MS;
          for (const stray of await findStrays(db)) if (!candidates.includes(stray)) candidates.push(stray);
        }
        for (const instanceId of candidates) {
          beat();
          const snapshot = await readSnapshot(db, instanceId);
          if (snapshot === null || !needsAction(snapshot)) continue;
          await workflows.signalUpdate(instanceId);
          signalled.push(instanceId);
        }
        for (const operation of await findOpenOperations(db, OPERATION_GRACE_MS)) {
          beat();
          if (await workflows.isOpen(operation.workflow_id, operation.id)) continue;
          const cutOff = Refusal.conflict(`the ${operation.kind} was terminated by an operator; ask for it again`);
          const attempt = {
            kind: operation.kind,
            instanceId: operation.instance_id,
            operationId: operation.id,
            workflowId: operation.workflow_id,
          };
          if (operation.vmm_id === null) {
            await recordRefusedOperation(db, { ...attempt, error: cutOff });
            continue;
          }
          await workflows.unwindVmm({
            ...attempt,
            vmmId: operation.vmm_id,
            spareRunning: true,
            error: { status: cutOff.status, error_code: cutOff.code, message: cutOff.message },
          });
          unwinding.push(operation.vmm_id);
        }
        return { candidates: candidates.length, signalled, unwinding };
      } catch (error) {
        throw classifyFailure(error);
      }
    },
  };

  async function watchSled(sledId: string, address: SledAddress, findings: WatcherFindings): Promise<void> {
    try {
      const { vmms: reported } = await sleds.readInventory(address, POLL_MS);
      // Read after the inventory: what the sled had been told to register was in the database before.
      const known = await readSledVmms(db, sledId, reported);
      const byId = new Map(known.map((vmm) => [vmm.id, vmm]));
      const present = new Set(reported.map((vmm) => vmm.vmm_id));
      for (const { vmm_id, instance_id: _, ...state } of reported) {
        const vmm = byId.get(vmm_id);
        if (vmm === undefined || vmm.deleted || isGoneVmmState(vmm.state)) {
          if (vmm?.unwinding && vmm.state !== 'saga_unwound') continue;
          await sleds.unregister(address, vmm_id, POLL_MS).catch(ignoreGone);
          findings.unregistered.push(vmm_id);
          await settleUnwound(vmm_id, vmm?.instance_id, findings);
        } else if (vmm.news) {
          const applied = await applyReport(db, vmm_id, state);
          if (!applied?.settled) await signalIfNeeded({ db, workflows }, vmm.instance_id);
        }
      }
      for (const vmm of known) {
        if (present.has(vmm.id) || vmm.deleted) continue;
        if (vmm.state === 'saga_unwound') {
          if (!vmm.reserved) continue;
          await sleds.unregister(address, vmm.id, POLL_MS).catch(ignoreGone);
          await settleUnwound(vmm.id, vmm.instance_id, findings);
        } else if (!isGoneVmmState(vmm.state) && vmm.state !== 'creating' && !vmm.unwinding) {
          await askForMissing(address, vmm, findings);
        }
      }
    } catch (error) {
      if (!(error instanceof SledError)) throw error;
      // Silence, refusal or nonsense proves nothing about what runs there.
      findings.silent.push(address.name);
    }
  }

  /** A VMM that the inventory lacks is lost only when its sled says so by name. */
  async function askForMissing(
    address: SledAddress,
    vmm: { id: string; instance_id: string },
    findings: WatcherFindings,
  ) {
    try {
      await applyReport(db, vmm.id, await sleds.readState(address, vmm.id, POLL_MS));
    } catch (error) {
      if (!(error instanceof SledError) || error.kind !== 'gone') throw error;
      if ((await failVmm(db, vmm.id, `sled "${address.name}" does not know it any more`)) !== null)
        findings.lost.push(vmm.id);
    }
    await signalIfNeeded({ db, workflows }, vmm.instance_id);
  }

  async function settleUnwound(
    vmmId: string,
    instanceId: string | undefined,
    findings: WatcherFindings,
  ): Promise<void> {
    if (await releaseUnwound(db, vmmId)) findings.released.push(vmmId);
    if (instanceId !== undefined) await signalIfNeeded({ db, workflows }, instanceId);
  }
}

function ignoreGone(error: unknown): void {
  if (!(error instanceof SledError) || error.kind !== 'gone') throw error;
}

/** Tells Temporal that a long pass goes on. */
function beat(): void {
  if (activityInfo().heartbeatTimeoutMs !== undefined) heartbeat();
}
