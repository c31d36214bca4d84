/**
 * Whose word an answer is, where a sled's agent keeps its id: that no other agent, at the sled's address, speaks for it, and
 * that "no such VMM" is believed of the sled's own agent alone. Every call, against whoever may answer there.
 */
import { randomUUID } from 'node:crypto';
import { createServer, type Server } from 'node:http';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { AnotherAgent, type SledAddress, SledClient, SledError } from '../../activities/sled-client.ts';
import { AGENT_ID_HEADER } from '../../wire/sled-protocol.ts';
import { vmmReport } from '../support/saga-steps.ts';

const OWN = randomUUID();
const OTHER = randomUUID();
const LIMIT_MS = 5_000;

/** Who is at the address: what its answers carry, and what it answers to the question who it is (`null`: it doesn't know it). */
const AGENTS = {
  'its own agent': { header: OWN, agent: { agent_id: OWN, agent_id_kept: true } },
  'its own agent, which shows its id only when asked': { header: null, agent: { agent_id: OWN, agent_id_kept: true } },
  'another agent': { header: OTHER, agent: { agent_id: OTHER, agent_id_kept: true } },
  'another agent without data': { header: OTHER, agent: { agent_id: OTHER } },
  'another agent, which shows its id only when asked': {
    header: null,
    agent: { agent_id: OTHER, agent_id_kept: true },
  },
  'an agent that does not know the question': { header: null, agent: null },
} as const;
type Who = keyof typeof AGENTS;

let who: Who = 'its own agent';
/** How the calls are answered. */
let answer: { status: number; body: unknown } = { status: 200, body: null };
let asked = 0;
let server: Server;
let sled: SledAddress;
const client = new SledClient();
beforeAll(async () => {
  server = createServer((request, response) => {
    const { header, agent } = AGENTS[who];
    const say = (status: number, body: unknown) =>
      response
        .writeHead(status, { ...(header === null ? {} : { [AGENT_ID_HEADER]: header }), connection: 'close' })
        .end(JSON.stringify(body));
    request.resume().on('end', () => {
      if (request.url !== '/agent') return say(answer.status, answer.body);
      asked += 1;
      return agent === null ? say(404, { error_code: 'NOT_FOUND' }) : say(200, agent);
    });
  });
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
  const at = server.address();
  const port = typeof at === 'object' && at !== null ? at.port : 0;
  sled = { name: 'sled-1', address: `127.0.0.1:${port}`, keptAgentId: OWN };
});
afterAll(async () => {
  await client.close();
  server.close();
});

const register = {
  instance_id: randomUUID(),
  vmm_runtime: { state: 'starting' as const, gen: 2, time_updated: new Date().toISOString() },
  vmm_spec: { name: 'vm', ncpus: 1, memory_bytes: 1 },
  vmm_addr: '10.0.0.1:1',
};
const CALLS = {
  register: (at: SledAddress) => client.register(at, 'v', register, LIMIT_MS),
  unregister: (at: SledAddress) => client.unregister(at, 'v', LIMIT_MS),
  run: (at: SledAddress) => client.setState(at, 'v', { type: 'running' }, LIMIT_MS),
  stop: (at: SledAddress) => client.setState(at, 'v', { type: 'stopped' }, LIMIT_MS),
  reboot: (at: SledAddress) => client.setState(at, 'v', { type: 'reboot' }, LIMIT_MS),
  'read its state': (at: SledAddress) => client.readState(at, 'v', LIMIT_MS),
  'read its console': (at: SledAddress) => client.readConsole(at, 'v', { fromOffset: 0, maxBytes: 1 }, LIMIT_MS),
  'read all': (at: SledAddress) => client.readInventory(at, LIMIT_MS),
} as const;
type Call = keyof typeof CALLS;
const GONE = { status: 404, body: { error_code: 'NO_SUCH_INSTANCE' } };
const KNOWS_NOTHING = { status: 200, body: { updated_runtime: null } };

const outcomeOf = async (call: Call, at: SledAddress) => {
  asked = 0;
  return CALLS[call](at).then(
    () => 'done',
    (error: unknown) => (error instanceof AnotherAgent ? 'no word' : error instanceof SledError ? error.kind : error),
  );
};
const isOwn = (one: Who) => AGENTS[one].agent?.agent_id === OWN;
const everybody = Object.keys(AGENTS) as Who[];

describe.each(everybody)('%s', (name) => {
  test('answers that a VMM is not there', async () => {
    who = name;
    answer = GONE;
    for (const call of Object.keys(CALLS) as Call[])
      expect([call, await outcomeOf(call, sled)]).toEqual([call, isOwn(name) ? 'gone' : 'no word']);
    answer = KNOWS_NOTHING;
    expect(await outcomeOf('unregister', sled)).toBe(isOwn(name) ? 'done' : 'no word');
  });

  test('answers something else: whoever says that it is another one is nobody', async () => {
    who = name;
    const isAnother = AGENTS[name].header === OTHER;
    for (const [status, otherwise] of [
      [409, 'refused'],
      [503, 'unavailable'],
    ] as const) {
      answer = { status, body: { error_code: 'REFUSED' } };
      expect(await outcomeOf('run', sled)).toBe(isAnother ? 'no word' : otherwise);
    }
    answer = { status: 200, body: { updated_runtime: vmmReport('running', 3) } };
    for (const call of ['run', 'unregister'] as const)
      expect(await outcomeOf(call, sled)).toBe(isAnother ? 'no word' : 'done');
    answer = { status: 200, body: { vmms: [] } };
    expect(await outcomeOf('read all', sled)).toBe(isAnother ? 'no word' : 'done');
    expect(asked).toBe(0);
  });

  test('is a sign of life of the sled, unless it says that it is another one', async () => {
    who = name;
    answer = { status: 200, body: { vmms: [] } };
    const another = AGENTS[name].agent?.agent_id === OTHER;
    expect(await client.answers(sled, LIMIT_MS)).toBe(!another);
    answer = { status: 503, body: { error_code: 'NOT_READY' } };
    expect(await client.answers(sled, LIMIT_MS)).toBe(!another);
    // Of a newer version, or ill: what its own agent says may not be understood, but it is there.
    for (const body of [{ vmms: [{ vmm_state: { state: 'of another version' } }] }, 'nonsense', {}])
      for (const status of [200, 418, 500]) {
        answer = { status, body };
        const isUnderstood = await client.answers(sled, LIMIT_MS);
        if (AGENTS[name].header === sled.keptAgentId)
          expect([status, body, isUnderstood]).toEqual([status, body, true]);
        else if (another) expect(isUnderstood).toBe(false);
      }
  });

  test('is taken for the sled where no id is known that its agent keeps', async () => {
    who = name;
    const unknown = { ...sled, keptAgentId: null };
    answer = GONE;
    for (const call of Object.keys(CALLS) as Call[])
      expect([call, await outcomeOf(call, unknown)]).toEqual([call, 'gone']);
    answer = KNOWS_NOTHING;
    expect(await outcomeOf('unregister', unknown)).toBe('done');
    expect(asked).toBe(0);
    // A VMM in a state that is not known, or an answer that isn't: an agent that says who it is, or has VMMs, is there.
    for (const status of [200, 207])
      for (const vmms of [[], [{ vmm_state: { state: 'of another version' } }], [null], ['text']]) {
        answer = { status, body: { vmms } };
        expect([answer, await client.answers(unknown, LIMIT_MS)]).toEqual([answer, true]);
      }
    for (const body of ['nonsense', {}, { vmms: {} }])
      for (const status of [200, 418, 500]) {
        answer = { status, body };
        const shows = AGENTS[name].header !== null;
        expect([answer, await client.answers(unknown, LIMIT_MS)]).toEqual([answer, shows]);
      }
  });
});

test('another sled’s agent speaks for no sled, also where no id of that one’s is known', async () => {
  const learns = new SledClient();
  const unknown = { ...sled, keptAgentId: null };
  const outcome = (at: SledAddress) =>
    learns.setState(at, 'v', { type: 'running' }, LIMIT_MS).then(
      () => 'done',
      (error: unknown) => (error instanceof AnotherAgent ? error.message : error),
    );
  who = 'another agent';
  answer = KNOWS_NOTHING;
  expect(await outcome(unknown)).toBe('done');
  learns.learnAgents([unknown, { name: 'sled-2', keptAgentId: OTHER }]);
  expect(await outcome(unknown)).toContain('is that of sled "sled-2"');
  answer = { status: 200, body: vmmReport('starting', 2) };
  await expect(learns.register(unknown, 'v', register, LIMIT_MS)).rejects.toThrow(AnotherAgent);
  // It has learned whose agent this is in the meantime, and the step doesn't know it yet.
  answer = KNOWS_NOTHING;
  learns.learnAgents([{ ...sled, keptAgentId: OTHER }]);
  expect(await outcome(unknown)).toBe('done');
  await learns.close();
});

test('the sled’s own agent, which shows its id, is not asked for it', async () => {
  who = 'its own agent';
  answer = GONE;
  expect(await outcomeOf('stop', sled)).toBe('gone');
  answer = KNOWS_NOTHING;
  expect(await outcomeOf('unregister', sled)).toBe('done');
  expect(asked).toBe(0);
});

test('who neither shows who it is nor answers when asked has not spoken for the sled', async () => {
  const silent = createServer((request, response) => {
    if (request.url === '/agent') return response.writeHead(503).end();
    return response.writeHead(404).end(JSON.stringify({ error_code: 'NO_SUCH_INSTANCE' }));
  });
  await new Promise<void>((resolve) => silent.listen(0, '127.0.0.1', resolve));
  const at = silent.address();
  const address = `127.0.0.1:${typeof at === 'object' && at !== null ? at.port : 0}`;
  try {
    expect(await outcomeOf('stop', { ...sled, address })).toBe('unavailable');
  } finally {
    silent.closeAllConnections();
    silent.close();
  }
});
