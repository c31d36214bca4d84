/**
 * What this process lacks is no sled's silence: every error of the system, in every way in which a sled is asked, and the process
 * without file descriptors itself.
 */
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { createServer, type Server } from 'node:http';
import { constants } from 'node:os';
import { fileURLToPath } from 'node:url';
import { afterAll, beforeAll, beforeEach, describe, expect, test, vi } from 'vitest';
import { isSilence } from '../../activities/silence.ts';
import { CannotAsk, SledClient, SledError } from '../../activities/sled-client.ts';
import { describeError } from '../../api/errors.ts';
import { askFormerAddress, probeSled } from '../../api/probe-sled.ts';

/** What the system says when a host is looked up and connected to: nothing as long as it is `null`, or for so many more times. */
const system: { fails: string | null; after: number } = { fails: null, after: 0 };
vi.mock('../../platform/host/name-lookups.ts', () => ({
  nameLookups:
    () =>
    (
      _: string,
      options: { all?: boolean },
      callback: (error: Error | null, address?: unknown, family?: number) => void,
    ) => {
      const { fails } = system;
      if (fails !== null && system.after-- <= 0)
        callback(Object.assign(new Error(`connect ${fails}`), { code: fails, syscall: 'connect' }));
      else if (options.all) callback(null, [{ address: '127.0.0.1', family: 4 }]);
      else callback(null, '127.0.0.1', 4);
    },
}));

/** The network's, or the other end's, by its code. */
const SILENCES = [
  ...['ECONNREFUSED', 'ECONNRESET', 'ECONNABORTED', 'EPIPE', 'ETIMEDOUT', 'EHOSTUNREACH', 'ENETUNREACH'],
  ...['EHOSTDOWN', 'ENETRESET', 'ENOTFOUND', 'UND_ERR_CONNECT_TIMEOUT'],
];
/** Every error that the system knows, the name service's, and those of a connection that was broken off here. */
const LOCAL = [
  ...Object.keys(constants.errno),
  ...[
    'EAI_AGAIN',
    'EAI_FAIL',
    'EAI_MEMORY',
    'EAI_SYSTEM',
    'ENFILE',
    'UND_ERR_DESTROYED',
    'UND_ERR_CLOSED',
    'ABORT_ERR',
  ],
].filter((code) => !SILENCES.includes(code) && code !== 'EPROTO');

let server: Server;
let port = 0;
/** Who answers: what its own agent says, without an id in its answers. */
beforeAll(async () => {
  server = createServer((request, response) => {
    response.setHeader('connection', 'close');
    request.resume().on('end', () => response.end(request.url === '/agent' ? 'no JSON' : '{"vmms":[]}'));
  });
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
  const at = server.address();
  port = typeof at === 'object' && at !== null ? at.port : 0;
});
afterAll(() => void server.close());
beforeEach(() => {
  system.fails = null;
  system.after = 0;
});

const LIMIT_MS = 5_000;
const sledAt = () => ({ name: 'sled-1', address: `sled.test:${port}`, keptAgentId: null });
const OWN = '00000000-0000-4000-8000-000000000001';
/** The ways in which a sled is asked, and how many connections each makes before the one that fails. */
const ASKED: Readonly<
  Record<string, { readonly before?: number; readonly ask: (client: SledClient) => Promise<unknown> }>
> = {
  'whether a plain sled answers': { ask: (client) => client.answers(sledAt(), LIMIT_MS) },
  'whether a plain sled answers whose agent keeps an id': {
    ask: (client) => client.answers({ ...sledAt(), keptAgentId: OWN }, LIMIT_MS),
  },
  'who answers for a plain sled whose agent keeps an id': {
    before: 1,
    ask: (client) => client.answers({ ...sledAt(), keptAgentId: OWN }, LIMIT_MS),
  },
  'whether a sled answers that has joined': {
    ask: (client) => client.answers({ ...sledAt(), identified: true }, LIMIT_MS),
  },
  'what is at a former address': { ask: (client) => askFormerAddress(client, sledAt()) },
  'whether one is off': { ask: (client) => probeSled(client, sledAt()) },
  'who is at a new address': { ask: (client) => client.describe(sledAt(), LIMIT_MS, { at: 'new address' }) },
  'who a sled is': { ask: (client) => client.describe(sledAt(), LIMIT_MS) },
  'what is at a new address': { ask: (client) => client.readInventory(sledAt(), LIMIT_MS, { at: 'new address' }) },
  'for a VMM': { ask: (client) => client.readState(sledAt(), 'v', LIMIT_MS) },
};

async function outcomeOf(ask: (client: SledClient) => Promise<unknown>, client = new SledClient()): Promise<unknown> {
  try {
    return await ask(client);
  } catch (error) {
    if (error instanceof CannotAsk) return [error.answered, describeError(error).status];
    return error instanceof SledError ? ['silent', error.answered] : error;
  } finally {
    await client.close();
  }
}

describe.each(Object.entries(ASKED))('%s', (_, { before = 0, ask }) => {
  test('is not known for whatever this process lacks, and its caller is told to try again', async () => {
    for (const code of LOCAL) {
      Object.assign(system, { fails: code, after: before });
      expect([code, await outcomeOf(ask)]).toEqual([code, [null, 503]]);
    }
  });

  test('is known where the network is silent', async () => {
    for (const code of SILENCES) {
      Object.assign(system, { fails: code, after: before });
      const outcome = await outcomeOf(ask);
      if (before > 0) expect([code, outcome]).toEqual([code, true]);
      else expect([code, JSON.stringify(outcome)]).toEqual([code, expect.stringMatching(/false|silent/)]);
    }
  });
});

test.each(Object.entries(ASKED).filter(([, { before = 0 }]) => before === 0))(
  '%s: an installation whose id can’t be read is no silence, nor is a directory of sleds',
  async (what, { ask }) => {
    const installation = async () => {
      throw new Error('the database is away');
    };
    const outcome = await outcomeOf(ask, new SledClient(undefined, null, installation));
    // A call of a saga throws what the database has thrown; a handshake says nothing of the installation.
    if (/VMM|what is at a new/.test(what)) expect(outcome).toMatchObject({ message: 'the database is away' });
    else if (/joined/.test(what)) expect(outcome).toBe(true);
    else expect(outcome).toEqual([null, 503]);
  },
);

test('one of the addresses of a name may be of a family that this host has not; else each of them must be silent', () => {
  const failing = (code: string, address: string) =>
    Object.assign(new Error(code), { code, address, syscall: 'connect' });
  const both = (one: string, other: string) =>
    isSilence(new AggregateError([failing(one, '::1'), failing(other, '127.0.0.1')]));
  expect(both('ECONNREFUSED', 'ECONNREFUSED')).toBe(true);
  for (const code of ['EADDRNOTAVAIL', 'EAFNOSUPPORT']) {
    expect(both(code, 'ECONNREFUSED')).toBe(true);
    expect(both('ECONNREFUSED', code)).toBe(false);
    expect(both(code, code)).toBe(false);
  }
  for (const code of ['EMFILE', 'ENFILE', 'ENOBUFS']) {
    expect(both(code, 'ECONNREFUSED')).toBe(false);
    expect(both('ETIMEDOUT', code)).toBe(false);
  }
});

test('a process that was itself held up for longer than the limit has not heard that nobody answers', async () => {
  const client = new SledClient();
  const silent = createServer(() => {});
  await new Promise<void>((resolve) => silent.listen(0, '127.0.0.1', resolve));
  const at = silent.address();
  const address = `127.0.0.1:${typeof at === 'object' && at !== null ? at.port : 0}`;
  try {
    const asked = client.answers({ name: 'sled-1', address, keptAgentId: null }, 50);
    await new Promise((resolve) => setImmediate(resolve));
    const until = performance.now() + 2_300;
    while (performance.now() < until);
    await expect(asked).rejects.toBeInstanceOf(CannotAsk);
    expect(await client.answers({ name: 'sled-1', address, keptAgentId: null }, 50)).toBe(false);
  } finally {
    silent.closeAllConnections();
    silent.close();
    await client.close();
  }
});

/** Without a descriptor left, and then with them again: against a sled that runs, in another process. */
const WITHOUT_DESCRIPTORS = `
import { closeSync, openSync } from 'node:fs';
import { createServer } from 'node:http';
import { once } from 'node:events';
import { SledClient } from ${JSON.stringify(new URL('../../activities/sled-client.ts', import.meta.url).href)};
import { processDescriptors } from ${JSON.stringify(new URL('../../platform/host/descriptor-reserve.ts', import.meta.url).href)};
const server = createServer((_, response) => response.end('{"vmms":[]}'));
server.listen(0, '127.0.0.1');
await once(server, 'listening');
const sled = { name: 's', address: '127.0.0.1:' + server.address().port, keptAgentId: null };
const client = new SledClient();
const ask = async () => {
  const outcomes = [];
  for (const identified of [false, true])
    outcomes.push(await client.answers({ ...sled, identified }, 3000).catch((error) => error.constructor.name));
  return outcomes;
};
const said = {};
said.free = await ask();
const held = [];
const fill = () => { try { for (;;) held.push(openSync('/dev/null', 'r')); } catch {} };
fill();
said.none = await ask();
for (const one of held.splice(0)) closeSync(one);
const giveUp = processDescriptors.hold(() => {});
fill();
said.reserve = await ask();
for (const one of held.splice(0)) closeSync(one);
giveUp();
process.stdout.write(JSON.stringify(said));
process.exit(0);
`;

test('without file descriptors it says that it can’t ask, and with the reserve it asks', async () => {
  const child = spawn(
    'sh',
    ['-c', `ulimit -n 256; exec "${process.execPath}" --import tsx --input-type=module -e "$SCRIPT"`],
    {
      cwd: fileURLToPath(new URL('../..', import.meta.url)),
      env: { ...process.env, SCRIPT: WITHOUT_DESCRIPTORS },
      stdio: ['ignore', 'pipe', 'inherit'],
    },
  );
  let text = '';
  child.stdout.setEncoding('utf8').on('data', (chunk: string) => {
    text += chunk;
  });
  await once(child, 'close');
  // A server in plain HTTP that is spoken to in TLS has answered, too.
  expect(JSON.parse(text)).toEqual({
    free: [true, true],
    none: ['CannotAsk', 'CannotAsk'],
    reserve: [true, true],
  });
});
