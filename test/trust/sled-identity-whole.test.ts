import { afterAll, beforeAll, expect, test } from 'vitest';
import { type Harness, startHarness } from '../support/harness.ts';

let harness: Harness;
beforeAll(async () => {
  harness = await startHarness({ sledTls: true, sleds: 3 });
});
afterAll(() => harness?.close());

test('a guest starts, migrates, reboots and stops between sleds that joined by invitation', async () => {
  expect(harness.stack.sleds.map(({ agent }) => agent.url)).toEqual(
    harness.stack.sleds.map(({ agent }) => `https://${agent.address}`),
  );
  const id = await harness.running();
  const { there } = await harness.placed(id);
  await harness.client.migrateInstance(id, there.id);
  await harness.shows(id, 'running');
  expect((await harness.record(id)).active?.sledId).toBe(there.id);
  await harness.client.rebootInstance(id);
  await harness.shows(id, 'running');
  await harness.client.stopInstance(id);
  await harness.shows(id, 'stopped');
  await harness.rests(id);
  expect(await harness.holds(id)).toEqual({ reservations: [], charge: false });
  await harness.examined(true);
});
