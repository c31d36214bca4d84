/**
 * What does not carry the mark of the control plane, or of a sled agent, is no answer: whatever a proxy, a gateway or a portal
 * says in its place, whoever hears it. Every status with every kind of body, for every caller.
 */
import { randomUUID } from 'node:crypto';
import { mkdtempSync, rmSync } from 'node:fs';
import { createServer, type Server } from 'node:http';
import type { AddressInfo } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import type { z } from 'zod';
import { SledClient, SledError } from '../../activities/sled-client.ts';
import { MooringApiError, MooringClient, MooringConnectionError } from '../../client/mooring-client.ts';
import { classifySledAnswer, type SledCommand } from '../../model/sled-answer.ts';
import { waitUntil } from '../../platform/host/child-process.ts';
import { ControlPlaneMarks } from '../../sled-agent/control-plane-marks.ts';
import { NetworkTable } from '../../sled-agent/network-table.ts';
import { Reporter } from '../../sled-agent/reporter.ts';
import { nothing, readControlPlaneAnswer, readSledError } from '../../wire/answer-mark.ts';
import { leaseGranted, sledIdentity } from '../../wire/lease-protocol.ts';
import { networkPage } from '../../wire/network-protocol.ts';
import { instanceView } from '../../wire/operator-api/instances.ts';
import { joinAnswer, migrationDestination, renewAnswer, revokedCertificates } from '../../wire/sled-identity.ts';
import { INSTANCE } from '../support/sled.ts';

const MARKED = { error_code: 'NotFound', message: 'not found', request_id: randomUUID() };
const without = (field: keyof typeof MARKED) => JSON.stringify({ ...MARKED, [field]: undefined });

/** What somebody else may say. The control plane's own errors are none of these; of a sled's, some would be. */
const STRANGERS: Readonly<Record<string, string>> = {
  empty: '',
  page: '<!doctype html><html><body><h1>Sign in to the network</h1></body></html>',
  text: 'default backend - 404',
  'JSON of a gateway': '{"message":"Forbidden"}',
  'JSON of a framework': '{"statusCode":404,"error":"Not Found","message":"Route not found"}',
  'an empty object': '{}',
  'an empty list': '[]',
  'a null': 'null',
  'a number': '1',
  'an error without a code': without('error_code'),
  'an error with an empty code': JSON.stringify({ ...MARKED, error_code: '' }),
  'an error whose code is a number': JSON.stringify({ ...MARKED, error_code: 404 }),
  'an error that was cut off': JSON.stringify(MARKED).slice(0, -1),
  'an error with something after it': `${JSON.stringify(MARKED)}<!-- cached -->`,
};
/** The same for who listens to the control plane, whose errors have a request id and a message as well. */
const FALSE_CONTROL_PLANES: Readonly<Record<string, string>> = {
  ...STRANGERS,
  'an error without a request id': without('request_id'),
  'an error with an empty request id': JSON.stringify({ ...MARKED, request_id: '' }),
  'an error without a message': without('message'),
};
const EVERY_STATUS = Array.from({ length: 400 }, (_, index) => 200 + index);

describe('by itself', () => {
  const asked: Readonly<Record<string, z.ZodType>> = {
    report: nothing,
    lease: leaseGranted,
    'id of a sled': sledIdentity,
    network: networkPage,
    join: joinAnswer,
    'renewed certificate': renewAnswer,
    'revoked certificates': revokedCertificates,
    'destination of a migration': migrationDestination,
    instance: instanceView,
  };

  test.each(Object.entries(asked))('an answer without the control plane’s mark is none: %s', (_, schema) => {
    const taken = EVERY_STATUS.flatMap((status) =>
      Object.entries(FALSE_CONTROL_PLANES)
        .filter(([, text]) => readControlPlaneAnswer({ status, text }, schema).kind !== 'none')
        .map(([what]) => `${status} ${what}`),
    );
    expect(taken).toEqual([]);
  });

  test('its own errors are its word, with whatever else an endpoint says, and only as errors', () => {
    const text = JSON.stringify({ ...MARKED, epoch: 3 });
    for (const status of EVERY_STATUS) {
      const read = readControlPlaneAnswer({ status, text }, leaseGranted);
      expect([status, read.kind]).toEqual([status, status >= 400 ? 'refused' : 'none']);
      if (read.kind === 'refused') expect(read.error).toMatchObject({ error_code: 'NotFound', epoch: 3 });
    }
  });

  test('a success is one by its schema, whichever 2xx it has; without a body by its header', () => {
    const text = JSON.stringify({ epoch: 1, margin_ms: 2, more: 'of a newer version' });
    for (const status of [200, 201, 202])
      expect(readControlPlaneAnswer({ status, text }, leaseGranted)).toEqual({
        kind: 'done',
        value: { epoch: 1, margin_ms: 2 },
      });
    expect(readControlPlaneAnswer({ status: 204, text: '', requestId: 'r' }, nothing).kind).toBe('done');
    expect(readControlPlaneAnswer({ status: 204, text: '', requestId: 'r' }, leaseGranted).kind).toBe('none');
    expect(readControlPlaneAnswer({ status: 200, text: '', requestId: 'r' }, nothing).kind).toBe('none');
  });

  test('no answer without a sled’s mark decides a command', () => {
    const taken = (['register', 'unregister', 'state', 'read'] satisfies SledCommand[]).flatMap((command) =>
      EVERY_STATUS.filter((status) => status >= 300).flatMap((status) =>
        Object.entries(STRANGERS)
          .filter(([, text]) => classifySledAnswer(command, status, readSledError(text)?.error_code) !== 'retry')
          .map(([what]) => `${command}: ${status} ${what}`),
      ),
    );
    expect(taken).toEqual([]);
  });
});

/** Statuses that stand for all of their kind, where each is a call over the network. */
const SOME_STATUSES = [
  ...[200, 201, 203, 206, 301, 302, 307, 400, 401, 403, 404, 409, 410, 413, 422, 429],
  ...[500, 502, 503, 504, 511],
];

interface Strange {
  readonly status: number;
  readonly text: string;
}

describe('over HTTP', () => {
  /** Answers each call with what the next of `next` says, or what its path asks for. */
  let answer: (path: string) => Strange = () => ({ status: 404, text: '' });
  const asked = new Map<string, number>();
  let server: Server;
  let url: string;
  let address: string;
  beforeAll(async () => {
    server = createServer((request, response) => {
      const path = request.url ?? '';
      asked.set(path, (asked.get(path) ?? 0) + 1);
      request.resume();
      const { status, text } = answer(path);
      // As proxies do, whose own header it is as well.
      const marks = {
        'content-type': text.startsWith('<') ? 'text/html' : 'application/json',
        'x-request-id': 'proxy',
      };
      response.writeHead(status, { ...marks, ...(status >= 300 && status < 400 ? { location: `${url}/login` } : {}) });
      response.end(text);
    });
    await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
    address = `127.0.0.1:${(server.address() as AddressInfo).port}`;
    url = `http://${address}`;
  });
  afterAll(() => {
    server.closeAllConnections();
    server.close();
  });

  const answersOf = (kinds: Readonly<Record<string, string>>): [string, Strange][] =>
    SOME_STATUSES.flatMap((status) =>
      Object.entries(kinds).map(([what, text]): [string, Strange] => [`${status} ${what}`, { status, text }]),
    );

  test('a sled that somebody answers for is silent, to every call of the protocol and to a look whether it is off', async () => {
    const client = new SledClient();
    const sled = { name: 'sled-1', address, keptAgentId: null };
    const id = randomUUID();
    const runtime = { state: 'starting', gen: 2, time_updated: new Date().toISOString() } as const;
    const calls = {
      register: () =>
        client.register(
          sled,
          id,
          {
            instance_id: INSTANCE,
            vmm_runtime: runtime,
            vmm_spec: { name: 'web', ncpus: 1, memory_bytes: 1 },
            vmm_addr: '127.0.0.1:1',
          },
          60_000,
        ),
      unregister: () => client.unregister(sled, id, 60_000),
      run: () => client.setState(sled, id, { type: 'running' }, 60_000),
      stop: () => client.setState(sled, id, { type: 'stopped' }, 60_000),
      read: () => client.readState(sled, id, 60_000),
      progress: () => client.readProgress(sled, id, 60_000),
      console: () => client.readConsole(sled, id, { fromOffset: 0, maxBytes: 1 }, 60_000),
      inventory: () => client.readInventory(sled, 60_000),
    };
    try {
      for (const [what, strange] of answersOf(STRANGERS)) {
        answer = () => strange;
        for (const [name, call] of Object.entries(calls)) {
          const error = await call().catch((failure: unknown) => failure);
          expect([what, name, error instanceof SledError ? error.kind : error]).toEqual([what, name, 'unavailable']);
        }
        expect([what, await client.answers(sled, 60_000)]).toEqual([what, false]);
      }
      answer = () => ({ status: 200, text: '{"vmms":[]}' });
      expect(await client.answers(sled, 60_000)).toBe(true);
      answer = () => ({ status: 503, text: '{"error_code":"NOT_READY"}' });
      expect(await client.answers(sled, 60_000)).toBe(true);
    } finally {
      await client.close();
    }
  });

  test('who is asked who it is, and is no agent, is nobody; an agent that others wrote doesn’t know the question', async () => {
    const client = new SledClient();
    const sled = { name: 'sled-1', address, keptAgentId: null };
    const ask = () => client.describe(sled, 60_000).catch((failure: unknown) => failure);
    const inventory = { status: 200, text: '{"vmms":[]}' };
    // The control plane's own errors look like an agent's.
    const refusals = answersOf({ 'an error of the API': JSON.stringify(MARKED) }).filter(
      ([, { status }]) => status < 500,
    );
    try {
      for (const [what, strange] of [
        ...answersOf(STRANGERS),
        ...refusals,
        ['204', { status: 204, text: '' }] as const,
      ]) {
        answer = () => strange;
        const error = await ask();
        expect([what, error instanceof SledError ? [error.kind, error.answered] : error]).toEqual([
          what,
          ['unavailable', false],
        ]);
        // Section 7 has no word on the answer to a question that is not in it: who has an inventory is an agent.
        answer = (path) => (path === '/vmms' ? inventory : strange);
        const waits = strange.status >= 500;
        expect([what, waits ? (await ask()) instanceof SledError : await ask()]).toEqual([what, waits ? true : null]);
      }
      const error = { error_code: 'NO_SUCH_ROUTE', message: 'no such route' };
      for (const text of [{ error_code: error.error_code }, error, { ...error, request_id: '' }].map((body) =>
        JSON.stringify(body),
      )) {
        for (const status of [400, 401, 403, 404, 405, 422, 501]) {
          // It doesn't know yet what runs there.
          answer = (path) =>
            path === '/vmms' ? { status: 503, text: '{"error_code":"NOT_READY"}' } : { status, text };
          expect([status, text, await ask()]).toEqual([status, text, null]);
        }
        answer = () => ({ status: 503, text });
        expect(await ask()).toMatchObject({ kind: 'unavailable', answered: true });
      }
      // Nor does one whose every error looks like the control plane's, until it knows what runs there.
      for (const [busy, expected] of [
        ['{"error_code":"NOT_READY"}', null],
        [JSON.stringify(MARKED), { kind: 'unavailable', answered: true }],
        ['<html>', { kind: 'unavailable', answered: false }],
      ] as const) {
        answer = (path) =>
          path === '/vmms' ? { status: 503, text: busy } : { status: 404, text: JSON.stringify(MARKED) };
        const said = await ask();
        if (expected === null) expect(said).toBeNull();
        else expect(said).toMatchObject(expected);
      }
      const described = { agent_id: randomUUID() };
      answer = () => ({ status: 200, text: JSON.stringify(described) });
      expect(await ask()).toMatchObject(described);
    } finally {
      await client.close();
    }
  });

  test('a report is sent again until the control plane itself has heard it', async () => {
    const strangers = answersOf(FALSE_CONTROL_PLANES);
    const byPath = new Map(strangers.map(([what, strange]) => [`/vmms/${encodeURIComponent(what)}`, strange]));
    const heard: string[] = [];
    asked.clear();
    let itself = false;
    answer = (path) => (itself ? { status: 204, text: '' } : (byPath.get(path) ?? { status: 204, text: '' }));
    const reporter = new Reporter(url, (vmmId) => void heard.push(decodeURIComponent(vmmId)));
    const report = { vmm_state: { state: 'destroyed', gen: 9, time_updated: new Date().toISOString() } } as const;
    try {
      for (const path of byPath.keys()) reporter.report(path.slice('/vmms/'.length), report);
      await waitUntil(
        () => [...byPath.keys()].every((path) => (asked.get(path) ?? 0) >= 2),
        'a report was not sent again',
      );
      expect(heard).toEqual([]);
      itself = true;
      await waitUntil(() => heard.length === byPath.size, 'a report was never heard');
    } finally {
      await reporter.stop();
    }
  });

  test('a refusal with the mark is the last word on a report, where it speaks of the report', async () => {
    const heard: string[] = [];
    asked.clear();
    answer = (path) => ({ status: Number(path.split('-').at(-1)), text: JSON.stringify(MARKED) });
    const reporter = new Reporter(url, (vmmId) => void heard.push(vmmId));
    const report = { vmm_state: { state: 'destroyed', gen: 9, time_updated: new Date().toISOString() } } as const;
    const final = [400, 403, 404, 409, 410, 422];
    const again = [401, 405, 408, 413, 414, 415, 417, 425, 429, 431, 500, 502, 503, 507];
    try {
      for (const status of [...final, ...again]) reporter.report(`vmm-${status}`, report);
      await waitUntil(() => again.every((status) => (asked.get(`/vmms/vmm-${status}`) ?? 0) >= 2), 'not sent again');
      await waitUntil(() => heard.length >= final.length, 'a refusal was not taken');
      expect(heard.sort()).toEqual(final.map((status) => `vmm-${status}`));
    } finally {
      await reporter.stop();
    }
  });

  test('where the control plane is nobody’s follower, a table of the network stays as it is', async () => {
    const entry = {
      instance_id: INSTANCE,
      sled_id: randomUUID(),
      vmm_id: randomUUID(),
      address: '10.0.0.1:80',
      generation: 1,
    };
    let next: Strange[] = [];
    const given: string[] = [];
    const page = { status: 200, text: JSON.stringify({ items: [entry], next: 'c', more: false, reset: true }) };
    answer = (path) => {
      given.push(path);
      return next.shift() ?? page;
    };
    const table = new NetworkTable(url, 1);
    try {
      await waitUntil(() => table.passes > 0, 'the table was never read');
      // Few, since it waits longer after each failure in a row: a good page comes between them.
      next = [404, 400, 200, 302, 503].flatMap((status) => [
        { status, text: status === 200 ? '{"items":[]}' : '<html></html>' },
        { ...page, text: page.text.replace('"reset":true', '"reset":false') },
      ]);
      given.length = 0;
      await waitUntil(() => next.length === 0, 'the table was not asked again');
      expect([...table.entries.keys()]).toEqual([INSTANCE]);
      // Nobody but the control plane has a cursor given up.
      expect(given.filter((path) => !path.includes('after='))).toEqual([]);
      next = [{ status: 400, text: JSON.stringify(MARKED) }];
      await waitUntil(() => given.some((path) => !path.includes('after=')), 'a refused cursor was kept');
    } finally {
      await table.stop();
    }
  });

  test('the client takes nobody else for the API', async () => {
    const client = new MooringClient({ url, token: 'secret' });
    const calls = {
      getInstance: () => client.getInstance(INSTANCE),
      deleteInstance: () => client.deleteInstance(INSTANCE),
      deleteProject: () => client.deleteProject('p'),
      listInstances: () => client.listInstances().next(),
      setSledPolicy: () => client.setSledPolicy(INSTANCE, 'provisionable'),
      stopInstance: () => client.stopInstance(INSTANCE),
      getOperation: () => client.getOperation(INSTANCE),
      whoAmI: () => client.whoAmI(),
      revokeToken: () => client.revokeToken('t'),
      expungeSled: () => client.expungeSled(INSTANCE),
      addSled: () => client.addSled({ name: 's', address: '10.0.0.1:1', threads: 1, memory: 2 ** 30 }),
      listNetwork: () => client.listNetwork().next(),
    };
    asked.clear();
    const all = Object.entries(calls);
    for (const [index, [what, strange]] of answersOf(FALSE_CONTROL_PLANES).entries()) {
      answer = () => strange;
      // Three each, and each of them with every kind of answer: there are seventeen.
      for (let more = 0; more < 3; more++) {
        const [name, call] = all[(index + more * 4) % all.length] ?? [];
        if (name === undefined || call === undefined) throw new Error('there are no calls');
        const error = await call().then(
          () => 'a success',
          (failure: unknown) => failure,
        );
        expect([what, name, error instanceof MooringConnectionError && !error.neverSent]).toEqual([what, name, true]);
      }
    }
    // Nobody is followed to where a redirect points.
    expect(asked.get('/login')).toBeUndefined();
    answer = () => ({ status: 404, text: JSON.stringify(MARKED) });
    for (const call of Object.values(calls)) await expect(call()).rejects.toThrow(MooringApiError);
  });

  test('a call with a key is sent again when somebody else answers, as when nobody does', async () => {
    const client = new MooringClient({ url });
    for (const strange of [
      { status: 502, text: '<html></html>' },
      { status: 404, text: 'default backend - 404' },
      { status: 200, text: '<html>Sign in</html>' },
      { status: 307, text: '' },
    ]) {
      const answers = [strange, { status: 409, text: JSON.stringify({ ...MARKED, error_code: 'Conflict' }) }];
      answer = () => answers.shift() ?? strange;
      await expect(client.startInstance(INSTANCE)).rejects.toMatchObject({ status: 409, errorCode: 'Conflict' });
    }
  });
});

test('a refusal of who reports is no word on the report: it is sent again, until the agent is the sled’s own', async () => {
  const heard: string[] = [];
  let asked = 0;
  let isOwn = false;
  const server = createServer((request, response) => {
    asked += 1;
    request.resume();
    response.writeHead(isOwn ? 204 : 403, { 'x-request-id': 'r' });
    response.end(isOwn ? '' : JSON.stringify({ ...MARKED, error_code: 'FOREIGN_AGENT' }));
  });
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
  const reporter = new Reporter(
    `http://127.0.0.1:${(server.address() as AddressInfo).port}`,
    (vmmId) => void heard.push(vmmId),
  );
  try {
    reporter.report('v', { vmm_state: { state: 'failed', gen: 9, time_updated: new Date().toISOString() } });
    await waitUntil(() => asked >= 3, 'it was not sent again');
    expect(heard).toEqual([]);
    isOwn = true;
    await waitUntil(() => heard.length === 1, 'it was never heard');
  } finally {
    await reporter.stop();
    server.closeAllConnections();
    server.close();
  }
});

test('a 204 without the control plane’s header is a stranger’s, for the end of a VMM always, else once it has marked one', async () => {
  const heard: string[] = [];
  let marked = false;
  const requests: string[] = [];
  const server = createServer((request, response) => {
    requests.push(request.url ?? '');
    request.resume();
    response.writeHead(204, marked ? { 'x-request-id': randomUUID() } : {});
    response.end();
  });
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
  const dataDir = mkdtempSync(join(tmpdir(), 'mooring-test-'));
  const start = () =>
    new Reporter(
      `http://127.0.0.1:${(server.address() as AddressInfo).port}`,
      (vmmId) => void heard.push(vmmId),
      null,
      undefined,
      undefined,
      new ControlPlaneMarks(dataDir),
    );
  const report = (vmmId: string, state: 'running' | 'stopped' | 'failed' | 'destroyed') =>
    reporter.report(vmmId, { vmm_state: { state, gen: 9, time_updated: new Date().toISOString() } });
  const triedAgain = (vmmId: string) =>
    waitUntil(() => requests.filter((path) => path === `/vmms/${vmmId}`).length >= 3, `${vmmId} was not sent again`);
  let reporter = start();
  try {
    // All that the protocol asks for.
    report('plain', 'running');
    report('failed', 'failed');
    report('destroyed', 'destroyed');
    await waitUntil(() => heard.includes('plain'), 'a plain 204 was not taken');
    await Promise.all([triedAgain('failed'), triedAgain('destroyed')]);
    expect(heard).toEqual(['plain']);
    marked = true;
    await waitUntil(() => heard.length === 3, 'a marked 204 was not taken');
    marked = false;
    report('strange', 'running');
    await triedAgain('strange');
    await reporter.stop();
    reporter = start();
    report('later', 'running');
    await triedAgain('later');
    expect(heard).toHaveLength(3);
    marked = true;
    await waitUntil(() => heard.includes('later'), 'it was never heard');
  } finally {
    await reporter.stop();
    server.closeAllConnections();
    server.close();
    rmSync(dataDir, { recursive: true, force: true });
  }
});
