/** How the control plane takes a sled agent's report (section 7 of docs/design.md). */
import { afterAll, afterEach, beforeAll, expect, test } from 'vitest';
import { type Harness, refused, startHarness } from '../support/harness.ts';

let harness: Harness;
beforeAll(async () => {
  harness = await startHarness({ updates: false, reconcileEveryMs: 0 });
});
afterEach(() => harness.examined(false));
afterAll(() => harness?.close());

async function report(vmmId: string, state: string, gen: number): Promise<number> {
  const response = await fetch(`${harness.stack.apiUrl}/vmms/${vmmId}`, {
    method: 'PUT',
    headers: { 'content-type': 'application/json' },
    body: JSON.stringify({ vmm_state: { state, gen, time_updated: new Date().toISOString() } }),
  });
  return response.status;
}

test('a report that is old, or comes twice, changes nothing', async () => {
  const id = await harness.running();
  const { active } = await harness.record(id);
  const [vmmId, gen] = [active?.id ?? '', active?.stateGeneration ?? 0];
  expect(await report(vmmId, 'starting', gen - 1)).toBe(204);
  expect(await report(vmmId, 'stopping', gen)).toBe(204);
  expect((await harness.record(id)).active).toEqual(active);
  expect(await report(vmmId, 'rebooting', gen + 1)).toBe(204);
  expect(await report(vmmId, 'rebooting', gen + 1)).toBe(204);
  expect((await harness.record(id)).externalState).toBe('rebooting');
});

test('an unknown VMM is 404; a state that no agent may report is 400', async () => {
  expect(await report('00000000-0000-4000-8000-000000000009', 'running', 3)).toBe(404);
  const id = await harness.running();
  const { active } = await harness.record(id);
  for (const state of ['saga_unwound', 'creating', 'flying'])
    expect(await report(active?.id ?? '', state, 99)).toBe(400);
  expect((await harness.record(id)).active).toEqual(active);
});

test('a report about a saga_unwound VMM is taken and nothing is written', async () => {
  const id = await harness.create();
  harness.everywhere(({ agent }) =>
    agent.faults.plant({ call: 'state:running', act: { type: 'refuse', status: 409 }, times: 1 }),
  );
  await refused(harness.client.startInstance(id));
  harness.everywhere(({ agent }) => agent.faults.clear());
  const before = await harness.record(id);
  expect(before.active?.state).toBe('saga_unwound');
  expect(await report(before.active?.id ?? '', 'running', 99)).toBe(204);
  expect(await harness.record(id)).toEqual(before);
});

test('a gone VMM never comes back to life', async () => {
  const id = await harness.running();
  const { active } = await harness.record(id);
  expect(await report(active?.id ?? '', 'destroyed', 50)).toBe(204);
  expect(await report(active?.id ?? '', 'running', 51)).toBe(204);
  expect((await harness.record(id)).active?.state).toBe('destroyed');
  expect((await harness.record(id)).externalState).toBe('stopping');
});
