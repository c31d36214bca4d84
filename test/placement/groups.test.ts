import { sql } from 'drizzle-orm';
import { afterAll, beforeAll, beforeEach, describe, expect, test } from 'vitest';
import { violatedConstraint } from '../../db/errors.ts';
import { explainNoSled, pickSled } from '../../db/queries/pick-sled.ts';
import { deleteInstance } from '../../db/transactions/delete-instance.ts';
import { deleteProject } from '../../db/transactions/delete-project.ts';
import { expungeSled } from '../../db/transactions/expunge-sled.ts';
import { setQuota } from '../../db/transactions/set-quota.ts';
import { Refusal } from '../../model/refusal.ts';
import { AFFINITY_KINDS, AFFINITY_POLICIES } from '../../model/states.ts';
import { GIBIBYTE, startTestDatabase, type TestDatabase } from '../support/placement-database.ts';

let database: TestDatabase;
let project: string;
beforeAll(async () => {
  database = await startTestDatabase();
});
afterAll(() => database?.close());
beforeEach(async () => {
  await database.empty();
  project = await database.project();
});

/** What a call that must be refused was refused with. */
async function refusal(call: Promise<unknown>): Promise<Refusal> {
  const outcome = await call.then(
    () => null,
    (error: unknown) => error,
  );
  if (outcome instanceof Refusal) return outcome;
  throw outcome ?? new Error('it was not refused');
}

async function sleds(count: number, threads = 64): Promise<string[]> {
  return Promise.all(Array.from({ length: count }, () => database.sled({ threads })));
}

async function members(count: number): Promise<string[]> {
  const made: string[] = [];
  for (let n = 0; n < count; n++) made.push(await database.instance(project));
  return made;
}

async function places(instances: readonly string[]): Promise<string[]> {
  return (await Promise.all(instances.map((id) => database.sledsOf(id)))).flat();
}

describe('anti-affinity', () => {
  for (const policy of AFFINITY_POLICIES) {
    for (const how of ['one after the other', 'all at once']) {
      test(`${policy}: as many members as sleds, started ${how}, are on a sled each`, async () => {
        await sleds(6);
        const group = await members(6);
        await database.group(project, 'anti_affinity', policy, group);
        if (how === 'all at once') {
          await Promise.all(group.map((id) => database.start(id)));
          // Without `fail` nothing serializes starts at the same moment: a preference is honoured as far as it is known.
          if (policy === 'fail') expect(new Set(await places(group)).size).toBe(6);
        } else {
          for (const id of group) await database.start(id);
          expect(new Set(await places(group)).size).toBe(6);
        }
        expect(await database.broken()).toEqual([]);
      });
    }
  }

  test('fail: one more member than sleds, all at once: exactly one 507 that names the group', async () => {
    await sleds(4);
    const group = await members(5);
    await database.group(project, 'anti_affinity', 'fail', group, 'replicas');
    const outcomes = await Promise.all(
      group.map((id) =>
        database.start(id).then(
          () => null,
          (error: unknown) => error,
        ),
      ),
    );
    const refused = outcomes.filter((outcome) => outcome !== null);
    expect(refused).toHaveLength(1);
    expect(refused[0]).toMatchObject({ status: 507 });
    expect(String(refused[0])).toMatch(
      /anti-affinity group "replicas" \(policy fail\) forbids every sled that has room/,
    );
    expect(new Set(await places(group)).size).toBe(4);
    expect(await database.broken()).toEqual([]);
  });

  test('fail: whatever a placement had read, the database takes no reservation beside another member', async () => {
    await sleds(2);
    const [first, second] = await members(2);
    if (first === undefined || second === undefined) throw new Error('two members were made');
    await database.group(project, 'anti_affinity', 'fail', [first, second]);
    const { sledId } = await database.start(first);
    await database.start(second);
    const moved = database.db.execute(
      sql`UPDATE sled_reservation SET sled_id = ${sledId} WHERE instance_id = ${second}`,
    );
    const outcome = await moved.then(() => null, violatedConstraint);
    expect(outcome).toBe('affinity_group_forbids');
  });

  test('allow: more members than sleds are spread evenly', async () => {
    await sleds(3);
    const group = await members(9);
    await database.group(project, 'anti_affinity', 'allow', group);
    for (const id of group) await database.start(id);
    const count = new Map<string, number>();
    for (const sled of await places(group)) count.set(sled, (count.get(sled) ?? 0) + 1);
    expect([...count.values()]).toEqual([3, 3, 3]);
  });

  test('fail: a migration to the sled of another member is 507 and names the group; to a free one it goes ahead', async () => {
    await sleds(3);
    const group = await members(2);
    await database.group(project, 'anti_affinity', 'fail', group, 'apart');
    for (const id of group) {
      await database.start(id);
      await database.runs(id);
    }
    const [first = '', second = ''] = group;
    const [taken = ''] = await database.sledsOf(second);
    const [here = ''] = await database.sledsOf(first);
    const error = await refusal(database.migrate(first, taken));
    expect(error.status).toBe(507);
    expect(error.message).toMatch(/anti-affinity group "apart" \(policy fail\) forbids sled/);
    const free = (await database.db.execute(sql`SELECT id FROM sled WHERE id NOT IN (${taken}, ${here})`)).rows[0]?.id;
    expect((await database.migrate(first, String(free))).outcome).toBe('claimed');
    expect(await database.broken()).toEqual([]);
  });

  test('allow: a migration to the sled of another member goes ahead', async () => {
    await sleds(2);
    const group = await members(2);
    await database.group(project, 'anti_affinity', 'allow', group);
    for (const id of group) {
      await database.start(id);
      await database.runs(id);
    }
    const [first = '', second = ''] = group;
    const [taken = ''] = await database.sledsOf(second);
    expect((await database.migrate(first, taken)).outcome).toBe('claimed');
  });

  test('fail: both sleds of a migrating member are closed to the others', async () => {
    const [one = '', two = ''] = await sleds(2);
    const group = await members(2);
    await database.group(project, 'anti_affinity', 'fail', group);
    const [first = '', second = ''] = group;
    const { sledId } = await database.start(first);
    await database.runs(first);
    await database.migrate(first, sledId === one ? two : one);
    expect((await refusal(database.start(second))).status).toBe(507);
  });

  test('fail: a start and a migration that want the last free sled at once: one has it, the other gets the reason', async () => {
    for (let round = 0; round < 8; round++) {
      await database.empty();
      project = await database.project();
      const [one = '', two = ''] = await sleds(2);
      const group = await members(2);
      await database.group(project, 'anti_affinity', 'fail', group, 'apart');
      const [first = '', second = ''] = group;
      const { sledId } = await database.start(first);
      await database.runs(first);
      const outcomes = await Promise.allSettled([
        database.migrate(first, sledId === one ? two : one),
        database.start(second),
      ]);
      const lost = outcomes.filter((outcome) => outcome.status === 'rejected');
      expect(lost).toHaveLength(1);
      expect(lost[0]?.reason).toMatchObject({ status: 507 });
      expect(String(lost[0]?.reason)).toMatch(/"apart"/);
      expect(await database.broken()).toEqual([]);
    }
  });
});

describe('affinity', () => {
  for (const policy of AFFINITY_POLICIES) {
    test(`${policy}: members are placed together`, async () => {
      await sleds(5);
      const group = await members(5);
      await database.group(project, 'affinity', policy, group);
      for (const id of group) await database.start(id);
      expect(new Set(await places(group)).size).toBe(1);
    });
  }

  test('fail: members started all at once are together', async () => {
    await sleds(5);
    const group = await members(8);
    await database.group(project, 'affinity', 'fail', group);
    await Promise.all(group.map((id) => database.start(id)));
    const taken = await places(group);
    expect(taken).toHaveLength(8);
    expect(new Set(taken).size).toBe(1);
    expect(await database.broken()).toEqual([]);
  });

  for (const policy of AFFINITY_POLICIES) {
    test(`${policy}: when their sled is full, ${policy === 'fail' ? '507 names the group' : 'the next goes elsewhere'}`, async () => {
      await sleds(2, 2);
      const group = await members(3);
      await database.group(project, 'affinity', policy, group, 'together');
      const [first = '', second = '', third = ''] = group;
      await database.start(first);
      await database.start(second);
      if (policy === 'fail') {
        const error = await refusal(database.start(third));
        expect(error.status).toBe(507);
        expect(error.message).toMatch(/affinity group "together" \(policy fail\) forbids every sled that has room/);
      } else await database.start(third);
      expect(new Set(await places(group)).size).toBe(policy === 'fail' ? 1 : 2);
    });
  }

  test('fail: a member can’t be migrated away from the others', async () => {
    const [one = '', two = ''] = await sleds(2);
    const group = await members(2);
    await database.group(project, 'affinity', 'fail', group, 'together');
    const [first = '', second = ''] = group;
    const { sledId } = await database.start(first);
    await database.runs(first);
    await database.start(second);
    const error = await refusal(database.migrate(first, sledId === one ? two : one));
    expect(error.status).toBe(507);
    expect(error.message).toMatch(/affinity group "together" \(policy fail\) forbids sled/);
  });

  test('fail: the only member that runs can be migrated; until it has arrived no other can be with it', async () => {
    const [one = '', two = ''] = await sleds(2);
    const group = await members(2);
    await database.group(project, 'affinity', 'fail', group, 'together');
    const [first = '', second = ''] = group;
    const { sledId } = await database.start(first);
    await database.runs(first);
    expect((await database.migrate(first, sledId === one ? two : one)).outcome).toBe('claimed');
    expect((await refusal(database.start(second))).message).toMatch(/"together"/);
  });
});

describe('both at once', () => {
  test('what one group with allow wants and another doesn’t counts as neither', async () => {
    const [one = ''] = await sleds(1);
    const [anchor = '', placed = ''] = await members(2);
    await database.group(project, 'affinity', 'allow', [anchor, placed]);
    await database.group(project, 'anti_affinity', 'allow', [anchor, placed]);
    await database.start(anchor);
    // An empty sled is less loaded: with the wish for `one` cancelled, load decides.
    const two = await database.sled({ threads: 64 });
    await database.db.execute(sql`UPDATE sled SET threads = 2 WHERE id = ${one}`);
    expect((await database.start(placed)).sledId).toBe(two);
  });

  test('rules before wishes: a sled that affinity wants and anti-affinity forbids is not taken', async () => {
    await sleds(2);
    const [wanted = '', forbidden = '', placed = ''] = await members(3);
    const { sledId } = await database.start(wanted);
    await database.db.execute(sql`UPDATE sled SET policy = 'no_provision' WHERE id <> ${sledId}`);
    await database.start(forbidden);
    await database.db.execute(sql`UPDATE sled SET policy = 'in_service'`);
    // Members of instances that run already can't be added: the rows are written as they would have been before.
    await database.db.execute(sql`ALTER TABLE affinity_group_member DISABLE TRIGGER affinity_group_member_guard`);
    await database.group(project, 'affinity', 'allow', [wanted, placed]);
    await database.group(project, 'anti_affinity', 'fail', [forbidden, placed]);
    await database.db.execute(sql`ALTER TABLE affinity_group_member ENABLE TRIGGER affinity_group_member_guard`);
    expect((await database.start(placed)).sledId).not.toBe(sledId);
  });

  test('two groups with fail that contradict each other: 507 that names both', async () => {
    await sleds(2);
    const [anchor = '', placed = ''] = await members(2);
    await database.group(project, 'affinity', 'fail', [anchor, placed], 'together');
    await database.group(project, 'anti_affinity', 'fail', [anchor, placed], 'apart');
    await database.start(anchor);
    const error = await refusal(database.start(placed));
    expect(error.status).toBe(507);
    expect(error.message).toMatch(/"together".*"apart"|"apart".*"together"/);
    expect(await database.broken()).toEqual([]);
  });
});

describe('who may be a member', () => {
  for (const kind of AFFINITY_KINDS) {
    test(`${kind}: an instance of another project, one that is placed, one that is a member already: refused`, async () => {
      await sleds(1);
      const [placed = '', member = ''] = await members(2);
      const stranger = await database.instance(await database.project());
      await database.start(placed);
      expect((await refusal(database.group(project, kind, 'fail', [stranger]))).message).toMatch(/own project/);
      const busy = await refusal(database.group(project, kind, 'fail', [placed]));
      expect([busy.status, busy.message]).toEqual([400, expect.stringMatching(/stop it first/)]);
      const twice = await refusal(database.group(project, kind, 'fail', [member, member]));
      expect([twice.status, twice.code]).toEqual([400, 'ObjectAlreadyExists']);
    });

    test(`${kind}: 32 members a group and 16 groups an instance, also when many join at once`, async () => {
      const many = await members(33);
      const full = await refusal(database.group(project, kind, 'allow', many));
      expect(full.message).toMatch(/32 members/);
      const [one = ''] = many;
      for (let n = 0; n < 15; n++) await database.group(project, kind, 'allow', [one]);
      const over = await refusal(database.group(project, kind, 'allow', [one]));
      expect(over.message).toMatch(/16 /);

      const [two = ''] = await members(1);
      const joined = await Promise.allSettled(
        Array.from({ length: 20 }, () => database.group(project, kind, 'allow', [two])),
      );
      expect(joined.filter((outcome) => outcome.status === 'fulfilled')).toHaveLength(16);
    });
  }

  test('an instance that starts while it joins: the start honours the group, or the join is refused', async () => {
    for (let round = 0; round < 10; round++) {
      await database.empty();
      project = await database.project();
      await sleds(1);
      const [first = '', second = ''] = await members(2);
      const group = await database.group(project, 'anti_affinity', 'fail', [first], 'apart');
      await database.start(first);
      await Promise.allSettled([
        database.start(second),
        database.db.execute(sql`INSERT INTO affinity_group_member VALUES (${group}, ${second})`),
      ]);
      expect(await database.broken()).toEqual([]);
    }
  });

  test('a deleted instance leaves its groups, and a project with groups is not deleted', async () => {
    const [member = ''] = await members(1);
    const group = await database.group(project, 'anti_affinity', 'fail', [member], 'apart');
    await deleteInstance(database.db, member);
    const left = await database.db.execute(sql`SELECT 1 FROM affinity_group_member WHERE group_id = ${group}`);
    expect(left.rows).toEqual([]);
    expect((await refusal(deleteProject(database.db, project))).message).toMatch(/anti-affinity group "apart"/);
  });
});

describe('capacity', () => {
  test('equal instances are spread over equal sleds', async () => {
    await sleds(4, 8);
    const all = await members(16);
    for (const id of all) await database.start(id);
    const count = new Map<string, number>();
    for (const sled of await places(all)) count.set(sled, (count.get(sled) ?? 0) + 1);
    expect([...count.values()]).toEqual([4, 4, 4, 4]);
  });

  test('the last slot wanted by many at once: one has it, the others get a clean 507 without a storm', async () => {
    await sleds(1, 1);
    const all = await members(8);
    const before = database.statements;
    const outcomes = await Promise.allSettled(all.map((id) => database.start(id, database.counted)));
    const lost = outcomes.filter((outcome) => outcome.status === 'rejected');
    expect(lost).toHaveLength(7);
    for (const { reason } of lost) {
      expect(reason).toMatchObject({ status: 507, code: 'InsufficientCapacity' });
      expect(String(reason)).toMatch(/no sled has room/);
    }
    // A loser reads, picks, claims, reads, picks, asks why, and records its refusal.
    expect(database.statements - before).toBeLessThanOrEqual(3 + 7 * 8);
    expect(await database.broken()).toEqual([]);
  });

  test('a claim takes three round trips at most, of a start as of a migration', async () => {
    const [one = '', two = ''] = await sleds(2);
    const group = await members(2);
    await database.group(project, 'anti_affinity', 'allow', group);
    const [first = ''] = group;
    let before = database.statements;
    const { sledId } = await database.start(first, database.counted);
    expect(database.statements - before).toBeLessThanOrEqual(3);
    await database.runs(first);
    before = database.statements;
    await database.migrate(first, sledId === one ? two : one, database.counted);
    expect(database.statements - before).toBeLessThanOrEqual(3);
  });

  test('the refusal names why nothing can be placed: no sled in service, no room, no quota', async () => {
    const [one = ''] = await members(1);
    expect((await refusal(database.start(one))).message).toMatch(/no sled is in service/);
    const [sled = ''] = await sleds(1, 1);
    const big = await database.instance(project, { ncpus: 2 });
    expect((await refusal(database.start(big))).message).toMatch(/no sled has room \(2 CPUs/);
    await setQuota(database.db, project, { cpus: 0, memoryBytes: null });
    expect((await refusal(database.start(one))).message).toMatch(/quota/);
    await setQuota(database.db, project, { cpus: null, memoryBytes: null });
    await expungeSled(database.db, sled);
    expect((await refusal(database.start(one))).message).toMatch(/no sled is in service/);
  });

  test('a sled that is excluded is not picked', async () => {
    const [one = '', two = ''] = await sleds(2);
    const instanceId = await database.instance(project);
    const request = { instanceId, ncpus: 1, memoryBytes: GIBIBYTE };
    for (let n = 0; n < 5; n++)
      expect((await pickSled(database.db, { ...request, excludeSledIds: [one] }))?.id).toBe(two);
    const none = { ...request, excludeSledIds: [one, two] };
    expect(await pickSled(database.db, none)).toBeNull();
    expect(await explainNoSled(database.db, none)).toMatch(/no sled/);
  });
});
