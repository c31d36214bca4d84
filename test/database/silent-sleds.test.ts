/** What is remembered of sleds that answer or don't, and of who they are; each transaction alone. */
import { createHash, randomUUID } from 'node:crypto';
import { sql } from 'drizzle-orm';
import fc from 'fast-check';
import { afterAll, beforeAll, beforeEach, describe, expect, test } from 'vitest';
import { viewSled } from '../../api/views/sled.ts';
import { pickSled, readDestination } from '../../db/queries/pick-sled.ts';
import { readInstance } from '../../db/queries/read-instance.ts';
import { readOperation } from '../../db/queries/read-operation.ts';
import { readCountedSled } from '../../db/queries/read-sled.ts';
import { addSled } from '../../db/transactions/add-sled.ts';
import { applyReport } from '../../db/transactions/apply-report.ts';
import { beginUnwind } from '../../db/transactions/begin-unwind.ts';
import { claimStart } from '../../db/transactions/claim-start.ts';
import { expungeSled, settleExpunge } from '../../db/transactions/expunge-sled.ts';
import { finishUnwind } from '../../db/transactions/finish-unwind.ts';
import { type JoiningSled, joinSled } from '../../db/transactions/join-sled.ts';
import { recordSledAnswer, recordSledSilence } from '../../db/transactions/record-sled-answer.ts';
import { recordStop } from '../../db/transactions/record-stop.ts';
import { setSledAddress } from '../../db/transactions/set-sled-address.ts';
import { errorBody } from '../../model/failures.ts';
import type { StartReason } from '../../model/states.ts';
import type { AgentDescription } from '../../wire/sled-protocol.ts';
import { startTestDatabase, type TestDatabase } from '../support/placement-database.ts';

const GIB = 2 ** 30;
let database: TestDatabase;
let projectId: string;
beforeAll(async () => {
  database = await startTestDatabase();
});
beforeEach(async () => {
  await database.empty();
  projectId = await database.project();
});
afterAll(() => database?.close());

const db = () => database.db;
const agent = (over: Partial<AgentDescription> = {}): AgentDescription => ({
  agent_id: randomUUID(),
  version: '1.2.3',
  trouble: [],
  ...over,
});
async function sledRow(id: string) {
  const { rows } = await db().execute(sql`
    SELECT silent_since, last_answered_at, agent_id, agent_version, agent_trouble, xmin::text AS written FROM sled WHERE id = ${id}`);
  return rows[0] ?? {};
}
const noAnswer = errorBody('ServiceUnavailable', 'sled "a" gave no answer in time');

/** A start's attempt: its claim, and its end where another one follows or none. */
async function attempt(
  instanceId: string,
  over: { operationId: string; reason?: StartReason; silentSledIds?: string[] },
) {
  const own = { kind: 'start' as const, instanceId, vmmId: randomUUID(), workflowId: 'w', ...over };
  const claim = await claimStart(db(), { reason: 'user', ...own });
  return {
    ...own,
    claim,
    async end({ goesOn, error = noAnswer }: { goesOn: boolean; error?: typeof noAnswer }) {
      const begun = await beginUnwind(db(), { ...own, spareRunning: true });
      await finishUnwind(db(), { ...own, confirmed: false, neverCommanded: !begun.commanded, error, goesOn });
      return begun;
    },
  };
}

describe('placement', () => {
  test('takes a sled that is silent, or whose agent is not well, only where no other one fits, and none where another one answers', async () => {
    const sleds = [await database.sled(), await database.sled(), await database.sled(), await database.sled()];
    await fc.assert(
      fc.asyncProperty(
        fc.array(fc.constantFrom('answers', 'silent', 'trouble', 'full', 'another'), { minLength: 4, maxLength: 4 }),
        async (states) => {
          for (const [index, id] of sleds.entries()) {
            const state = states[index];
            await db().execute(
              sql`UPDATE sled SET policy = ${state === 'full' ? 'no_provision' : 'in_service'}::sled_policy WHERE id = ${id}`,
            );
            await recordSledAnswer(db(), { id }, state === 'trouble' ? agent({ trouble: ['its disk is full'] }) : null);
            if (state === 'silent') await recordSledSilence(db(), { id });
            if (state === 'another') await recordSledSilence(db(), { id }, ['that of another sled']);
            // A call that was answered is not the word of who answered it.
            if (state === 'another') await recordSledAnswer(db(), { id }, undefined);
          }
          const request = { instanceId: randomUUID(), ncpus: 1, memoryBytes: GIB };
          const picked = await pickSled(db(), request);
          for (const [index, id] of sleds.entries())
            expect((await readDestination(db(), id, request))?.takesVmms).toBe(
              !['full', 'another'].includes(states[index] ?? ''),
            );
          const state = picked === null ? null : states[sleds.indexOf(picked.id)];
          if (states.includes('answers')) expect(state).toBe('answers');
          else if (states.every((one) => ['full', 'another'].includes(one))) expect(state).toBeNull();
          else expect(['silent', 'trouble']).toContain(state);
        },
      ),
      { numRuns: 30 },
    );
  });
});

describe('what is remembered of a sled', () => {
  test('is since when it is silent, from the first time on, until it answers', async () => {
    const id = await database.sled();
    await recordSledSilence(db(), { id });
    const first = await sledRow(id);
    expect(first.silent_since).not.toBeNull();
    await recordSledSilence(db(), { id });
    // Nothing was written.
    expect(await sledRow(id)).toEqual(first);
    await recordSledSilence(db(), { id }, ['another host is there']);
    expect(await sledRow(id)).toMatchObject({
      silent_since: first.silent_since,
      agent_trouble: ['another host is there'],
    });
    const said = agent({ trouble: ['no room on its disk', 'two "things"'] });
    await recordSledAnswer(db(), { id }, said);
    expect(await sledRow(id)).toMatchObject({
      silent_since: null,
      agent_id: said.agent_id,
      agent_version: '1.2.3',
      agent_trouble: said.trouble,
    });
    await recordSledAnswer(db(), { id }, undefined);
    expect(await sledRow(id)).toMatchObject({ agent_id: said.agent_id, agent_trouble: said.trouble });
    await recordSledAnswer(db(), { id }, null);
    expect(await sledRow(id)).toMatchObject({ agent_id: null, agent_version: null, agent_trouble: [] });
  });

  test('is not an agent that another sled has', async () => {
    const [here, there] = [await database.sled(), await database.sled()];
    const said = agent();
    await recordSledAnswer(db(), { id: here }, said);
    await recordSledAnswer(db(), { id: there }, said);
    expect(await sledRow(here)).toMatchObject({ agent_id: said.agent_id });
    expect(await sledRow(there)).toMatchObject({
      agent_id: null,
      silent_since: expect.anything(),
      agent_trouble: [expect.stringContaining('one host is one sled')],
    });
    const request = { instanceId: randomUUID(), ncpus: 1, memoryBytes: GIB };
    expect((await readDestination(db(), here, request))?.takesVmms).toBe(true);
    expect((await readDestination(db(), there, request))?.takesVmms).toBe(false);
    const add = (given: AgentDescription | null | undefined) =>
      addSled(db(), { name: 'twice', address: '10.9.9.9:8099', threads: 1, memoryBytes: GIB, agent: given });
    await expect(add(said)).rejects.toThrow(/one host is one sled/);
    expect(await add(undefined)).toMatchObject({ agentId: null, silentSince: expect.any(Date), lastAnsweredAt: null });
  });
});

describe('a start that goes on with another sled', () => {
  test('is the same operation: the first attempt ends unwound, the second is placed elsewhere, and its end is the outcome', async () => {
    await database.sled();
    await database.sled();
    const instanceId = await database.instance(projectId);
    const operationId = randomUUID();
    const first = await attempt(instanceId, { operationId });
    expect(await first.end({ goesOn: true })).toMatchObject({ spared: false, commanded: false });
    expect(await readOperation(db(), operationId)).toMatchObject({ timeEnded: null, succeeded: null });
    expect((await readInstance(db(), instanceId))?.externalState).toBe('stopped');
    // Once more, as when its workflow task is done again.
    await first.end({ goesOn: true });

    const second = await attempt(instanceId, { operationId, silentSledIds: [first.claim?.sledId ?? ''] });
    expect(second.claim?.sledId).not.toBe(first.claim?.sledId);
    expect(await readOperation(db(), operationId)).toMatchObject({ vmmId: second.vmmId, timeEnded: null });
    // A late step of the first one changes nothing.
    await first.end({ goesOn: true });
    const late = { vmm_state: { state: 'starting' as const, gen: 2, time_updated: new Date().toISOString() } };
    expect((await applyReport(db(), first.vmmId, late, { markCommanded: true }))?.commanded ?? false).toBe(false);
    expect((await readInstance(db(), instanceId))?.instance.activeVmmId).toBe(second.vmmId);
    expect(await database.broken()).toEqual([]);

    await second.end({ goesOn: false });
    expect(await readOperation(db(), operationId)).toMatchObject({ succeeded: false, error: noAnswer });
    await expect(attempt(instanceId, { operationId, silentSledIds: [randomUUID()] })).rejects.toMatchObject({
      body: noAnswer,
    });
  });

  test('is refused without ending the operation where no other sled takes it', async () => {
    const only = await database.sled();
    const instanceId = await database.instance(projectId);
    const operationId = randomUUID();
    await (await attempt(instanceId, { operationId })).end({ goesOn: true });
    const refused = attempt(instanceId, { operationId, silentSledIds: [only] });
    await expect(refused).rejects.toMatchObject({ code: 'InsufficientCapacity' });
    expect(await readOperation(db(), operationId)).toMatchObject({ timeEnded: null });
  });

  test('does not override a stop between the two', async () => {
    const [here] = [await database.sled(), await database.sled()];
    const instanceId = await database.instance(projectId);
    const operationId = randomUUID();
    await (await attempt(instanceId, { operationId })).end({ goesOn: true });
    await recordStop(db(), instanceId);
    await expect(attempt(instanceId, { operationId, silentSledIds: [here] })).rejects.toMatchObject({
      code: 'Conflict',
    });
    expect((await readInstance(db(), instanceId))?.instance.intendedState).toBe('stopped');
  });
});

describe('an automatic start', () => {
  const restarted = async (instanceId: string) =>
    (await readInstance(db(), instanceId))?.instance.timeLastAutoRestarted;

  test('that fails through its sled, once or again and again, costs no cooldown; one that was cancelled does', async () => {
    for (let sleds = 0; sleds < 4; sleds++) await database.sled();
    await fc.assert(
      fc.asyncProperty(
        fc.boolean(),
        fc.array(fc.boolean(), { maxLength: 3 }),
        fc.boolean(),
        async (before, attempts, cancelled) => {
          const instanceId = await database.instance(projectId);
          await db().execute(sql`
            UPDATE instance SET state = 'failed', state_generation = 2, intended_state = 'running', last_start_reason = 'auto_restart',
              time_last_auto_restarted = ${before ? '2020-01-01T00:00:00Z' : null}::timestamptz WHERE id = ${instanceId}`);
          const own = { operationId: randomUUID(), reason: 'auto_restart' as const };
          let silentSledIds: string[] | undefined;
          for (const _ of attempts) {
            const one = await attempt(instanceId, {
              ...own,
              ...(silentSledIds === undefined ? {} : { silentSledIds }),
            });
            expect(await restarted(instanceId)).not.toEqual(before ? new Date('2020-01-01') : null);
            await one.end({ goesOn: true });
            silentSledIds = [...(silentSledIds ?? []), one.claim?.sledId ?? ''];
          }
          const last = await attempt(instanceId, { ...own, ...(silentSledIds === undefined ? {} : { silentSledIds }) });
          const charged = await restarted(instanceId);
          expect(Date.now() - (charged?.getTime() ?? 0)).toBeLessThan(60_000);
          await last.end({ goesOn: false, error: cancelled ? errorBody('Conflict', 'cancelled') : noAnswer });
          expect(await restarted(instanceId)).toEqual(cancelled ? charged : before ? new Date('2020-01-01') : null);
        },
      ),
      { numRuns: 12 },
    );
  });
});

test.each([
  ['anybody', true, 'own', null],
  ['anybody', true, 'another', 'foreign_agent'],
  ['anybody', true, 'no id at all', 'foreign_agent'],
  ['anybody', true, undefined, null],
  ['anybody', false, 'another', null],
  ['control_plane', true, undefined, null],
] as const)(
  'a report of %s (the sled’s agent keeps its id: %s) by an agent that says %s',
  async (kind, kept, who, refusal) => {
    const id = await database.sled();
    const said = agent({ agent_id_kept: kept });
    await recordSledAnswer(db(), { id }, said);
    const instanceId = await database.instance(projectId);
    await database.start(instanceId);
    await database.runs(instanceId);
    const { active } = (await readInstance(db(), instanceId)) ?? {};
    const agentId = who === 'own' ? said.agent_id.toUpperCase() : who === 'another' ? randomUUID() : who;
    const failed = { state: 'failed' as const, gen: 99, time_updated: new Date().toISOString() };
    const applied = await applyReport(db(), active?.id ?? '', { vmm_state: failed }, {}, { kind, agentId });
    expect([applied?.refusal, applied?.state]).toEqual([refusal, refusal === null ? 'failed' : active?.state]);
  },
);

describe('a sled that has joined', () => {
  const failed = { vmm_state: { state: 'failed' as const, gen: 99, time_updated: new Date().toISOString() } };
  /** Two that run one VMM each, with a certificate that is good, revoked or unknown. */
  const joinedSleds = async (certificate: 'good' | 'revoked' | 'unknown') => {
    await database.empty();
    projectId = await database.project();
    const vmms = new Map<string, string>();
    for (const sledId of [await database.sled(), await database.sled()]) {
      await db().execute(sql`UPDATE sled SET identified = true, policy = 'in_service' WHERE id = ${sledId}`);
      await db().execute(sql`UPDATE sled SET policy = 'no_provision' WHERE id <> ${sledId}`);
      const instanceId = await database.instance(projectId);
      await database.start(instanceId);
      await database.runs(instanceId);
      vmms.set(sledId, (await readInstance(db(), instanceId))?.active?.id ?? '');
    }
    const [[sledId, own] = ['', ''], [, foreign] = ['', '']] = [...vmms];
    const serial = randomUUID();
    if (certificate !== 'unknown')
      await db().execute(sql`INSERT INTO sled_certificate (serial, sled_id, time_expires, time_revoked)
        VALUES (${serial}, ${sledId}, now() + interval '1 day', ${certificate === 'good' ? null : sql`now()`})`);
    const reports = async (vmmId: string) => {
      const applied = await applyReport(db(), vmmId, failed, {}, { kind: 'sled', sledId, serial });
      return [applied?.refusal, applied?.sledExpunged, applied?.state];
    };
    return { sledId, own, foreign, reports };
  };
  const stateOf = async (vmmId: string) =>
    (await db().execute(sql`SELECT state FROM vmm WHERE id = ${vmmId}`)).rows[0]?.state;

  const CERTIFICATES = ['good', 'revoked', 'unknown'] as const;
  const STANDINGS = ['in service', 'leaving', 'expunged'] as const;
  test.each(CERTIFICATES.flatMap((certificate) => STANDINGS.map((standing) => [certificate, standing] as const)))(
    'and shows a certificate that is %s, and is %s, hears that it was expunged, and speaks of its own VMMs while it is believed',
    async (certificate, standing) => {
      const { sledId, own, foreign, reports } = await joinedSleds(certificate);
      if (standing === 'leaving') await expungeSled(db(), sledId, { answers: true, poweredOff: true });
      if (standing === 'expunged')
        await db().execute(sql`UPDATE sled SET policy = 'expunged', time_expunged = now() WHERE id = ${sledId}`);
      const revoked = certificate === 'good' ? null : 'revoked';
      const refusal = standing === 'expunged' || (standing === 'leaving' && revoked !== null) ? 'expunged' : revoked;
      expect(await reports(foreign)).toEqual([refusal ?? 'foreign_vmm', false, 'running']);
      expect(await reports(own)).toEqual([refusal, standing !== 'in service', refusal === null ? 'failed' : 'running']);
      expect(await stateOf(own)).toBe(refusal === null ? 'failed' : 'running');
    },
  );

  test('and is not believed any more leaves when it is off, by an operator’s word, and no sooner; it shows that it waits for that', async () => {
    const { sledId, own, reports } = await joinedSleds('revoked');
    const shown = async () => {
      const found = await readCountedSled(db(), sledId);
      if (found === null) throw new Error('there is no such sled');
      const { expunge_awaits: awaits, state } = viewSled(found);
      return [awaits, state];
    };
    expect(await shown()).toEqual([null, 'active']);
    expect((await expungeSled(db(), sledId, { answers: true, poweredOff: true })).awaits).toBe('sled');
    expect(await shown()).toEqual(['word', 'active']);
    // Whoever has its key may say that its guests are gone.
    await reports(own);
    expect(await settleExpunge(db(), sledId)).toBeNull();
    expect([await stateOf(own), await shown()]).toEqual(['running', ['word', 'active']]);
    await expect(expungeSled(db(), sledId, { answers: false, poweredOff: false })).rejects.toThrow(/without your word/);
    const serial = randomUUID();
    await db().execute(sql`INSERT INTO sled_certificate (serial, sled_id, time_expires)
      VALUES (${serial}, ${sledId}, now() + interval '1 day')`);
    expect(await shown()).toEqual(['sled', 'active']);
    await db().execute(sql`UPDATE sled_certificate SET time_expires = now() WHERE serial = ${serial}`);
    expect(await shown()).toEqual(['word', 'active']);
    await db().execute(
      sql`UPDATE sled SET lease_ms = 1000, fencing_since = now(), lease_renewed_at = now() WHERE id = ${sledId}`,
    );
    expect(await shown()).toEqual(['lease', 'active']);
    await db().execute(
      sql`UPDATE sled SET lease_ms = NULL, fencing_since = NULL, lease_renewed_at = NULL WHERE id = ${sledId}`,
    );
    expect((await expungeSled(db(), sledId, { answers: false, poweredOff: true })).awaits).toBeNull();
    expect([await stateOf(own), await shown()]).toEqual(['failed', [null, 'decommissioned']]);
    expect(await database.broken()).toEqual([]);
  });
});

describe('a sled whose address changes', () => {
  const moved = async (id: string) => {
    const { rows } = await db().execute(sql`SELECT address FROM sled WHERE id = ${id}`);
    return String(rows[0]?.address);
  };
  const said = agent();
  const to = { address: '[2001:db8::7]:8099' };
  const livingOn = async (id: string) => {
    const { rows } = await db().execute(
      sql`SELECT id FROM vmm WHERE sled_id = ${id} AND time_deleted IS NULL ORDER BY id`,
    );
    return rows.map((row) => String(row.id));
  };

  /** Joins again by an invitation. */
  const join = async (
    id: string,
    address: string,
    { agentId, vmmIds, former }: Pick<JoiningSled, 'agentId' | 'vmmIds' | 'former'>,
  ) => {
    const { rows } = await db().execute(sql`SELECT name, threads, memory_bytes FROM sled WHERE id = ${id}`);
    const secretHash = createHash('sha256').update(randomUUID()).digest('hex');
    await db().execute(sql`INSERT INTO sled_invite (id, sled_name, secret_hash, time_expires)
      VALUES (${randomUUID()}, ${rows[0]?.name}, ${secretHash}, now() + interval '1 hour')`);
    const size = { threads: Number(rows[0]?.threads), memoryBytes: Number(rows[0]?.memory_bytes) };
    const joining = { address, ...size, secretHash, keyFingerprint: secretHash, agentId, vmmIds, former };
    await joinSled(db(), joining, async () => ({
      serial: randomUUID(),
      notAfter: new Date(Date.now() + 3_600_000),
    }));
  };

  const AGENTS = { own: said.agent_id, another: randomUUID(), unknown: null, nobody: undefined } as const;
  const LISTS = ['all', 'all and more', 'one missing', 'none', 'not said'] as const;
  test('with its VMs, to where its own agent has every one of them, or an operator has given his word: in every case', async () => {
    await fc.assert(
      fc.asyncProperty(
        fc.constantFrom('set-address', 'join', 'join at its own address'),
        fc.constantFrom(...(Object.keys(AGENTS) as (keyof typeof AGENTS)[])),
        fc.constantFrom(...LISTS),
        fc.constantFrom('none', 'held', 'dead'),
        fc.boolean(),
        fc.boolean(),
        async (way, who, list, lease, answers, poweredOff) => {
          await database.empty();
          projectId = await database.project();
          const id = await database.sled();
          await recordSledAnswer(db(), { id }, said);
          const lost: string[] = [];
          for (let vm = 0; vm < 2; vm++) {
            const instanceId = await database.instance(projectId);
            await database.start(instanceId);
            await database.runs(instanceId);
          }
          // One that no agent has spoken of yet need not be anywhere.
          await database.start(await database.instance(projectId));
          const { rows } = await db().execute(sql`SELECT id FROM vmm WHERE state <> 'creating' ORDER BY id`);
          const running = rows.map((row) => String(row.id));
          expect(running).toHaveLength(2);
          if (lease !== 'none')
            await db().execute(sql`UPDATE sled SET lease_ms = 1000, fencing_since = now() - interval '1 day',
              lease_renewed_at = now() - ${lease === 'held' ? '0 s' : '1 day'}::interval WHERE id = ${id}`);
          await db().execute(sql`UPDATE lease_service SET last_beat_at = clock_timestamp()`);
          if (list === 'one missing') lost.push(...running.slice(1));
          if (list === 'none') lost.push(...running);
          const vmmIds =
            list === 'not said'
              ? null
              : [...running.filter((one) => !lost.includes(one)), ...(list === 'all and more' ? [randomUUID()] : [])];
          const address = await moved(id);
          const agentId = AGENTS[who];
          const found = agentId == null ? agentId : agent({ agent_id: agentId });
          const goal = way === 'join at its own address' ? address : to.address;
          const former = { askedAddress: address, answers };
          const outcome = await (way !== 'set-address'
            ? join(id, goal, { agentId: agentId ?? null, vmmIds, former: goal === address ? null : former })
            : setSledAddress(db(), id, { ...to, former, agent: found, vmmIds, poweredOff })
          ).then(
            () => null,
            (error: unknown) => error,
          );
          const arrived = who === 'own' && list !== 'not said' && lost.length === 0;
          const byWord = way === 'set-address' && poweredOff && lease === 'none';
          // Where it was may be the agent that has the guests, also where a copy of its data joins.
          const stays = way !== 'join at its own address' && answers;
          const expected = !stays && (lease === 'dead' || arrived || byWord);
          expect([outcome === null, await moved(id)]).toEqual([expected, expected ? goal : address]);
          if (expected) {
            expect(await database.broken()).toEqual([]);
            return;
          }
          expect(outcome).toMatchObject({ code: 'Conflict' });
          const { message } = outcome as Error;
          if (stays) expect(message).toContain(`answers at ${address}: end its agent there first`);
          else if (lease === 'none') expect(message).toMatch(/VMs of sled .* live at .*drain it.*declare it dead/);
          if (!stays && who === 'own') for (const vmmId of lost) expect(message).toContain(vmmId);
        },
      ),
      { numRuns: 90 },
    );
  });

  test.each([
    ['at its own address, and it never said more', true, null, true],
    ['at its own address, and it has none of its VMs', true, [], false],
    ['elsewhere', false, null, false],
  ])('an agent that says nothing of itself joins again with guests: %s', async (_, own, vmmIds, expected) => {
    const id = await database.sled();
    await recordSledAnswer(db(), { id }, null);
    const instanceId = await database.instance(projectId);
    await database.start(instanceId);
    await database.runs(instanceId);
    const former = own ? null : { askedAddress: await moved(id), answers: false };
    const joining = join(id, own ? await moved(id) : to.address, { agentId: null, vmmIds, former });
    if (expected) await joining;
    else await expect(joining).rejects.toMatchObject({ code: 'Conflict' });
  });

  test.each<
    [
      string,
      { known: AgentDescription | null; guests: boolean; found: AgentDescription | null | undefined },
      RegExp | null,
    ]
  >([
    ['empty, and nobody there', { known: said, guests: false, found: undefined }, null],
    ['empty, and another agent there', { known: said, guests: false, found: agent() }, null],
    ['empty, and an agent that others wrote', { known: null, guests: false, found: null }, null],
    ['with guests, and its own agent there', { known: said, guests: true, found: said }, null],
    ['with guests, and nobody there', { known: said, guests: true, found: undefined }, /nobody answers there/],
    ['with guests, and another agent there', { known: said, guests: true, found: agent() }, /another one/],
    [
      'with guests, and one that does not say who it is',
      { known: said, guests: true, found: null },
      /does not say who it is/,
    ],
    ['with guests, of which it is not known who it was', { known: null, guests: true, found: said }, /nothing proves/],
  ])('%s', async (_, { known, guests, found }, refusal) => {
    const id = await database.sled();
    await recordSledAnswer(db(), { id }, known);
    const address = await moved(id);
    const instanceId = await database.instance(projectId);
    if (guests) {
      await database.start(instanceId);
      await database.runs(instanceId);
    }
    const vmmIds = await livingOn(id);
    const move = setSledAddress(db(), id, {
      ...to,
      former: { askedAddress: address, answers: false },
      agent: found,
      vmmIds,
    });
    if (refusal !== null) {
      await expect(move).rejects.toThrow(refusal);
      expect(await moved(id)).toBe(address);
      return;
    }
    await move;
    expect(await moved(id)).toBe('[2001:db8::7]:8099');
    expect((await sledRow(id)).silent_since === null).toBe(found !== undefined);
    if (guests) expect((await readInstance(db(), instanceId))?.active?.ip).toBe('[2001:db8::7]');
    expect(await database.broken()).toEqual([]);
  });

  test('stays where it is while somebody else has changed it, and takes no address or agent of another one', async () => {
    const [id, other] = [await database.sled(), await database.sled()];
    await recordSledAnswer(db(), { id: other }, said);
    const address = await moved(id);
    const move = (to: string, askedAddress: string, found?: AgentDescription) =>
      setSledAddress(db(), id, { address: to, former: { askedAddress, answers: false }, agent: found });
    await expect(move('10.7.7.7:1', '10.8.8.8:1')).rejects.toThrow(/by now/);
    for (const former of [null, { askedAddress: '10.8.8.8:1', answers: false }])
      await expect(join(id, '10.7.7.7:1', { agentId: null, vmmIds: null, former })).rejects.toThrow(/by now/);
    await expect(move(await moved(other), address)).rejects.toThrow(/already exists/);
    await expect(move('10.7.7.7:1', address, said)).rejects.toThrow(/one host is one sled/);
    expect(await moved(id)).toBe(address);
  });
});
