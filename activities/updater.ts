/** The updater: signals what needs an update, and finds sagas that were cut off. */

import { findOpenOperations } from '../db/queries/find-open-operations.ts';
import { findUpdateCandidates } from '../db/queries/find-update-candidates.ts';
import { readSnapshot } from '../db/queries/read-snapshot.ts';
import { recordRefusedOperation } from '../db/transactions/refuse-operation.ts';
import { refusalBody } from '../model/failures.ts';
import type { UpdaterFindings } from '../model/reconcilers.ts';
import { Refusal } from '../model/refusal.ts';
import { needsAction } from '../model/update-decision.ts';
import type { ActivityContext } from './context.ts';
import { forEach, throwAll } from './for-each.ts';

/** A saga younger than this is not looked at, in milliseconds: its workflow may be about to be seen. */
const OPERATION_GRACE_MS = 5_000;

type OpenOperation = Awaited<ReturnType<typeof findOpenOperations>>[number];

/**
 * One pass over all that an index finds quickly; each decision is made on a snapshot. Throws what those that could
 * not be looked at threw, after every other has had its turn.
 */
export async function scanForUpdates({
  db,
  workflows,
}: Pick<ActivityContext, 'db' | 'workflows'>): Promise<UpdaterFindings> {
  const signalled: string[] = [];
  const unwinding: string[] = [];
  const candidates = await findUpdateCandidates(db);
  const errors: unknown[] = [];
  /** One that can't be looked at must not hide those behind it. */
  const eachInTurn = <Item>(items: readonly Item[], look: (item: Item) => Promise<void>) =>
    forEach(items, 1, look).catch((error: unknown) => void errors.push(error));
  await eachInTurn(candidates, async (instanceId) => {
    const snapshot = await readSnapshot(db, instanceId);
    if (snapshot === null || !needsAction(snapshot)) return;
    await workflows.signalUpdate(instanceId, snapshot.names);
    signalled.push(instanceId);
  });
  await eachInTurn(await findOpenOperations(db, OPERATION_GRACE_MS), settle);
  throwAll(errors);
  return { candidates: candidates.length, signalled, unwinding };

  async function settle(operation: OpenOperation): Promise<void> {
    if (await workflows.isOpen(operation.workflow_id, operation.id)) return;
    const cutOff = Refusal.conflict(`the ${operation.kind} was terminated by an operator; ask for it again`);
    const attempt = {
      kind: operation.kind,
      instanceId: operation.instance_id,
      operationId: operation.id,
      workflowId: operation.workflow_id,
    };
    if (operation.vmm_id === null) {
      await recordRefusedOperation(db, { ...attempt, error: cutOff });
      return;
    }
    await workflows.unwindVmm({
      ...attempt,
      vmmId: operation.vmm_id,
      spareRunning: true,
      error: refusalBody(cutOff),
    });
    unwinding.push(operation.vmm_id);
  }
}
