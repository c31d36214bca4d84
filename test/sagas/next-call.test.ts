/** The very next call after a failure can succeed (invariant 10), however close it follows. */
import { afterAll, beforeAll, expect, test } from 'vitest';
import { FaultInjector } from '../matrix/fault-injector.ts';
import { type Harness, startHarness } from '../support/harness.ts';

const injector = new FaultInjector();
let harness: Harness;
beforeAll(async () => {
  harness = await startHarness({ testInterceptors: { activity: [injector.interceptors()] } });
});
afterAll(async () => {
  injector.releaseAll();
  await harness?.close();
});

test('a migration to another sled, when an operation has failed and its workflow is still closing', async () => {
  const id = await harness.running();
  const { here, there } = await harness.placed(id);
  const third = harness.stack.sleds.find((sled) => sled.id !== here.id && sled.id !== there.id);
  there.agent.faults.plant({ call: 'register', act: { type: 'refuse', status: 409 }, times: 1 });
  // The outcome is written, and then the worker is slow.
  injector.plan({
    id: 'closing',
    workflowType: 'instanceMigrate',
    activity: 'finishUnwind',
    subject: id,
    holdAfter: true,
  });
  const { operationId } = await harness.client.migrateInstance(id, there.id, { waitSeconds: 0 });
  const ended = await harness.client.waitForOperation(operationId ?? '');
  expect(ended.outcome).toBe('failed');
  const next = harness.client.migrateInstance(id, third?.id ?? '');
  // It must not be refused while the first run closes; what it waits for comes now.
  const early = await Promise.race([next.catch((error: Error) => error.message), injector.waitFor('closing', 'ran')]);
  expect(early).toBeUndefined();
  injector.release('closing', 'after');
  await next;
  expect((await harness.record(id)).target?.sledId ?? (await harness.record(id)).active?.sledId).toBe(third?.id);
});
