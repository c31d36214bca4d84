/**
 * The table of section 5 of docs/design.md, cell by cell, through the real API: an instance is brought into each state by
 * real means, each operation is asked of it, and the answer, the whole record and what comes of it are held against it.
 */
import { sql } from 'drizzle-orm';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { OPERATIONS, type Operation } from '../../model/legality.ts';
import type { ExternalState, IntendedState } from '../../model/states.ts';
import { waitUntil } from '../../platform/host/child-process.ts';
import { errorResponse } from '../../wire/operator-api/error-response.ts';
import { instanceView } from '../../wire/operator-api/instances.ts';
import { type Harness, refused, startHarness } from '../support/harness.ts';

let harness: Harness;
beforeAll(async () => {
  // No loop may move an instance on while a test looks at it.
  harness = await startHarness({ reconcileEveryMs: 24 * 3_600_000 });
});
afterAll(() => harness?.close());

type Cell = 'does' | 'no-op' | 400 | 409;
/** The table as section 5 of docs/design.md has it; migrate is to a sled that is free. */
const TABLE: Readonly<Record<ExternalState, Readonly<Record<Operation, Cell>>>> = {
  creating: { start: 409, stop: 409, reboot: 409, migrate: 409, delete: 409 },
  stopped: { start: 'does', stop: 'no-op', reboot: 400, migrate: 400, delete: 'does' },
  failed: { start: 'does', stop: 'does', reboot: 400, migrate: 400, delete: 'does' },
  starting: { start: 'no-op', stop: 'does', reboot: 409, migrate: 400, delete: 400 },
  running: { start: 'no-op', stop: 'does', reboot: 'does', migrate: 'does', delete: 400 },
  rebooting: { start: 'no-op', stop: 'does', reboot: 'no-op', migrate: 409, delete: 400 },
  migrating: { start: 'no-op', stop: 'does', reboot: 409, migrate: 409, delete: 400 },
  stopping: { start: 409, stop: 'no-op', reboot: 409, migrate: 400, delete: 400 },
};

function holdReports(on: boolean): void {
  harness.everywhere(({ agent }) => agent.faults.holdReports(on));
}

async function runningUnheld(): Promise<string> {
  holdReports(false);
  const id = await harness.running();
  await harness.client.updateInstance(id, { auto_restart_policy: 'never' });
  await harness.rests(id);
  return id;
}

/** What an operation is asked with: a migration names the sled of `other`, the third one while Migrating. */
async function freeSled(id: string): Promise<string> {
  const { active, target } = await harness.record(id);
  const free = harness.stack.sleds.find((sled) => sled.id !== active?.sledId && sled.id !== target?.sledId);
  if (free === undefined) throw new Error('no sled is free');
  return free.id;
}

interface Situation {
  readonly name: string;
  readonly externalState: ExternalState;
  /** Brings a new instance into the state and keeps it there; returns its id. */
  bring(): Promise<string>;
}

/** Each state, and the situations in it that the records distinguish. */
const SITUATIONS: readonly Situation[] = [
  {
    name: 'creating',
    externalState: 'creating',
    // No request leaves an instance here: creation is one transaction.
    async bring() {
      const id = await harness.create();
      await harness.database.db.execute(
        sql`UPDATE instance SET state = 'creating', state_generation = state_generation + 1 WHERE id = ${id}`,
      );
      return id;
    },
  },
  { name: 'stopped', externalState: 'stopped', bring: () => harness.create() },
  {
    name: 'stopped over a saga_unwound leftover',
    externalState: 'stopped',
    async bring() {
      await harness.stack.worker.setUpdates(false);
      const id = await harness.create();
      harness.everywhere(({ agent }) =>
        agent.faults.plant({ call: 'register', act: { type: 'refuse', status: 409 }, times: 1 }),
      );
      await refused(harness.client.startInstance(id));
      harness.everywhere(({ agent }) => agent.faults.clear());
      expect((await harness.record(id)).active?.state).toBe('saga_unwound');
      return id;
    },
  },
  {
    name: 'failed',
    externalState: 'failed',
    async bring() {
      const id = await runningUnheld();
      const { here } = await harness.placed(id);
      here.agent.faults.crash((await harness.record(id)).instance.activeVmmId ?? '');
      await harness.shows(id, 'failed');
      await harness.rests(id);
      return id;
    },
  },
  {
    name: 'starting',
    externalState: 'starting',
    async bring() {
      const id = await harness.create();
      holdReports(true);
      await harness.client.startInstance(id);
      return id;
    },
  },
  { name: 'running', externalState: 'running', bring: runningUnheld },
  {
    name: 'rebooting',
    externalState: 'rebooting',
    async bring() {
      const id = await runningUnheld();
      holdReports(true);
      await harness.client.rebootInstance(id);
      return id;
    },
  },
  {
    name: 'migrating',
    externalState: 'migrating',
    async bring() {
      const id = await runningUnheld();
      const { there } = await harness.placed(id);
      holdReports(true);
      await harness.client.migrateInstance(id, there.id);
      return id;
    },
  },
  {
    name: 'stopping',
    externalState: 'stopping',
    async bring() {
      const id = await runningUnheld();
      holdReports(true);
      await harness.client.stopInstance(id);
      await harness.shows(id, 'stopping');
      await harness.temporal.workflow.getHandle(`instance-stop/${id}`).result();
      return id;
    },
  },
  {
    name: 'stopping, its VMM gone and no update run yet',
    externalState: 'stopping',
    async bring() {
      const id = await runningUnheld();
      await harness.stack.worker.setUpdates(false);
      const { here } = await harness.placed(id);
      here.agent.faults.crash((await harness.record(id)).instance.activeVmmId ?? '');
      await harness.shows(id, 'stopping');
      return id;
    },
  },
];

/** Lets everything go on that a situation holds back. */
async function letGo(): Promise<void> {
  harness.everywhere(({ agent }) => agent.faults.clear());
  await harness.stack.worker.setUpdates(true);
}

/** Every row that speaks of an instance. */
async function everything(id: string): Promise<Record<string, unknown>> {
  const result = await harness.database.db.execute(sql`
    SELECT to_jsonb(instance) AS instance,
      (SELECT jsonb_agg(to_jsonb(vmm) ORDER BY vmm.id) FROM vmm WHERE vmm.instance_id = instance.id) AS vmms,
      (SELECT jsonb_agg(to_jsonb(migration) ORDER BY migration.id) FROM migration WHERE migration.instance_id = instance.id) AS migrations,
      (SELECT jsonb_agg(to_jsonb(held) ORDER BY held.vmm_id) FROM sled_reservation held WHERE held.instance_id = instance.id) AS reservations,
      (SELECT to_jsonb(charge) FROM provisioning_charge charge WHERE charge.instance_id = instance.id) AS charge,
      (SELECT to_jsonb(known) FROM instance_network known WHERE known.instance_id = instance.id) AS network,
      (SELECT jsonb_agg(to_jsonb(operation) ORDER BY operation.id) FROM operation WHERE operation.instance_id = instance.id) AS operations,
      (SELECT jsonb_agg(to_jsonb(member)) FROM affinity_group_member member WHERE member.instance_id = instance.id) AS groups
    FROM instance WHERE id = ${id}`);
  const row = result.rows[0];
  if (row === undefined) throw new Error(`no instance ${id}`);
  return row;
}

async function intend(id: string, intended: IntendedState): Promise<void> {
  await harness.database.db.execute(sql`UPDATE instance SET intended_state = ${intended} WHERE id = ${id}`);
}

interface Answer {
  readonly status: number;
  readonly requestId: string | null;
  readonly body: unknown;
}

async function ask(operation: Operation, id: string, sledId: string): Promise<Answer> {
  const path = `${harness.stack.apiUrl}/v1/instances/${id}`;
  const response = await fetch(operation === 'delete' ? path : `${path}/${operation}`, {
    method: operation === 'delete' ? 'DELETE' : 'POST',
    ...(operation === 'migrate'
      ? { headers: { 'content-type': 'application/json' }, body: JSON.stringify({ dst_sled_id: sledId }) }
      : {}),
  });
  const text = await response.text();
  return {
    status: response.status,
    requestId: response.headers.get('x-request-id'),
    body: text === '' ? null : JSON.parse(text),
  };
}

/** The answer is a refusal that says what was asked, what is shown and what to do next. */
function expectRefusal(
  answer: Answer,
  status: 400 | 409,
  operation: Operation,
  name: string,
  externalState: ExternalState,
): void {
  expect(answer.status).toBe(status);
  const body = errorResponse.parse(answer.body);
  expect(body.error_code).toBe(status === 409 ? 'Conflict' : 'InvalidRequest');
  expect(body.message).toMatch(
    new RegExp(`cannot ${operation} instance "${name}" while it is ${externalState}: \\S+ .+`),
  );
  expect(body.request_id).toBe(answer.requestId);
}

/** What a no-op may write: the intent that the operation stands for, and nothing where it stands for none. */
const INTENT: Readonly<Partial<Record<Operation, IntendedState>>> = { start: 'running', stop: 'stopped' };

/** What comes of an operation that does something. */
async function expectDone(
  operation: Operation,
  id: string,
  sledId: string,
  answer: Answer,
  situation: Situation,
): Promise<void> {
  expect(answer.status).toBe(operation === 'delete' ? 204 : 202);
  if (operation !== 'delete') expect(instanceView.parse(answer.body).id).toBe(id);
  const { instance } = await harness.record(id);
  switch (operation) {
    case 'start':
      expect(instance.intendedState).toBe('running');
      await letGo();
      await harness.shows(id, 'running');
      return;
    case 'stop':
      expect(instance.intendedState).toBe('stopped');
      // A Failed one becomes Stopped in the call itself.
      if (situation.externalState === 'failed') expect(instanceView.parse(answer.body).run_state).toBe('stopped');
      await letGo();
      await harness.shows(id, 'stopped');
      await harness.rests(id);
      expect(await harness.holds(id)).toEqual({ reservations: [], charge: false });
      return;
    case 'reboot': {
      const { here } = await harness.placed(id);
      const rebooted = () =>
        here.agent.faults
          .guestLog()
          .some(
            (entry) => entry.vmm_id === instance.activeVmmId && entry.event === 'began' && entry.reason === 'rebooted',
          );
      await waitUntil(async () => rebooted(), 'the guest was not rebooted', 30_000, 10);
      await harness.shows(id, 'running');
      return;
    }
    case 'migrate':
      await waitUntil(
        async () => (await harness.record(id)).active?.sledId === sledId,
        'the instance did not arrive',
        30_000,
        10,
      );
      await harness.shows(id, 'running');
      return;
    case 'delete': {
      expect(instance.timeDeleted).not.toBeNull();
      const gone = await ask('start', id, sledId);
      expect([gone.status, errorResponse.parse(gone.body).error_code]).toEqual([404, 'NotFound']);
      // The name is free at once.
      await harness.create(instance.name);
      await letGo();
      await waitUntil(
        async () => (await harness.record(id)).instance.state === 'destroyed',
        'the deleted instance was never destroyed',
        30_000,
        10,
      );
      return;
    }
  }
}

for (const situation of SITUATIONS) {
  describe(situation.name, () => {
    beforeAll(letGo);
    afterAll(letGo);
    /** One instance serves all that must leave it as it is. */
    let kept: string | null = null;
    const cells = TABLE[situation.externalState];
    // Those that do something first: they let go what keeps an instance in its state.
    for (const operation of OPERATIONS.filter((one) => cells[one] === 'does')) {
      test(`${operation} while ${situation.name}: does it`, async () => {
        const id = await situation.bring();
        expect((await harness.record(id)).externalState).toBe(situation.externalState);
        const sledId = await freeSled(id);
        await expectDone(operation, id, sledId, await ask(operation, id, sledId), situation);
      });
    }
    for (const operation of OPERATIONS) {
      const cell = cells[operation];
      if (cell === 'does') continue;
      test(`${operation} while ${situation.name}: ${cell}`, async () => {
        kept ??= await situation.bring();
        const id = kept;
        expect((await harness.record(id)).externalState).toBe(situation.externalState);
        const sledId = await freeSled(id);
        const { intendedState: intended, name } = (await harness.record(id)).instance;
        // The opposite of what the operation would write, so that a write can be seen.
        await intend(id, operation === 'stop' ? 'running' : 'stopped');
        const before = await everything(id);
        const answer = await ask(operation, id, sledId);
        const after = await everything(id);
        if (cell === 'no-op') {
          expect(answer.status).toBe(202);
          expect(instanceView.parse(answer.body)).toMatchObject({ id, run_state: situation.externalState });
          const intent = INTENT[operation] ?? 'stopped';
          expect(after).toEqual({ ...before, instance: { ...(before.instance as object), intended_state: intent } });
        } else {
          expectRefusal(answer, cell, operation, name, situation.externalState);
          expect(after).toEqual(before);
        }
        await intend(id, intended);
      });
    }
    if (situation.externalState === 'migrating') {
      test('migrate while migrating, to the same destination: no-op', async () => {
        kept ??= await situation.bring();
        const { target } = await harness.record(kept);
        const before = await everything(kept);
        const answer = await ask('migrate', kept, target?.sledId ?? '');
        expect(answer.status).toBe(202);
        expect(instanceView.parse(answer.body)).toMatchObject({
          run_state: 'migrating',
          migration_target_sled_id: target?.sledId,
        });
        expect(await everything(kept)).toEqual(before);
      });
    }
    if (cells.migrate !== 'does') {
      test(`migrate while ${situation.name}, to a sled that isn't there: the shown state is checked first`, async () => {
        kept ??= await situation.bring();
        const before = await everything(kept);
        const answer = await ask('migrate', kept, '00000000-0000-4000-8000-00000000dead');
        expect(answer.status).toBe(cells.migrate);
        expect(await everything(kept)).toEqual(before);
      });
    }
  });
}

describe('migrate while running, to a destination that can’t be', () => {
  test.each([
    ['the sled that it is on', 400, async (id: string) => (await harness.placed(id)).here.id],
    ['a sled that isn’t there', 404, async () => '00000000-0000-4000-8000-00000000dead'],
  ] as const)('%s: %i', async (_, status, choose) => {
    const id = await runningUnheld();
    const before = await everything(id);
    const answer = await ask('migrate', id, await choose(id));
    expect(answer.status).toBe(status);
    expect(errorResponse.parse(answer.body).message).not.toBe('');
    expect(await everything(id)).toEqual(before);
  });

  test('one without room: 507; one that takes no instances: 409', async () => {
    const id = await runningUnheld();
    const sledId = await freeSled(id);
    const before = await everything(id);
    await harness.client.setSledPolicy(sledId, 'non_provisionable');
    const closed = await ask('migrate', id, sledId);
    await harness.client.setSledPolicy(sledId, 'provisionable');
    await harness.database.db.execute(
      sql`UPDATE sled SET threads = greatest(reserved_threads, 1) WHERE id = ${sledId}`,
    );
    const full = await ask('migrate', id, sledId);
    await harness.database.db.execute(sql`UPDATE sled SET threads = 64 WHERE id = ${sledId}`);
    expect([closed.status, full.status]).toEqual([409, 507]);
    expect(errorResponse.parse(closed.body).message).toMatch(/name one that is in service/);
    expect(errorResponse.parse(full.body).message).toMatch(/name another sled, or make room/);
    expect(await everything(id)).toEqual(before);
  });
});
