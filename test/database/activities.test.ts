/** The activities and the reconcilers on a real PostgreSQL, with sleds that answer what a test wants them to answer. */
import { randomUUID } from 'node:crypto';
import { ApplicationFailure } from '@temporalio/common';
import { MockActivityEnvironment } from '@temporalio/testing';
import { DefaultLogger } from '@temporalio/worker';
import { sql } from 'drizzle-orm';
import { fastify } from 'fastify';
import { serializerCompiler, validatorCompiler, type ZodTypeProvider } from 'fastify-type-provider-zod';
import { afterAll, beforeAll, beforeEach, describe, expect, test } from 'vitest';
import type { ActivityContext } from '../../activities/context.ts';
import { createReconcilerActivities } from '../../activities/reconcilers.ts';
import { createSagaActivities } from '../../activities/sagas.ts';
import { AnotherInstallation, type SledAddress, type SledClient, SledError } from '../../activities/sled-client.ts';
import type { ApiContext } from '../../api/context.ts';
import { addReportRoutes } from '../../api/routes/reports.ts';
import { readInstance } from '../../db/queries/read-instance.ts';
import { readSled } from '../../db/queries/read-sled.ts';
import { applyReport } from '../../db/transactions/apply-report.ts';
import { claimMigration } from '../../db/transactions/claim-migration.ts';
import { type ClaimedVmm, claimStart } from '../../db/transactions/claim-start.ts';
import { adoptAgent, recordSledAnswer } from '../../db/transactions/record-sled-answer.ts';
import { recordStop } from '../../db/transactions/record-stop.ts';
import type { WireVmmState } from '../../model/states.ts';
import { Metrics } from '../../platform/telemetry/metrics.ts';
import type { WorkflowStarter } from '../../temporal/workflow-starter.ts';
import type { AgentDescription, SledVmmState } from '../../wire/sled-protocol.ts';
import { startTestDatabase, type TestDatabase } from '../support/database.ts';

let database: TestDatabase;
let projectId: string;
let calls: string[];
let signalled: string[];
beforeAll(async () => {
  database = await startTestDatabase();
});
beforeEach(async () => {
  await database.clear();
  projectId = await database.addProject();
  calls = [];
  signalled = [];
});
afterAll(() => database?.stop());

const AGENT_ID = randomUUID();
const silence = async (): Promise<never> => {
  throw new SledError('unavailable', 'no answer');
};
const vmmReport = (state: WireVmmState, gen: number): SledVmmState => ({
  vmm_state: { state, gen, time_updated: new Date().toISOString() },
});

/** The activities over sleds that are silent, but for the answers that a test gives them. */
function context(sleds: Partial<SledClient>): ActivityContext {
  const all = {
    register: silence,
    unregister: silence,
    setState: silence,
    readState: silence,
    readInventory: silence,
    describe: silence,
    learnAgents: () => {},
    ...sleds,
  };
  const workflows = {
    signalUpdate: async (id: string) => void signalled.push(id),
    carryStop: async (id: string) => void calls.push(`carry a stop to ${id}`),
    unregisterVmm: async (id: string) => void calls.push(`unregister ${id}`),
    isOpen: async () => true,
  };
  return {
    db: database.db,
    sleds: all as unknown as SledClient,
    workflows: workflows as unknown as WorkflowStarter,
  };
}
const SILENT = new DefaultLogger('ERROR', () => {});
const inActivity = <Result>(attempt: number, run: () => Promise<Result>): Promise<Result> =>
  new MockActivityEnvironment({ attempt }, { logger: SILENT }).run(run) as Promise<Result>;
const atOnce = <Result>(run: () => Promise<Result>): Promise<Result> =>
  new MockActivityEnvironment({ isLocal: true }, { logger: SILENT }).run(run) as Promise<Result>;
const failureType = async (call: Promise<unknown>) => {
  const error = await call.then(
    () => null,
    (failure: unknown) => failure,
  );
  if (!(error instanceof ApplicationFailure)) throw error ?? new Error('it succeeded');
  return error.type;
};

async function claimed(): Promise<ClaimedVmm & { instanceId: string }> {
  await database.addSled();
  const instanceId = await database.addInstance(projectId);
  const claim = await claimStart(database.db, {
    instanceId,
    vmmId: randomUUID(),
    operationId: randomUUID(),
    workflowId: 'w',
    reason: 'user',
  });
  if (claim === null) throw new Error('nothing was claimed');
  return { ...claim, instanceId };
}
async function stateOf(vmmId: string): Promise<unknown> {
  return (await database.db.execute(sql`SELECT state FROM vmm WHERE id = ${vmmId}`)).rows[0]?.state;
}
const attemptOf = (claim: { instanceId: string; vmmId: string; sledName: string; sledAddress: string }) => ({
  kind: 'start' as const,
  instanceId: claim.instanceId,
  vmmId: claim.vmmId,
  operationId: randomUUID(),
  workflowId: 'w',
  sled: { name: claim.sledName, address: claim.sledAddress, keptAgentId: null },
});

test('a stop that came while the VMM was registered ends the start before its sled is commanded to run it', async () => {
  const claim = await claimed();
  const register = async () => {
    await recordStop(database.db, claim.instanceId);
    return vmmReport('starting', 2);
  };
  const { registerVmm } = createSagaActivities(context({ register }));
  expect(await failureType(atOnce(() => registerVmm(claim)))).toBe('StopRequested');
  expect((await readInstance(database.db, claim.instanceId))?.active?.commandedAt).toBeNull();
});

test('each further command to run reads the intent first', async () => {
  const claim = await claimed();
  await applyReport(database.db, claim.vmmId, vmmReport('starting', 2), { markCommanded: true });
  await recordStop(database.db, claim.instanceId);
  const setState = async () => {
    calls.push('run');
    return { updated_runtime: vmmReport('running', 3) };
  };
  const { runVmm } = createSagaActivities(context({ setState }));
  expect(await failureType(inActivity(2, () => runVmm(attemptOf(claim))))).toBe('StopRequested');
  expect(calls).toEqual([]);
});

test('a sled that gave no answer is not waited for again within a workflow task, only by a step of its own', async () => {
  const claim = await claimed();
  let answers = false;
  const register = async () => {
    calls.push('register');
    return answers ? vmmReport('starting', 2) : silence();
  };
  const { registerVmm } = createSagaActivities(context({ register }));
  const now = () => atOnce(() => registerVmm(claim));
  const asStep = () => inActivity(1, () => registerVmm(claim));

  expect(await failureType(now())).toBe('SledUnavailable');
  expect(calls).toHaveLength(1);
  expect(await failureType(now())).toBe('SledUnavailable');
  expect(calls).toHaveLength(1);
  expect(await failureType(asStep())).toBe('SledUnavailable');
  expect(calls).toHaveLength(2);
  answers = true;
  await asStep();
  await now();
  expect(calls).toHaveLength(4);
});

test('registering as a step of its own, after the attempt at once, reads the intent first', async () => {
  const claim = await claimed();
  await recordStop(database.db, claim.instanceId);
  const register = async () => {
    calls.push('register');
    return vmmReport('starting', 2);
  };
  const { registerVmm } = createSagaActivities(context({ register }));
  expect(await failureType(inActivity(1, () => registerVmm(claim)))).toBe('StopRequested');
  expect(calls).toEqual([]);
});

test('silence of a sled, while it is to unregister, is no answer', async () => {
  const claim = await claimed();
  const { unregisterVmm } = createSagaActivities(context({}));
  const request = { vmmId: claim.vmmId, sled: { name: claim.sledName, address: claim.sledAddress, keptAgentId: null } };
  expect(await failureType(inActivity(1, () => unregisterVmm(request)))).toBe('SledUnavailable');
});

test('a stop is sent to both sides of a migration', async () => {
  const claim = await claimed();
  await applyReport(database.db, claim.vmmId, vmmReport('running', 3));
  const destinationSledId = await database.addSled();
  const target = { vmmId: randomUUID(), migrationId: randomUUID() };
  await claimMigration(database.db, {
    ...target,
    instanceId: claim.instanceId,
    destinationSledId,
    operationId: randomUUID(),
    workflowId: 'w',
  });
  await applyReport(database.db, target.vmmId, vmmReport('migrating', 2));
  await recordStop(database.db, claim.instanceId);
  const setState: SledClient['setState'] = async (_, vmmId, command) => {
    calls.push(`${command.type} ${vmmId}`);
    return { updated_runtime: null };
  };
  const { deliverStop } = createSagaActivities(context({ setState }));
  await inActivity(1, () => deliverStop({ instanceId: claim.instanceId }));
  expect(calls.sort()).toEqual([`stopped ${claim.vmmId}`, `stopped ${target.vmmId}`].sort());
});

test('the state that a command is answered with is written, and signals the update when one is needed', async () => {
  const claim = await claimed();
  await applyReport(database.db, claim.vmmId, vmmReport('starting', 2), { markCommanded: true });
  const setState = async () => ({ updated_runtime: vmmReport('failed', 3) });
  const { runVmm } = createSagaActivities(context({ setState }));
  await inActivity(1, () => runVmm(attemptOf(claim)));
  expect(await stateOf(claim.vmmId)).toBe('failed');
  expect(signalled).toEqual([claim.instanceId]);
});

test('a report that makes an update necessary signals it, and so does the same report again', async () => {
  const claim = await claimed();
  const { db, workflows } = context({});
  const app = fastify().withTypeProvider<ZodTypeProvider>();
  app.setValidatorCompiler(validatorCompiler);
  app.setSerializerCompiler(serializerCompiler);
  addReportRoutes(app, { db, workflows, metrics: new Metrics() } as ApiContext);
  for (const times of [1, 2]) {
    const url = `/vmms/${claim.vmmId}`;
    const { statusCode } = await app.inject({ method: 'PUT', url, payload: vmmReport('destroyed', 3) });
    expect(statusCode).toBe(204);
    expect(signalled).toHaveLength(times);
  }
  await app.close();
});

test('the watcher calls a VMM lost only when its sled says so by name', async () => {
  const claim = await claimed();
  await applyReport(database.db, claim.vmmId, vmmReport('running', 3));
  const readInventory = async () => ({ vmms: [] });
  for (const readState of [silence]) {
    const { watchSleds } = createReconcilerActivities(context({ readInventory, readState }));
    await inActivity(1, watchSleds);
    expect(await stateOf(claim.vmmId)).toBe('running');
  }
  const gone = async (): Promise<never> => {
    throw new SledError('gone', '404 NO_SUCH_INSTANCE');
  };
  const { watchSleds } = createReconcilerActivities(context({ readInventory, readState: gone }));
  expect((await inActivity(1, watchSleds)).found.lost).toEqual([claim.vmmId]);
  expect(await stateOf(claim.vmmId)).toBe('failed');
  expect(signalled).toEqual([claim.instanceId]);
});

test('an answer from the agent of another sled is not this one’s: nothing is lost by it, and it says what ails it', async () => {
  const claim = await claimed();
  await applyReport(database.db, claim.vmmId, vmmReport('running', 3));
  const other = await database.addSled();
  const agent = { agent_id: randomUUID(), version: null, trouble: [] };
  await recordSledAnswer(database.db, { id: other }, agent);
  const gone = async (): Promise<never> => {
    throw new SledError('gone', '404 NO_SUCH_INSTANCE');
  };
  const { watchSleds } = createReconcilerActivities(
    context({ readInventory: async () => ({ vmms: [] }), readState: gone, describe: async () => agent }),
  );
  for (let pass = 0; pass < 2; pass++) {
    expect((await inActivity(1, watchSleds)).found).toMatchObject({ lost: [], silent: [claim.sledName] });
    expect(await stateOf(claim.vmmId)).toBe('running');
  }
  const { rows } = await database.db.execute(
    sql`SELECT silent_since IS NOT NULL AS silent, agent_trouble FROM sled WHERE id = ${claim.sledId}`,
  );
  expect(rows).toEqual([{ silent: true, agent_trouble: [expect.stringContaining('one host is one sled')] }]);
});

test.each([
  ['plain', false],
  ['one that has joined', true],
])(
  'a sled that lists the VMM of another one (%s) is not believed about it, whatever it says; nor does it end what lives there',
  async (_, identified) => {
    const claim = await claimed();
    await applyReport(database.db, claim.vmmId, vmmReport('running', 3));
    const other = await database.addSled();
    await database.db.execute(sql`UPDATE sled SET identified = ${identified} WHERE id = ${claim.sledId}`);
    const own = { vmms: [{ vmm_id: claim.vmmId, instance_id: claim.instanceId, ...vmmReport('running', 3) }] };
    const unregistered: string[] = [];
    const pass = (said: Parameters<typeof vmmReport>[0], keeps: boolean) =>
      inActivity(
        1,
        createReconcilerActivities(
          context({
            readInventory: async ({ name }: { name: string }) =>
              name === claim.sledName
                ? keeps
                  ? own
                  : { vmms: [] }
                : {
                    vmms: [
                      { ...own.vmms[0], ...vmmReport(said, 99), vmm_id: claim.vmmId, instance_id: claim.instanceId },
                    ],
                  },
            unregister: async ({ name }: { name: string }) => {
              unregistered.push(name);
              return { updated_runtime: null };
            },
          }),
        ).watchSleds,
      );
    for (const said of ['running', 'failed', 'destroyed', 'stopping'] as const) {
      expect((await pass(said, true)).found).toMatchObject({ unregistered: [], lost: [], released: [] });
      expect([await stateOf(claim.vmmId), unregistered]).toEqual(['running', []]);
    }
    await applyReport(database.db, claim.vmmId, vmmReport('destroyed', 4));
    await pass('running', false);
    // What is over is ended wherever else it runs; a sled that has joined answers for its own alone.
    const { rows } = await database.db.execute(sql`SELECT name FROM sled WHERE id = ${other}`);
    expect([...new Set(unregistered)]).toEqual(identified ? [] : [rows[0]?.name]);
    expect(await stateOf(claim.vmmId)).toBe('destroyed');
  },
);

describe('an agent with another id than the one that the sled’s keeps', () => {
  const row = async (sledId: string) =>
    (
      await database.db.execute(
        sql`SELECT agent_id, kept_agent_id, silent_since IS NOT NULL AS silent, agent_trouble FROM sled WHERE id = ${sledId}`,
      )
    ).rows[0];
  const kept = { agent_id: randomUUID(), agent_id_kept: true, version: null, trouble: [] };
  const unkept = { agent_id: randomUUID(), agent_id_kept: false, version: null, trouble: [] };
  const watch = (agent: AgentDescription | null) =>
    inActivity(
      1,
      createReconcilerActivities(
        context({
          readInventory: async () => ({ vmms: [] }),
          readState: async () => {
            throw new SledError('gone', '404 NO_SUCH_INSTANCE');
          },
          describe: async () => agent,
        }),
      ).watchSleds,
    );

  test.each([
    ['kept', kept],
    ['made anew', unkept],
  ])('is its silence while VMMs live there, and says what ails it; else it is remembered (%s)', async (_, other) => {
    const claim = await claimed();
    const own = { ...kept, agent_id: randomUUID() };
    await recordSledAnswer(database.db, { id: claim.sledId }, own);
    await applyReport(database.db, claim.vmmId, vmmReport('running', 3));
    for (let pass = 0; pass < 2; pass++) {
      expect((await watch(other)).found).toMatchObject({ lost: [], silent: [claim.sledName] });
      expect(await stateOf(claim.vmmId)).toBe('running');
      expect(await row(claim.sledId)).toEqual({
        agent_id: own.agent_id,
        kept_agent_id: own.agent_id,
        silent: true,
        agent_trouble: [expect.stringMatching(`${other.agent_id}.*${own.agent_id}.*declare-dead ${claim.sledName}`)],
      });
    }
    // Its own agent answers again, and is believed.
    expect((await watch(own)).found).toMatchObject({ silent: [], lost: [claim.vmmId] });
    expect(await row(claim.sledId)).toMatchObject({ silent: false, agent_trouble: [] });
    expect((await watch(other)).found).toMatchObject({ silent: [] });
    expect(await row(claim.sledId)).toEqual({
      agent_id: other.agent_id,
      kept_agent_id: other.agent_id_kept ? other.agent_id : null,
      silent: false,
      agent_trouble: [],
    });
  });

  test('nor is one that does not know the question its own: it knew it', async () => {
    const claim = await claimed();
    await recordSledAnswer(database.db, { id: claim.sledId }, kept);
    await applyReport(database.db, claim.vmmId, vmmReport('running', 3));
    expect((await watch(null)).found).toMatchObject({ lost: [], silent: [claim.sledName] });
    expect(await stateOf(claim.vmmId)).toBe('running');
    expect(await row(claim.sledId)).toMatchObject({
      kept_agent_id: kept.agent_id,
      silent: true,
      agent_trouble: [expect.stringContaining('does not say that it is the sled')],
    });
    await applyReport(database.db, claim.vmmId, vmmReport('destroyed', 4));
    // Nothing of the former one's is left: who answers takes VMMs, and must be believed about them.
    expect((await watch(null)).found).toMatchObject({ silent: [] });
    expect(await row(claim.sledId)).toMatchObject({ agent_id: null, kept_agent_id: null, silent: false });
    // Its own one, should that come back, says so.
    await watch(kept);
    expect(await row(claim.sledId)).toMatchObject({ kept_agent_id: kept.agent_id, silent: false });
  });

  test('is not taken for its own beside a VMM that is only claimed: the former one may have been told to make it', async () => {
    const claim = await claimed();
    const own = { ...kept, agent_id: randomUUID() };
    await recordSledAnswer(database.db, { id: claim.sledId }, own);
    expect((await watch(null)).found).toMatchObject({ silent: [] });
    expect(await row(claim.sledId)).toMatchObject({ kept_agent_id: own.agent_id, silent: false });
    await watch(kept);
    expect(await row(claim.sledId)).toMatchObject({ kept_agent_id: own.agent_id, silent: true });
    expect(await stateOf(claim.vmmId)).toBe('creating');
  });

  test('nor where a guest has begun since the pass did', async () => {
    const sledId = await database.addSled();
    const own = { ...kept, agent_id: randomUUID() };
    await recordSledAnswer(database.db, { id: sledId }, own);
    expect(await adoptAgent(database.db, sledId, kept)).toBe(true);
    expect(await row(sledId)).toMatchObject({ kept_agent_id: kept.agent_id });
    const claim = await claimed();
    await recordSledAnswer(database.db, { id: claim.sledId }, own);
    await applyReport(database.db, claim.vmmId, vmmReport('running', 3));
    expect(await adoptAgent(database.db, claim.sledId, { ...kept, agent_id: randomUUID() })).toBe(false);
    expect(await row(claim.sledId)).toMatchObject({ kept_agent_id: own.agent_id });
  });

  test('nor where another sled has got it meanwhile: then it is silent, and says whose its agent is', async () => {
    const [here, there] = [await database.addSled(), await database.addSled()];
    await recordSledAnswer(database.db, { id: here }, { ...kept, agent_id: randomUUID() });
    await recordSledAnswer(database.db, { id: there }, kept);
    const before = await row(here);
    expect(await adoptAgent(database.db, here, kept)).toBe(true);
    expect(await row(here)).toEqual({
      ...before,
      silent: true,
      agent_trouble: [expect.stringContaining('one host is one sled')],
    });
  });

  test.each([
    ['an agent whose id is made anew at each start', unkept],
    ['an agent that now keeps its id', kept],
  ])('of a sled whose agent keeps none, %s is its own', async (_, other) => {
    const claim = await claimed();
    await recordSledAnswer(database.db, { id: claim.sledId }, { ...unkept, agent_id: randomUUID() });
    await applyReport(database.db, claim.vmmId, vmmReport('running', 3));
    expect((await watch(other)).found.lost).toEqual([claim.vmmId]);
    expect(await row(claim.sledId)).toMatchObject({ agent_id: other.agent_id, silent: false });
  });

  test.each(['another sled', 'another installation'])(
    'of %s: it takes no VMM, ends none, and says why',
    async (whose) => {
      const claim = await claimed();
      const owner = await database.addSled();
      await recordSledAnswer(database.db, { id: owner }, kept);
      const takes = async () => {
        const { rows } = await database.db.execute(
          sql`SELECT another_answers, silent_since IS NOT NULL AS silent, agent_trouble FROM sled WHERE id = ${claim.sledId}`,
        );
        return rows[0];
      };
      const isOwners = (sled: SledAddress) => sled.name !== claim.sledName;
      const own = { ...kept, agent_id: randomUUID() };
      const pass = async (isBack: boolean) => {
        const learned: unknown[] = [];
        const { found } = await inActivity(
          1,
          createReconcilerActivities(
            context({
              learnAgents: (all) => learned.push(...all),
              readInventory: async (sled) => {
                if (whose === 'another installation' && !isBack && !isOwners(sled))
                  throw new AnotherInstallation('unavailable', 'of the installation a', { answered: false });
                return { vmms: isOwners(sled) || isBack ? [] : [{ ...vmmReport('running', 3), ...stranger }] };
              },
              unregister: async (_, vmmId) => {
                calls.push(vmmId);
                return { updated_runtime: null };
              },
              describe: async (sled) => (isOwners(sled) || (whose === 'another sled' && !isBack) ? kept : own),
            }),
          ).watchSleds,
        );
        expect(learned).toContainEqual(expect.objectContaining({ id: owner, keptAgentId: kept.agent_id }));
        return found;
      };
      const stranger = { vmm_id: randomUUID(), instance_id: claim.instanceId };
      for (let time = 0; time < 2; time++)
        expect(await pass(false)).toMatchObject({ silent: [claim.sledName], unregistered: [], lost: [] });
      expect(calls).toEqual([]);
      const why = whose === 'another sled' ? 'one host is one sled' : 'of the installation a';
      expect(await takes()).toEqual({
        another_answers: true,
        silent: true,
        agent_trouble: [expect.stringContaining(why)],
      });
      expect(await pass(true)).toMatchObject({ silent: [] });
      expect(await takes()).toEqual({ another_answers: false, silent: false, agent_trouble: [] });
    },
  );

  test('every step that speaks to a sled names the agent that speaks for it', async () => {
    const claim = await claimed();
    await recordSledAnswer(database.db, { id: claim.sledId }, kept);
    const { keptAgentId } = (await readSled(database.db, claim.sledId)) ?? {};
    expect(keptAgentId).toBe(kept.agent_id);
    expect(await claimStart(database.db, { ...attemptOf(claim), reason: 'user' })).toMatchObject({
      sledAgentId: kept.agent_id,
    });
    await applyReport(database.db, claim.vmmId, vmmReport('starting', 2), { markCommanded: true });
    const heard: [string, string | null | undefined][] = [];
    const hear =
      (call: string) =>
      async (sled: { keptAgentId: string | null }): Promise<never> => {
        heard.push([call, sled.keptAgentId]);
        throw new SledError('unavailable', 'not now');
      };
    const sleds = context({
      register: hear('register'),
      unregister: hear('unregister'),
      setState: hear('setState'),
      readState: hear('readState'),
    } as Partial<SledClient>);
    const steps = createSagaActivities(sleds);
    const tried = async (step: () => Promise<unknown>) => void (await inActivity(2, step).catch(() => {}));
    await tried(() => steps.registerVmm({ ...claim, sledAgentId: null }));
    await tried(() => steps.runVmm(attemptOf(claim)));
    await tried(() => steps.unregisterVmm({ vmmId: claim.vmmId, sled: attemptOf(claim).sled }));
    await recordStop(database.db, claim.instanceId);
    await tried(() => steps.deliverStop({ instanceId: claim.instanceId }));
    expect(heard).toEqual([
      ['register', kept.agent_id],
      ['setState', kept.agent_id],
      ['unregister', kept.agent_id],
      ['setState', kept.agent_id],
    ]);
  });
});

test('the watcher writes what it hears of a sled where that is news, and about once a minute', async () => {
  const sledId = await database.addSled();
  const readInventory = async () => ({ vmms: [] });
  const written = async () =>
    (await database.db.execute(sql`SELECT xmin::text AS written FROM sled WHERE id = ${sledId}`)).rows[0]?.written;
  const pass = async (sleds: Partial<SledClient>) => {
    const before = await written();
    await inActivity(1, createReconcilerActivities(context(sleds)).watchSleds);
    return (await written()) !== before;
  };
  const described = (over: Partial<AgentDescription> = {}) => ({
    readInventory,
    describe: async () => ({ agent_id: AGENT_ID, version: '1', trouble: [], ...over }),
  });
  expect(await pass(described())).toBe(true);
  expect(await pass(described())).toBe(false);
  expect(await pass(described({ version: '2' }))).toBe(true);
  expect(await pass(described({ version: '2', trouble: ['its disk is full'] }))).toBe(true);
  expect(await pass(described({ version: '2', trouble: ['its disk is full'] }))).toBe(false);
  // The question alone was not answered.
  expect(await pass({ readInventory })).toBe(false);
  expect(await pass({})).toBe(true);
  expect(await pass({})).toBe(false);
  const busy = async (): Promise<never> => {
    throw new SledError('unavailable', '503 NOT_READY', { answered: true });
  };
  expect(await pass({ readInventory: busy })).toBe(true);
  await database.db.execute(sql`UPDATE sled SET last_answered_at = now() - interval '2 minutes'`);
  expect(await pass({ readInventory })).toBe(true);
});

test('a step within the workflow task asks a sled that was busy a moment ago, and not one that gave no answer', async () => {
  const claim = await claimed();
  const request = { vmmId: claim.vmmId, sled: { name: claim.sledName, address: claim.sledAddress, keptAgentId: null } };
  for (const [answered, times] of [
    [true, 2],
    [false, 1],
  ] as const) {
    let asked = 0;
    const unregister = async (): Promise<never> => {
      asked += 1;
      throw new SledError('unavailable', 'not now', { answered });
    };
    const { unregisterVmm } = createSagaActivities(context({ unregister }));
    for (let time = 0; time < 2; time++)
      expect(await failureType(atOnce(() => unregisterVmm(request)))).toBe('SledUnavailable');
    expect(asked).toBe(times);
  }
});

test('a sled that is silent loses nothing', async () => {
  const claim = await claimed();
  await applyReport(database.db, claim.vmmId, vmmReport('running', 3));
  const { watchSleds } = createReconcilerActivities(context({}));
  expect((await inActivity(1, watchSleds)).found.silent).toHaveLength(1);
  expect(await stateOf(claim.vmmId)).toBe('running');
});

test('the watcher does not fail a VMM that is still being created', async () => {
  const claim = await claimed();
  const gone = async (): Promise<never> => {
    throw new SledError('gone', '404 NO_SUCH_INSTANCE');
  };
  const { watchSleds } = createReconcilerActivities(
    context({ readInventory: async () => ({ vmms: [] }), readState: gone }),
  );
  await inActivity(1, watchSleds);
  expect(await stateOf(claim.vmmId)).toBe('creating');
});

test('the watcher unregisters what the database does not know', async () => {
  const claim = await claimed();
  const stranger = { ...vmmReport('running', 3), vmm_id: randomUUID(), instance_id: claim.instanceId };
  const unregister: SledClient['unregister'] = async (_, vmmId) => {
    calls.push(vmmId);
    return { updated_runtime: null };
  };
  const { watchSleds } = createReconcilerActivities(
    context({ readInventory: async () => ({ vmms: [stranger] }), unregister }),
  );
  expect((await inActivity(1, watchSleds)).found.unregistered).toEqual([stranger.vmm_id]);
  expect(calls).toEqual([stranger.vmm_id]);
});

test('the scan signals an instance whose signal was lost', async () => {
  const claim = await claimed();
  await applyReport(database.db, claim.vmmId, vmmReport('destroyed', 3));
  const { scanForUpdates } = createReconcilerActivities(context({}));
  expect((await inActivity(1, scanForUpdates)).found.signalled).toEqual([claim.instanceId]);
  expect(signalled).toEqual([claim.instanceId]);
});

test('an instance that the scan can not look at hides none behind it', async () => {
  const claims = [await claimed(), await claimed()];
  for (const claim of claims) await applyReport(database.db, claim.vmmId, vmmReport('destroyed', 3));
  const { workflows, ...rest } = context({});
  let attempts = 0;
  const flaky = {
    ...workflows,
    signalUpdate: async (instanceId: string) => {
      attempts += 1;
      if (attempts === 1) throw new Error('not this one');
      signalled.push(instanceId);
    },
  } as typeof workflows;
  const { scanForUpdates } = createReconcilerActivities({ ...rest, workflows: flaky });
  await expect(inActivity(1, scanForUpdates)).rejects.toThrow('not this one');
  expect(signalled).toHaveLength(1);
});
