/** Two installations that share their ids on one namespace: every call that meets a run, and every owner that it may have. */
import {
  WorkflowExecutionAlreadyStartedError,
  WorkflowIdConflictPolicy,
  WorkflowNotFoundError,
} from '@temporalio/common';
import { pino } from 'pino';
import { describe, expect, test } from 'vitest';
import {
  installationOf,
  queueOf,
  TASK_QUEUE,
  TASK_QUEUES,
  UPDATE_TASK_QUEUE,
  workflowIds,
} from '../../model/workflow-names.ts';
import { ForeignRuns } from '../../temporal/foreign-runs.ts';

const OURS = '111111111111';
const THEIRS = '222222222222';
const FOREIGN_QUEUES = TASK_QUEUES.map((queue) => queueOf(THEIRS, queue));
const OUR_QUEUES = [...TASK_QUEUES.map((queue) => queueOf(OURS, queue)), 'somebody-elses-queue'];
const { reconcileOnce: _named, ...SHARED } = workflowIds;

/** A namespace with one open run. */
function world(openRunsQueue: string | null) {
  const calls: string[] = [];
  const runs = new ForeignRuns(
    async () => ({ id: OURS }),
    async () => {
      calls.push('describe');
      return openRunsQueue;
    },
    pino({ level: 'silent' }),
  );
  const next = async ({ options }: { options: { workflowIdConflictPolicy: WorkflowIdConflictPolicy } }) => {
    calls.push(options.workflowIdConflictPolicy);
    if (openRunsQueue === null || options.workflowIdConflictPolicy === WorkflowIdConflictPolicy.USE_EXISTING)
      return 'a run';
    throw new WorkflowExecutionAlreadyStartedError('', '', '');
  };
  return { runs, calls, next };
}

describe.each(Object.entries(SHARED))('%s', (_kind, idOf) => {
  const workflowId = idOf('0a');
  const input = (workflowIdConflictPolicy: WorkflowIdConflictPolicy) => ({
    options: { workflowId, workflowIdConflictPolicy },
  });
  const { FAIL, USE_EXISTING } = WorkflowIdConflictPolicy;

  test.each([FAIL, USE_EXISTING])('nobody has the id: one call (%s)', async (policy) => {
    const { runs, calls, next } = world(null);
    expect(await runs.start(input(policy), next)).toBe('a run');
    expect(calls).toEqual([FAIL]);
    expect(runs.problem).toBeNull();
  });

  test.each(OUR_QUEUES)('a run of ours has it, on %s', async (queue) => {
    const { runs, next } = world(queue);
    expect(await runs.start(input(USE_EXISTING), next)).toBe('a run');
    await expect(runs.start(input(FAIL), next)).rejects.toBeInstanceOf(WorkflowExecutionAlreadyStartedError);
    await runs.described(workflowId, 'r', queue);
    await runs.signalled(workflowId, 'r');
    expect(runs.problem).toBeNull();
  });

  test.each(FOREIGN_QUEUES)('another installation has it, on %s', async (queue) => {
    const { next } = world(queue);
    for (const policy of [FAIL, USE_EXISTING]) {
      const { runs } = world(queue);
      await expect(runs.start(input(policy), next)).rejects.toMatchObject({
        name: 'Refusal',
        status: 503,
        // A key does not keep it: once the copy has a namespace of its own the same call goes through.
        kept: null,
        message: expect.stringMatching(new RegExp(`${workflowId}.*${THEIRS}.*${OURS}.*TEMPORAL_NAMESPACE`)),
      });
      expect(runs.problem).toContain(THEIRS);
    }
    const { runs } = world(queue);
    await expect(runs.described(workflowId, 'r', queue)).rejects.toBeInstanceOf(WorkflowNotFoundError);
    const signals = world(queue);
    await signals.runs.signalled(workflowId, 'r');
    expect(signals.runs.problem).toContain(workflowId);
  });
});

test('a run that is known to be ours is not asked for again', async () => {
  const { runs, calls } = world(queueOf(OURS, UPDATE_TASK_QUEUE));
  await runs.signalled('instance-update/0a', 'r');
  await runs.signalled('instance-update/0a', 'r');
  expect(calls).toEqual(['describe']);
  expect(queueOf(OURS, TASK_QUEUE)).not.toBe(TASK_QUEUE);
});

test('whose a queue is, is read out of every name that a queue is given, and out of no other', () => {
  for (const queue of TASK_QUEUES) {
    expect(installationOf(queueOf('a1b2c3d4e5f6', queue))).toBe('a1b2c3d4e5f6');
    for (const other of [queue, `${queue}-`, `${queue}-A`, `x${queue}-a1`, `${queue}-a1-b2`])
      expect(installationOf(other), other).toBe(null);
  }
});
