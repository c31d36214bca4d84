/** A start that unwinds, a migration, an update: each from the outside, one at a time. */
import { MooringApiError, MooringClient } from '../../client/mooring-client.ts';
import { waitUntil } from '../../platform/host/child-process.ts';
import { type Running, settle } from '../system/arena.ts';
import { inParallel, starter } from './start.ts';

/** How often the database is looked at for the end of what nobody waits for, in milliseconds. */
const LOOK_EVERY_MS = 1;

/** Has every sled refuse to run guests, while `act` runs. */
async function whileSledsRefuse<T>(running: Running, act: () => Promise<T>): Promise<T> {
  const plant = { call: 'state:running', act: { type: 'refuse', status: 409 } };
  const headers = { 'content-type': 'application/json' };
  for (const url of running.sledUrls) {
    const answer = await fetch(`${url}/test/faults`, { method: 'POST', headers, body: JSON.stringify(plant) });
    if (!answer.ok) throw new Error(`a fault could not be planted: ${await answer.text()}`);
  }
  try {
    return await act();
  } finally {
    for (const url of running.sledUrls) await fetch(`${url}/test/faults`, { method: 'DELETE' });
  }
}

/** Starts that their sled refuses to run: milliseconds until the caller has the error. Throws when one succeeds. */
export async function unwoundStarts(running: Running, instances: readonly string[]): Promise<number[]> {
  const start = starter(running);
  return whileSledsRefuse(running, () =>
    inParallel(instances, 1, async (instanceId) => {
      const outcome = await start(instanceId).catch((error: unknown) => error);
      if (!(outcome instanceof MooringApiError)) throw outcome ?? new Error('a start succeeded that its sled refused');
    }),
  );
}

/** Waits until an update saga has nothing more to do for any instance. */
export async function restAll(running: Running): Promise<void> {
  await settle(running);
  await waitUntil(
    async () => {
      const { rows } = await running.pool.query<{ open: number }>(`
        SELECT (SELECT count(*) FROM vmm WHERE time_deleted IS NULL AND state IN ('destroyed', 'failed', 'saga_unwound'))::int
          + (SELECT count(*) FROM instance WHERE migration_id IS NOT NULL)::int AS open`);
      return rows[0]?.open === 0;
    },
    'the updates did not come to rest',
    60_000,
    5,
  );
}

/** Starts instances and waits until they run. */
export async function makeRunning(running: Running, count: number): Promise<string[]> {
  const instances = running.take(count);
  await inParallel(instances, 8, starter(running));
  await settle(running);
  return instances;
}

export interface MigrationTimes {
  /** Milliseconds until the caller is answered: the destination has accepted. */
  readonly acceptedMs: number[];
  /** Milliseconds until the instance's record names the new VMM and nothing else. */
  readonly movedMs: number[];
}

/** A sled that a running instance is not on, by its id. */
async function anotherSled(running: Running, instanceId: string): Promise<string> {
  const { rows } = await running.pool.query<{ id: string }>(
    `SELECT id FROM sled WHERE id <> (SELECT sled_id FROM vmm JOIN instance ON active_vmm_id = vmm.id WHERE instance.id = $1) ORDER BY id LIMIT 1`,
    [instanceId],
  );
  return rows[0]?.id ?? '';
}

async function hasMoved(running: Running, instanceId: string, destination: string): Promise<void> {
  await waitUntil(
    async () => {
      const moved = await running.pool.query(
        `SELECT 1 FROM instance JOIN vmm ON active_vmm_id = vmm.id WHERE instance.id = $1 AND target_vmm_id IS NULL AND vmm.sled_id = $2`,
        [instanceId, destination],
      );
      return moved.rows.length > 0;
    },
    `instance ${instanceId} was never moved`,
    60_000,
    LOOK_EVERY_MS,
  );
}

/** Migrates running instances to another sled each. */
export async function migrations(running: Running, instances: readonly string[]): Promise<MigrationTimes> {
  const client = new MooringClient({ url: running.url });
  const acceptedMs: number[] = [];
  const movedMs = await inParallel(instances, 1, async (instanceId) => {
    const destination = await anotherSled(running, instanceId);
    const began = performance.now();
    await client.migrateInstance(instanceId, destination);
    acceptedMs.push(performance.now() - began);
    await hasMoved(running, instanceId, destination);
  });
  return { acceptedMs, movedMs };
}

/**
 * A migration that is counted until its caller is answered. The sleds hold their reports until then: how many of them come
 * before the answer would be luck.
 */
export function acceptedMigration(
  running: Running,
  instanceId: string,
): Record<'prepare' | 'act' | 'after', () => Promise<void>> {
  const client = new MooringClient({ url: running.url });
  let destination = '';
  return {
    async prepare() {
      destination = await anotherSled(running, instanceId);
      await running.holdReports(true);
    },
    async act() {
      await client.migrateInstance(instanceId, destination);
    },
    async after() {
      await running.holdReports(false);
      await hasMoved(running, instanceId, destination);
      await restAll(running);
    },
  };
}

/**
 * Reports a running instance's VMM as ended, in its sled's place, and waits until its id is cleared. Returns what has the sled
 * forget the VMM, of whose end it knows nothing: what is left there would hold the port that a later VMM gets.
 */
export async function reportEnded(running: Running, instanceId: string): Promise<() => Promise<void>> {
  const { rows } = await running.pool.query<{ id: string; gen: string; sled: string }>(
    `SELECT vmm.id, vmm.state_generation AS gen, sled.address AS sled FROM vmm JOIN instance ON active_vmm_id = vmm.id
     JOIN sled ON sled.id = vmm.sled_id WHERE instance.id = $1`,
    [instanceId],
  );
  const state = { state: 'destroyed', gen: Number(rows[0]?.gen) + 1, time_updated: new Date().toISOString() };
  const answer = await fetch(`${running.url}/vmms/${rows[0]?.id}`, {
    method: 'PUT',
    headers: { 'content-type': 'application/json' },
    body: JSON.stringify({ vmm_state: state }),
  });
  if (answer.status !== 204) throw new Error(`a report was answered with ${answer.status}: ${await answer.text()}`);
  await waitUntil(
    async () =>
      (await running.pool.query('SELECT 1 FROM instance WHERE id = $1 AND active_vmm_id IS NULL', [instanceId])).rows
        .length > 0,
    `the id of instance ${instanceId} was never cleared`,
    60_000,
    LOOK_EVERY_MS,
  );
  return async () => {
    await fetch(`http://${rows[0]?.sled}/vmms/${rows[0]?.id}`, { method: 'DELETE' });
  };
}

/** Reports running instances' VMMs as ended: milliseconds from the report's arrival to the cleared id. */
export async function updates(running: Running, instances: readonly string[]): Promise<number[]> {
  const forget: (() => Promise<void>)[] = [];
  const times = await inParallel(instances, 1, async (instanceId) => {
    forget.push(await reportEnded(running, instanceId));
  });
  for (const one of forget) await one();
  return times;
}
