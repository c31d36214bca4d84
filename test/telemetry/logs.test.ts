/** What a worker's log lines hold: saga, instance or VMM, step and operation on each. */
import { Writable } from 'node:stream';
import { pino } from 'pino';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { waitUntil } from '../../platform/host/child-process.ts';
import { createLog } from '../../platform/telemetry/log.ts';
import { fieldsOfWorkflowId, logFields } from '../../platform/telemetry/log-fields.ts';
import { installRuntime } from '../../worker/worker.ts';
import { type Harness, refused, startHarness } from '../support/harness.ts';

const lines: Record<string, unknown>[] = [];
let harness: Harness;
beforeAll(async () => {
  const stream = new Writable({
    write(chunk, _, done) {
      for (const line of String(chunk).split('\n').filter(Boolean)) lines.push(JSON.parse(line));
      done();
    },
  });
  installRuntime(pino({ level: 'info' }, stream));
  harness = await startHarness({ reconcileEveryMs: 0 });
});
afterAll(() => harness?.close());

test('the log lines of an unwound start are found by one filter', async () => {
  const id = await harness.create();
  harness.everywhere(({ agent }) =>
    agent.faults.plant({ call: 'state:running', act: { type: 'refuse', status: 409 } }),
  );
  await refused(harness.client.startInstance(id));
  harness.everywhere(({ agent }) => agent.faults.clear());
  const ofSaga = () => lines.filter((line) => line.instance_id === id && line.saga === 'instance-start');
  // The SDK puts its lines and its core's in order before it hands them on.
  await waitUntil(() => ofSaga().some(({ msg }) => msg === 'compensating'), 'no line of the compensation');
  const sagaLines = ofSaga();
  expect(sagaLines).toContainEqual(
    expect.objectContaining({
      msg: 'a step failed for good',
      step: 'runVmm',
      attempt: 1,
      operation_id: expect.any(String),
      vmm_id: expect.any(String),
    }),
  );
  expect(sagaLines).toContainEqual(
    expect.objectContaining({ msg: 'compensating', compensation: 'unwind the VMM', workflow_type: 'instanceStart' }),
  );
});

test('a line says when, and how grave it is, in words that people and programs read', () => {
  const written: string[] = [];
  createLog('worker', 'info', { write: (line) => void written.push(line) }).warn({ token: 'hush' }, 'something');
  const { level, time, name, token, msg } = JSON.parse(written.join(''));
  expect({ level, name, token, msg }).toEqual({ level: 'warn', name: 'worker', token: '[Redacted]', msg: 'something' });
  expect(new Date(time).toISOString()).toBe(time);
});

test('the fields of each kind of workflow', () => {
  expect(fieldsOfWorkflowId('vmm-unwind/x')).toEqual({ saga: 'vmm-unwind', vmm_id: 'x' });
  expect(fieldsOfWorkflowId('sled-drain/y')).toEqual({ saga: 'sled-drain', sled_id: 'y' });
  expect(fieldsOfWorkflowId('watcher-2026')).toEqual({ saga: 'watcher-2026' });
  expect(logFields({ workflowId: 'instance-update/z', runId: 'r', taskQueue: 'q', extra: 1 })).toEqual({
    saga: 'instance-update',
    instance_id: 'z',
    run_id: 'r',
    extra: 1,
  });
});
