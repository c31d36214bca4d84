/** Every rule of the doctor can fail: each violation is planted past the database's own guards, and found as just that. */
import { randomUUID } from 'node:crypto';
import { sql } from 'drizzle-orm';
import { afterAll, beforeAll, beforeEach, describe, expect, test } from 'vitest';
import { DATABASE_RULES } from '../../db/invariants/check-invariants.ts';
import { HISTORY_RULES } from '../../db/invariants/history.ts';
import { applyReport } from '../../db/transactions/apply-report.ts';
import { commitUpdate } from '../../db/transactions/commit-update.ts';
import { declareSledDead } from '../../db/transactions/declare-dead.ts';
import { examine } from '../../doctor/examine.ts';
import { findDoubleRuns, findOverlaps, readGuestRuns } from '../../doctor/witness.ts';
import { startTestDatabase, type TestDatabase } from '../support/database.ts';
import {
  claimedStart,
  migratingInstance,
  newAttempt,
  type SagaAttempt,
  startedInstance,
  unwoundAttempt,
  vmmReport,
} from '../support/saga-steps.ts';

let database: TestDatabase;
let world: World;

/** A quiet installation: one instance that runs, one that is stopped, one that ran and is stopped. */
interface World {
  readonly project: string;
  readonly here: string;
  readonly there: string;
  readonly running: SagaAttempt;
  readonly stopped: string;
  readonly ended: SagaAttempt;
}

beforeAll(async () => {
  database = await startTestDatabase();
  // The first line of defence would refuse what is to be planted.
  await database.db.execute(sql`
    DO $$ DECLARE guard record; BEGIN
      FOR guard IN SELECT conrelid::regclass AS relation, conname FROM pg_constraint WHERE contype = 'c' AND connamespace = 'public'::regnamespace LOOP
        EXECUTE format('ALTER TABLE %s DROP CONSTRAINT %I', guard.relation, guard.conname);
      END LOOP;
      FOR guard IN SELECT indexrelid::regclass AS relation FROM pg_index JOIN pg_class ON pg_class.oid = indexrelid
        WHERE indisunique AND NOT indisprimary AND relnamespace = 'public'::regnamespace LOOP
        EXECUTE format('DROP INDEX %s', guard.relation);
      END LOOP;
    END $$`);
});
afterAll(() => database?.stop());

beforeEach(async () => {
  await database.clear();
  const { db } = database;
  await db.execute(sql`INSERT INTO lease_service (last_beat_at) VALUES (now()) ON CONFLICT DO NOTHING`);
  const project = await database.addProject();
  const [here, there] = [await database.addSled(), await database.addSled()];
  const running = await startedInstance(db, await database.addInstance(project));
  const stopped = await database.addInstance(project);
  const ended = await startedInstance(db, await database.addInstance(project));
  await applyReport(db, ended.vmmId, vmmReport('destroyed', 4));
  await commitUpdate(db, ended.instanceId);
  world = { project, here: running.sledId, there: running.sledId === here ? there : here, running, stopped, ended };
});

/** Writes past every trigger of the schema; the journal's own fire all the same. */
async function plant(statement: string): Promise<void> {
  await database.db.transaction(async (transaction) => {
    await transaction.execute(sql`SET LOCAL session_replication_role = replica`);
    await transaction.execute(sql.raw(statement));
  });
}

async function look(atRest: boolean, journal: 'ignored' | 'required') {
  return (await examine({ db: database.db, atRest, journal })).findings;
}

interface Case {
  /** Brings the world to where the violation is possible, and plants it. */
  readonly plant: () => Promise<unknown>;
  /** Other rules that the same violation breaks of necessity. */
  readonly also?: string[];
}

const NOBODY = '00000000-0000-4000-8000-000000000000';
const runningInstance = () => `id = '${world.running.instanceId}'`;
const runningVmm = () => `id = '${world.running.vmmId}'`;
const migrating = () => migratingInstance(database.db, world.running, world.there);

async function unwoundStart(confirmed = true): Promise<SagaAttempt> {
  const attempt = newAttempt('start', world.stopped);
  await claimedStart(database.db, attempt);
  await unwoundAttempt(database.db, attempt, confirmed);
  return attempt;
}

const vmm = (columns: string, values: string) =>
  `INSERT INTO vmm (id, instance_id, ${columns}) VALUES ('${NOBODY}', ${values})`;

/** One case for each rule, by its name. */
const CASES: Readonly<Record<string, Case>> = {
  // Invariant 1
  'incarnated iff active VMM': {
    plant: () => plant(`UPDATE instance SET state = 'vmm' WHERE id = '${world.stopped}'`),
    also: ['charge iff incarnated', 'settled once all VMMs are gone'],
  },
  'target iff migration': {
    plant: async () => {
      const { instanceId } = await migrating();
      await plant(`UPDATE instance SET migration_id = NULL WHERE id = '${instanceId}'`);
    },
  },
  'target only while incarnated': {
    plant: () =>
      plant(
        `INSERT INTO vmm (id, instance_id, sled_id, ip, port, state, time_deleted) SELECT '${NOBODY}', '${world.stopped}', '${world.here}', '10.9.9.9', 1, 'destroyed', NULL; UPDATE instance SET target_vmm_id = '${NOBODY}' WHERE id = '${world.stopped}'`,
      ),
    also: ['target iff migration'],
  },
  'destroyed only when deleted': {
    plant: () => plant(`UPDATE instance SET state = 'destroyed' WHERE id = '${world.stopped}'`),
  },
  'links own': {
    plant: () =>
      plant(
        `UPDATE vmm SET instance_id = '${world.stopped}' WHERE ${runningVmm()}; UPDATE sled_reservation SET instance_id = '${world.stopped}' WHERE vmm_id = '${world.running.vmmId}'`,
      ),
    also: ['reservation kind as linked'],
  },
  'migration own': {
    plant: async () => {
      const { migrationId } = await migrating();
      await plant(`UPDATE migration SET instance_id = '${world.stopped}' WHERE id = '${migrationId}'`);
    },
    also: ['migration within one instance', 'migration within one instance'],
  },
  'migration within one instance': {
    plant: async () => {
      const { migrationId } = await migrating();
      await plant(`UPDATE migration SET source_vmm_id = '${world.ended.vmmId}' WHERE id = '${migrationId}'`);
    },
    also: ['migration own'],
  },
  'one link per VMM': {
    plant: () =>
      plant(
        `UPDATE instance SET state = 'vmm', active_vmm_id = '${world.running.vmmId}' WHERE id = '${world.stopped}'`,
      ),
    also: ['links own', 'charge iff incarnated'],
  },
  'failed iff reason': { plant: () => plant(`UPDATE vmm SET failure_reason = 'a reason' WHERE ${runningVmm()}`) },
  'VMM placed': { plant: () => plant(`UPDATE vmm SET port = NULL WHERE ${runningVmm()}`) },
  'VMM owned': {
    plant: () =>
      plant(
        vmm(
          'state, sled_id, ip, port, time_deleted',
          `'${NOBODY}', 'destroyed', '${world.here}', '10.9.9.9', 1, now()`,
        ),
      ),
  },
  'unwound by a saga': { plant: () => plant(vmm('state, time_deleted', `'${world.stopped}', 'saga_unwound', now()`)) },
  'address of one VMM': {
    plant: async () => {
      const other = await startedInstance(database.db, world.stopped);
      await plant(
        `UPDATE vmm SET (ip, port) = (SELECT ip, port FROM vmm WHERE ${runningVmm()}) WHERE id = '${other.vmmId}'`,
      );
    },
  },
  'one reservation of a kind': {
    plant: async () => {
      const { vmmId } = await migrating();
      await plant(`UPDATE sled_reservation SET kind = 'active' WHERE vmm_id = '${vmmId}'`);
    },
    also: ['reservation kind as linked'],
  },
  'reservation of its VMM': {
    plant: () => plant(`UPDATE vmm SET sled_id = '${world.there}' WHERE ${runningVmm()}`),
  },
  'reservation kind as linked': {
    plant: async () => {
      await migrating();
      await plant(`DELETE FROM sled_reservation WHERE vmm_id = '${world.running.vmmId}'; UPDATE sled SET reserved_threads = 0, reserved_memory_bytes = 0 WHERE id = '${world.here}';
        UPDATE sled_reservation SET kind = 'active' WHERE instance_id = '${world.running.instanceId}'`);
    },
    also: ['living VMM reserved'],
  },
  'sled sums': {
    plant: () => plant(`UPDATE sled SET reserved_threads = reserved_threads + 1 WHERE id = '${world.here}'`),
  },
  'sled not exceeded': { plant: () => plant(`UPDATE sled SET threads = 1 WHERE id = '${world.here}'`) },
  'project sums': { plant: () => plant(`UPDATE project SET charged_cpus = 1`) },
  'charge of its project': {
    plant: async () => {
      const other = await database.addProject();
      await plant(`UPDATE provisioning_charge SET project_id = '${other}';
        UPDATE project SET charged_cpus = 0, charged_memory_bytes = 0 WHERE id = '${world.project}';
        UPDATE project SET (charged_cpus, charged_memory_bytes) = (SELECT sum(cpus), sum(memory_bytes) FROM provisioning_charge) WHERE id = '${other}'`);
    },
  },
  'quota not exceeded': {
    plant: async () => {
      await plant(`UPDATE project SET quota_cpus = 3`);
      await plant(
        `/* claim-start */ INSERT INTO provisioning_charge VALUES ('${world.stopped}', '${world.project}', 2, 1); UPDATE project SET charged_cpus = charged_cpus + 2`,
      );
      await plant(`/* finish-unwind */ DELETE FROM provisioning_charge WHERE instance_id = '${world.stopped}'`);
      await plant(
        `/* claim-start */ INSERT INTO provisioning_charge VALUES ('${world.stopped}', '${world.project}', 2, 1)`,
      );
    },
  },
  'name free': { plant: () => plant(`UPDATE instance SET name = 'the-same'`) },
  // Invariant 2
  'generation positive': { plant: () => plant(`UPDATE instance SET state_generation = 0 WHERE ${runningInstance()}`) },
  'instance generation plus one': {
    plant: () => plant(`UPDATE instance SET state_generation = state_generation + 2 WHERE ${runningInstance()}`),
  },
  'VMM generation rises': {
    plant: () => plant(`UPDATE vmm SET state_generation = state_generation - 1 WHERE ${runningVmm()}`),
  },
  'migration generation rises': {
    plant: async () => {
      const { migrationId } = await migrating();
      await plant(`UPDATE migration SET source_state = 'failed' WHERE id = '${migrationId}'`);
    },
  },
  'gone stays gone': {
    plant: () =>
      plant(
        `UPDATE vmm SET state = 'running', state_generation = 9, time_deleted = NULL WHERE id = '${world.ended.vmmId}'`,
      ),
  },
  // Invariant 3
  'only the update clears ids': {
    plant: async () => {
      await migrating();
      await plant(
        `/* finish-unwind */ UPDATE instance SET target_vmm_id = NULL, migration_id = NULL, state_generation = state_generation + 1 WHERE ${runningInstance()}`,
      );
    },
    also: ['only the update clears ids'],
  },
  'only start sets active': {
    plant: async () => {
      const { vmmId } = await migrating();
      await plant(
        `/* claim-start */ UPDATE instance SET active_vmm_id = '${vmmId}', state_generation = state_generation + 1 WHERE ${runningInstance()}`,
      );
    },
  },
  'only migrate sets target': {
    plant: async () => {
      await migrating();
      await plant(
        `/* claim-migration */ UPDATE instance SET target_vmm_id = '${NOBODY}', state_generation = state_generation + 1 WHERE ${runningInstance()}`,
      );
    },
  },
  'state written by its writers': {
    plant: () =>
      plant(
        `/* claim-start */ UPDATE instance SET state = 'failed', state_generation = state_generation + 1 WHERE id = '${world.stopped}'`,
      ),
  },
  'only an unwind writes saga_unwound': {
    plant: () =>
      plant(`/* apply-report */ UPDATE vmm SET state = 'saga_unwound', state_generation = 9 WHERE ${runningVmm()}`),
  },
  // Invariant 5
  'succeeded call not unwound': {
    plant: () => plant(`UPDATE vmm SET unwinding_since = now() WHERE ${runningVmm()}`),
  },
  'outcome written once': {
    plant: () => plant(`UPDATE operation SET succeeded = false WHERE id = '${world.running.operationId}'`),
  },
  'charged and refunded by its writers': {
    plant: () =>
      plant(`/* apply-report */ DELETE FROM provisioning_charge WHERE instance_id = '${world.running.instanceId}'`),
  },
  // Invariant 6
  'unwound row final': {
    plant: async () => {
      const { vmmId } = await unwoundStart();
      await plant(`/* apply-report */ UPDATE vmm SET state_generation = 99 WHERE id = '${vmmId}'`);
    },
  },
  'only what is over is forgotten': {
    plant: async () => {
      await plant(`/* reap-expired */ DELETE FROM vmm WHERE id = '${world.ended.vmmId}'`);
      await plant(`/* reap-expired */ DELETE FROM operation WHERE id = '${world.ended.operationId}'`);
      await plant(`/* reap-expired */ DELETE FROM vmm WHERE ${runningVmm()}`);
    },
  },
  'unwinding row closed to others': {
    plant: async () => {
      await plant(`UPDATE vmm SET unwinding_since = now() WHERE ${runningVmm()}`);
      await plant(
        `/* fail-vmm */ UPDATE vmm SET state = 'failed', failure_reason = 'late', state_generation = 9 WHERE ${runningVmm()}`,
      );
    },
  },
  'unwound attempt takes nothing': {
    plant: async () => {
      const { vmmId, instanceId } = await unwoundStart();
      await plant(
        `/* claim-start */ INSERT INTO sled_reservation VALUES ('${vmmId}', '${instanceId}', '${world.here}', 1, 1, 'active')`,
      );
    },
  },
  // Invariant 4
  'nobody on a dead sled': {
    plant: () =>
      plant(`UPDATE sled SET time_declared_dead = now(), declared_dead_by = 'lease' WHERE id = '${world.here}'`),
  },
  'failed by its writers': {
    plant: () =>
      plant(`UPDATE vmm SET state = 'failed', failure_reason = 'a whim', state_generation = 9 WHERE ${runningVmm()}`),
  },
  'lease whole': { plant: () => plant(`UPDATE sled SET lease_ms = 30000 WHERE id = '${world.here}'`) },
  'death whole': {
    plant: () => plant(`UPDATE sled SET declared_dead_by = 'operator' WHERE id = '${world.there}'`),
  },
  'lapsed lease judged': {
    plant: () =>
      plant(`UPDATE lease_service SET last_beat_at = now();
        UPDATE sled SET lease_ms = 30000, fencing_since = now() - interval '1 day', lease_renewed_at = now() - interval '1 hour' WHERE id = '${world.here}'`),
  },
  'leases can be judged': { plant: () => plant(`DELETE FROM lease_service`) },
  // Invariant 7
  'unwound target never had the guest': {
    plant: async () => {
      const { vmmId } = await migrating();
      await plant(`UPDATE vmm SET state = 'saga_unwound', unwinding_since = now() WHERE id = '${vmmId}'; UPDATE migration SET target_state = 'completed';
        UPDATE sled_reservation SET kind = 'tombstoned' WHERE vmm_id = '${vmmId}'`);
    },
    also: ['succeeded call not unwound'],
  },
  'no unwind past the point of no return': {
    plant: async () => {
      const { vmmId } = await migrating();
      await plant(`/* begin-unwind */ UPDATE vmm SET unwinding_since = now() WHERE id = '${vmmId}'`);
    },
  },
  // Invariant 8
  'living VMM reserved': {
    plant: () => plant(`DELETE FROM sled_reservation; UPDATE sled SET reserved_threads = 0, reserved_memory_bytes = 0`),
  },
  'living VMM not deleted': {
    plant: () => plant(`UPDATE vmm SET state = 'running', state_generation = 9 WHERE id = '${world.ended.vmmId}'`),
  },
  'deleted VMM holds nothing': {
    plant: () =>
      plant(`INSERT INTO sled_reservation VALUES ('${world.ended.vmmId}', '${world.ended.instanceId}', (SELECT sled_id FROM vmm WHERE id = '${world.ended.vmmId}'), 1, 1, 'tombstoned');
      UPDATE sled SET reserved_threads = reserved_threads + 1, reserved_memory_bytes = reserved_memory_bytes + 1 WHERE id = (SELECT sled_id FROM vmm WHERE id = '${world.ended.vmmId}')`),
  },
  'charge iff incarnated': {
    plant: () =>
      plant(`DELETE FROM provisioning_charge; UPDATE project SET charged_cpus = 0, charged_memory_bytes = 0`),
  },
  'reservation iff linked or living': {
    plant: () =>
      plant(`UPDATE vmm SET time_deleted = NULL WHERE id = '${world.ended.vmmId}'; INSERT INTO sled_reservation VALUES ('${world.ended.vmmId}', '${world.ended.instanceId}', (SELECT sled_id FROM vmm WHERE id = '${world.ended.vmmId}'), 1, 1, 'tombstoned');
      UPDATE sled SET reserved_threads = reserved_threads + 1, reserved_memory_bytes = reserved_memory_bytes + 1 WHERE id = (SELECT sled_id FROM vmm WHERE id = '${world.ended.vmmId}')`),
    also: ['gone VMM deleted'],
  },
  'gone VMM deleted': { plant: () => unwoundStart() },
  'migration cleared': {
    plant: async () => {
      await migrating();
      await plant(`UPDATE migration SET source_state = 'failed', source_generation = 9`);
    },
  },
  'leftover ended': {
    plant: () =>
      plant(`${vmm('sled_id, ip, port, state', `'${world.stopped}', '${world.here}', '10.9.9.9', 1, 'running'`)}; INSERT INTO sled_reservation VALUES ('${NOBODY}', '${world.stopped}', '${world.here}', 1, 1, 'tombstoned');
      UPDATE sled SET reserved_threads = reserved_threads + 1, reserved_memory_bytes = reserved_memory_bytes + 1 WHERE id = '${world.here}'`),
  },
  // Invariant 9
  'deleted instance destroyed': {
    plant: () => plant(`UPDATE instance SET time_deleted = now() WHERE id = '${world.stopped}'`),
  },
  'settled once all VMMs are gone': {
    plant: () => applyReport(database.db, world.running.vmmId, vmmReport('destroyed', 9)),
    also: ['gone VMM deleted'],
  },
  'created or unwound': {
    plant: async () => {
      await claimedStart(database.db, newAttempt('start', world.stopped));
      await plant(`UPDATE operation SET succeeded = true, time_ended = now() WHERE time_ended IS NULL`);
    },
  },
  'stop carried': { plant: () => plant(`UPDATE instance SET intended_state = 'stopped' WHERE ${runningInstance()}`) },
  'operation ended': {
    plant: () =>
      plant(
        `INSERT INTO operation (id, kind, instance_id, workflow_id) VALUES ('${randomUUID()}', 'start', '${world.stopped}', 'w')`,
      ),
  },
  'nobody on an expunged sled': {
    plant: () => plant(`UPDATE sled SET policy = 'expunged', time_expunged = now() WHERE id = '${world.here}'`),
  },
  'an expunge comes to its end': {
    plant: () =>
      plant(
        `UPDATE sled SET policy = 'no_provision', expunging_since = now() - interval '2 minutes' WHERE id = '${world.here}'`,
      ),
  },
  // Invariant 10
  'unwound holds nothing': {
    plant: async () => {
      const { vmmId } = await unwoundStart(false);
      await plant(`UPDATE sled_reservation SET kind = 'active' WHERE vmm_id = '${vmmId}'`);
    },
    also: ['gone VMM deleted'],
  },
  'unwound migration is over': {
    plant: async () => {
      const { vmmId } = await migrating();
      await plant(
        `UPDATE vmm SET state = 'saga_unwound', unwinding_since = now() WHERE id = '${vmmId}'; UPDATE sled_reservation SET kind = 'tombstoned' WHERE vmm_id = '${vmmId}'`,
      );
    },
    also: ['succeeded call not unwound'],
  },
  'failed call unwound': {
    plant: () =>
      plant(`UPDATE operation SET succeeded = false, error = '{}' WHERE id = '${world.running.operationId}'`),
  },
};

test('a quiet installation has no finding, also while a migration and an unwound start wait for the update', async () => {
  expect(await look(true, 'required')).toEqual([]);
  await migrating();
  await unwoundStart();
  expect(await look(false, 'required')).toEqual([]);
});

test('that a sled is declared dead is no finding where a start on it was unwound, whose row waits for the sled’s word', async () => {
  const { vmmId } = await unwoundStart(false);
  const found = await database.db.execute(sql`SELECT sled_id FROM vmm WHERE id = ${vmmId}`);
  await declareSledDead(database.db, String(found.rows[0]?.sled_id));
  const findings = await look(false, 'required');
  expect(findings.filter(({ rule }) => rule === 'unwound row final')).toEqual([]);
});

test('there is a case for every rule', () => {
  expect(Object.keys(CASES).sort()).toEqual(DATABASE_RULES.map((rule) => rule.name).sort());
});

describe('a planted violation is found, and nothing else:', () => {
  test.each(DATABASE_RULES.map((rule) => [`${rule.invariant}: ${rule.name}`, rule] as const))('%s', async (_, rule) => {
    const one = CASES[rule.name];
    await one?.plant();
    const history = HISTORY_RULES.includes(rule);
    const found = (await look(rule.holds === 'at rest', history ? 'required' : 'ignored')).filter(
      (finding) => !history || HISTORY_RULES.some((other) => other.name === finding.rule),
    );
    // At any moment, what is only wrong at rest is not reported.
    const also = (one?.also ?? []).filter(
      (name) => rule.holds === 'at rest' || DATABASE_RULES.find((other) => other.name === name)?.holds === 'always',
    );
    expect(found.map((finding) => finding.rule).sort()).toEqual([rule.name, ...also].sort());
    for (const finding of found) expect(finding.message).toMatch(/^[^\n]+$/);
    if (rule.holds === 'at rest')
      expect((await look(false, 'ignored')).map((finding) => finding.rule)).not.toContain(rule.name);
  });
});

describe('the witness of the guests', () => {
  const at = (ms: number) => new Date(ms).toISOString();
  const entry = (vmm_id: string, event: 'began' | 'ceased', ms: number) => ({
    instance_id: 'i',
    vmm_id,
    event,
    reason: '',
    time: at(ms),
  });
  test('two that ran at once are found', () => {
    const log = [entry('a', 'began', 1), entry('b', 'began', 5), entry('a', 'ceased', 6), entry('b', 'ceased', 9)];
    expect(findDoubleRuns(log)).toMatchObject([{ invariant: 4, instanceId: 'i' }]);
  });
  test('one after the other, in the same millisecond, is a hand-over; so is a pause and a return', () => {
    const log = [
      entry('a', 'began', 1),
      entry('a', 'ceased', 5),
      entry('b', 'began', 5),
      entry('b', 'ceased', 7),
      entry('a', 'began', 7),
    ];
    expect(findDoubleRuns(log)).toEqual([]);
  });
  test('an end that is logged twice counts once: whoever wrote it first was there', () => {
    const log = [entry('a', 'began', 1), entry('a', 'ceased', 3), entry('a', 'ceased', 9), entry('b', 'began', 5)];
    expect(findDoubleRuns(log)).toEqual([]);
  });
  test('a VMM that began twice without an end in between ran twice', () => {
    const log = [entry('a', 'began', 1), entry('a', 'began', 4), entry('a', 'ceased', 5)];
    expect(findDoubleRuns(log)).toMatchObject([{ invariant: 4, instanceId: 'i' }]);
  });
  test('by the monotonic clock a clock that was set back hides nothing, and an entry without it is an error', () => {
    const log = [
      { ...entry('a', 'began', 10), monotonic_ms: 10 },
      { ...entry('b', 'began', 20), monotonic_ms: 15 },
      { ...entry('a', 'ceased', 15), monotonic_ms: 18 },
    ];
    expect(findOverlaps(readGuestRuns(log, 'time of day'))).toEqual([]);
    expect(findOverlaps(readGuestRuns(log, 'monotonic'))).toHaveLength(1);
    expect(() => readGuestRuns([entry('a', 'began', 1)], 'monotonic')).toThrow(/no monotonic time/);
  });
});
