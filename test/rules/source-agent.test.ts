/** Whose word a destination believes about the guest that it has: that of the source's own agent, not of whoever has its address. */
import { randomUUID } from 'node:crypto';
import { createServer, type Server } from 'node:http';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { PLAIN_TRANSPORT } from '../../sled-agent/peer-transport.ts';
import { askSource, handOverMessage } from '../../sled-agent/qemu/hand-over.ts';
import { AGENT_ID_HEADER, NO_SUCH_INSTANCE } from '../../wire/sled-protocol.ts';
import { vmmReport } from '../support/saga-steps.ts';

const OWN = randomUUID();
const VMM = randomUUID();
const MIGRATION = randomUUID();

type Out = 'in_progress' | 'completed' | 'failed';
const told = (state: Parameters<typeof vmmReport>[0], out: Out | null = null) => ({
  status: 200,
  body: vmmReport(state, 3, out === null ? {} : { out: { id: MIGRATION, state: out, gen: 2 } }),
});
/** What the source's agent may say, and what it means where that agent says it. */
const ANSWERS = {
  'it knows no such VMM': { status: 404, body: { error_code: NO_SUCH_INSTANCE, message: 'gone' }, means: 'gone' },
  'it has let the guest go': { ...told('destroyed', 'completed'), means: 'given' },
  'it keeps the guest': { ...told('running', 'failed'), means: 'kept' },
  'the guest has died': { ...told('failed'), means: 'gone' },
  'it is under way': { ...told('migrating', 'in_progress'), means: 'undecided' },
  'it knows no such page': { status: 404, body: { error_code: 'NOT_FOUND', message: 'no' }, means: 'unreachable' },
  'it is starting': { status: 503, body: { error_code: 'NOT_READY', message: 'no' }, means: 'unreachable' },
} as const;
const SHOWN = { 'its own id': OWN, 'another id': randomUUID(), 'no id': null } as const;

let answer: { status: number; body: object; shown: string | null } = { status: 500, body: {}, shown: null };
let server: Server;
let agent: string;
beforeAll(async () => {
  server = createServer((_, response) =>
    response
      .writeHead(answer.status, {
        connection: 'close',
        ...(answer.shown === null ? {} : { [AGENT_ID_HEADER]: answer.shown }),
      })
      .end(JSON.stringify(answer.body)),
  );
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
  const at = server.address();
  agent = `127.0.0.1:${typeof at === 'object' && at !== null ? at.port : 0}`;
});
afterAll(() => void server.close());

describe.each(Object.entries(ANSWERS))('an agent that says that %s', (_, { status, body, means }) => {
  test.each(Object.entries(SHOWN))('and shows %s', async (_, shown) => {
    answer = { status, body, shown };
    const ask = (agentId: string | null) => askSource(PLAIN_TRANSPORT, { vmmId: VMM, agent, agentId }, MIGRATION);
    expect(await ask(OWN)).toBe(shown === OWN ? means : 'unreachable');
    // A source that has not said who its agent is: one that others wrote.
    expect(await ask(null)).toBe(means);
  });
});

test('a source says who its agent is where it knows', () => {
  for (const more of [{}, { agent_id: OWN }]) {
    const message = { hello: { vmm_id: VMM, agent: '127.0.0.1:1', ...more } };
    expect(handOverMessage.parse(message)).toEqual(message);
  }
});
