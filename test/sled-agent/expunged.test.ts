/** A sled agent hears that its sled was expunged, by whatever answer: it ends that sled's guests, says so, and takes no more. */
import { randomUUID } from 'node:crypto';
import { type FastifyInstance, type FastifyReply, fastify } from 'fastify';
import { afterAll, afterEach, beforeAll, beforeEach, expect, test } from 'vitest';
import { type SledAgentHandle, startSledAgent } from '../../sled-agent/server.ts';
import { SledCaller } from '../support/sled.ts';
import { eventually } from '../support/wait.ts';

const HERE = randomUUID();
const ELSEWHERE = randomUUID();
const WAYS = ['a report', 'a poll of the network table', 'a renewal of the lease'] as const;
type Way = (typeof WAYS)[number];

/** A control plane that answers one kind of call with a body of its own, and takes everything else. */
let plane: FastifyInstance;
let url: string;
let expunged: { readonly way: Way; readonly status: number; readonly body: unknown } | null = null;
let said: string[] = [];
let agent: SledAgentHandle | null = null;

function answer(way: Way, reply: FastifyReply, otherwise: () => unknown): unknown {
  if (expunged?.way !== way) return otherwise();
  return reply.status(expunged.status).send(expunged.body);
}

beforeAll(async () => {
  plane = fastify();
  plane.put('/vmms/:id', (_, reply) =>
    answer('a report', reply, () => reply.status(204).header('x-request-id', 'r').send()),
  );
  plane.get('/network/instances', (request, reply) => {
    const page = { items: [], next: 'next', more: false, reset: false };
    // As the control plane does: only who names that sled hears of it.
    const asked = (request.query as { sled_id?: string }).sled_id;
    return asked === HERE ? answer('a poll of the network table', reply, () => page) : page;
  });
  plane.put('/sleds/:id/lease', (_, reply) =>
    answer('a renewal of the lease', reply, () => ({ epoch: 0, margin_ms: 5_000 })),
  );
  url = await plane.listen({ host: '127.0.0.1', port: 0 });
});
beforeEach(() => {
  expunged = null;
  said = [];
});
afterEach(async () => {
  await agent?.stop();
  agent = null;
});
afterAll(() => plane?.close());

async function started(fenced: boolean): Promise<SledCaller> {
  agent = await startSledAgent({
    ...{ name: 's', listen: '127.0.0.1:0', controlPlaneUrl: url, threads: 8, memoryBytes: 2 ** 33 },
    ...{ transitionMs: 1, networkPollMs: 20 },
    onTrouble: (message) => said.push(message),
    ...(fenced ? { fencing: { leaseMs: 10_000, sledId: HERE, onTrouble: (message) => said.push(message) } } : {}),
  });
  await agent.ready;
  return new SledCaller(agent, 2 ** 28);
}

async function running(sled: SledCaller, sledId: string): Promise<string> {
  const vmmId = randomUUID();
  expect((await sled.register(vmmId, { sled_id: sledId })).status).toBe(200);
  await sled.command(vmmId, 'running');
  await eventually(() => executes(vmmId), `VMM ${vmmId} never ran`);
  return vmmId;
}

function executes(vmmId: string): boolean {
  const log = agent?.faults.guestLog().filter((entry) => entry.vmm_id === vmmId) ?? [];
  return log.at(-1)?.event === 'began';
}

const BODY = { error_code: 'SLED_EXPUNGED', message: 'the sled was expunged', request_id: 'r' };
const CELLS = [
  ...WAYS.slice(0, 2).flatMap((way) => [403, 409, 410].map((status) => [way, status] as const)),
  [WAYS[2], 409] as const,
  [WAYS[2], 403] as const,
];

test.each(CELLS)('by %s, answered with %i', async (way, status) => {
  const sled = await started(way === 'a renewal of the lease');
  const vmmId = await running(sled, HERE);
  expunged = { way, status, body: BODY };
  // A report is sent when something happens.
  if (way === 'a report') await sled.command(vmmId, 'reboot');
  await eventually(() => !executes(vmmId), 'its guest was never ended');
  await eventually(() => said.some((message) => /was expunged.*powered off/.test(message)), 'it never said so');
  // For good of that sled; where it holds no lease any more, the answer is that.
  const refused = await sled.register(randomUUID(), { sled_id: HERE });
  expect([refused.status, refused.body.error_code]).toEqual([409, 'SLED_EXPUNGED']);
});

test.each([
  ['without the mark', { message: 'the sled was expunged' }],
  ['of another refusal', { ...BODY, error_code: 'FOREIGN_VMM' }],
  ['that is no JSON', 'SLED_EXPUNGED'],
])('an answer %s ends nothing', async (_, body) => {
  const sled = await started(false);
  const vmmId = await running(sled, HERE);
  for (const way of WAYS.slice(0, 2)) {
    expunged = { way, status: 403, body };
    const { passes } = agent?.network ?? { passes: 0 };
    await sled.command(vmmId, 'reboot');
    expunged = { way: 'a report', status: 403, body };
    await eventually(() => (agent?.network.passes ?? 0) > passes, 'it polls no more');
  }
  expect(executes(vmmId)).toBe(true);
  expect(said).toEqual([]);
  expect((await sled.register(randomUUID(), { sled_id: HERE })).status).toBe(200);
});

test('an agent that was added anew keeps the guests of the sled that it is now', async () => {
  const sled = await started(false);
  const before = await running(sled, HERE);
  const now = await running(sled, ELSEWHERE);
  expunged = { way: 'a poll of the network table', status: 403, body: BODY };
  await eventually(() => !executes(before), 'the guest of the expunged sled was never ended');
  expect(executes(now)).toBe(true);
  expect((await sled.register(randomUUID(), { sled_id: ELSEWHERE })).status).toBe(200);
  expect((await sled.register(randomUUID(), { sled_id: HERE })).status).toBe(409);
});
