/**
 * Somebody else answers in the control plane's place: a proxy whose back end is away, a gateway, a portal. A sled agent takes
 * nothing of it for a word, whatever it asked.
 */
import { randomUUID } from 'node:crypto';
import { mkdirSync, writeFileSync } from 'node:fs';
import { createServer as createHttpsServer } from 'node:https';
import type { AddressInfo } from 'node:net';
import { join } from 'node:path';
import { type FastifyInstance, fastify } from 'fastify';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { waitUntil } from '../../platform/host/child-process.ts';
import { Authority } from '../../platform/identity/authority.ts';
import { readRequest } from '../../platform/identity/certificates.ts';
import { Disk } from '../../sled-agent/disk.ts';
import { joinSled } from '../../sled-agent/join.ts';
import { LeaseKeeper } from '../../sled-agent/lease-keeper.ts';
import { type SledAgentHandle, startSledAgent } from '../../sled-agent/server.ts';
import { SledIdentity } from '../../sled-agent/sled-identity.ts';
import { writeInviteToken } from '../../wire/invite-token.ts';
import { Folders, GIBIBYTE, materialOf } from '../support/identities.ts';
import { loopbackAddress, SledCaller } from '../support/sled.ts';

interface Strange {
  readonly status: number;
  readonly text: string;
}

const SOME_STRANGERS: readonly Strange[] = [
  ...[200, 302, 400, 403, 404, 409, 410, 422, 502, 503].map((status) => ({ status, text: '<html>not me</html>' })),
  ...[400, 403, 404, 409, 422].flatMap((status) => [
    { status, text: '' },
    { status, text: '{"message":"Forbidden"}' },
    { status, text: '{"error_code":"SLED_DECLARED_DEAD","message":"off","epoch":7}' },
    { status, text: '{"message":"off","request_id":"r","epoch":7}' },
  ]),
  { status: 200, text: '{}' },
  { status: 200, text: '{"epoch":7' },
];

const folders = new Folders();
const plane: FastifyInstance = fastify();
let planeUrl = '';
/** Who answers instead; `null`: the control plane itself. */
let strange: ((path: string) => Strange) | null = null;
const asked: string[] = [];
/** The agents that renewals were of. */
const renewedBy: (string | undefined)[] = [];
const reports: { vmmId: string; state: string }[] = [];
beforeAll(async () => {
  plane.addHook('onRequest', async (request, reply) => {
    asked.push(request.url);
    if (request.url.endsWith('/lease')) renewedBy.push(request.headers['x-sled-agent-id']?.toString());
    const answer = strange?.(request.url);
    if (answer !== undefined) return reply.status(answer.status).type('text/html').send(answer.text);
    reply.header('x-request-id', request.id);
  });
  plane.put('/vmms/:id', async (request, reply) => {
    const { vmm_state } = request.body as { vmm_state: { state: string } };
    reports.push({ vmmId: (request.params as { id: string }).id, state: vmm_state.state });
    return reply.status(204).send();
  });
  plane.get('/sleds/by-name/:name', async () => ({ sled_id: '00000000-0000-4000-8000-000000000001' }));
  plane.put('/sleds/:id/lease', async () => ({ epoch: 0, margin_ms: 1 }));
  planeUrl = await plane.listen({ host: '127.0.0.1', port: 0 });
});
afterAll(async () => {
  await plane.close();
  await folders.close();
});

test('a proxy’s 404 while a guest shuts itself down: its end is still reported when the control plane is back', async () => {
  let agent: SledAgentHandle | undefined;
  try {
    agent = await startSledAgent({
      name: 's',
      listen: `${loopbackAddress()}:0`,
      controlPlaneUrl: planeUrl,
      threads: 64,
      memoryBytes: 2 ** 40,
      transitionMs: 1,
      networkPollMs: 0,
    });
    const sled = new SledCaller(agent, 2 ** 20);
    const vmms = await Promise.all(SOME_STRANGERS.map(async (who) => ({ who, ...(await sled.running()) })));
    await waitUntil(
      () => vmms.every(({ vmmId }) => reports.some((one) => one.vmmId === vmmId && one.state === 'running')),
      'a VMM was never reported to run',
    );
    const byPath = new Map(vmms.map(({ vmmId, who }) => [`/vmms/${vmmId}`, who]));
    asked.length = 0;
    strange = (path) => byPath.get(path) ?? { status: 404, text: '' };
    for (const { vmmId } of vmms) agent.faults.halt(vmmId);
    // Asked more often than it has states to report: nothing that was answered has been taken.
    await waitUntil(
      () => [...byPath.keys()].every((path) => asked.filter((one) => one === path).length >= 3),
      'a report was not sent again',
    );
    for (const { vmmId, who } of vmms)
      expect([who, (await sled.read(vmmId)).body.vmm_state?.state]).toEqual([
        who,
        expect.stringMatching(/stop|destroyed/),
      ]);
    strange = null;
    await waitUntil(
      () => vmms.every(({ vmmId }) => reports.some((one) => one.vmmId === vmmId && one.state === 'destroyed')),
      'the end of a guest was never reported',
    );
  } finally {
    strange = null;
    await agent?.stop();
  }
});

test('a lease is renewed, refused and lost by nobody but the control plane', async () => {
  const troubles: string[] = [];
  let poweredOff = 0;
  let next = 0;
  asked.length = 0;
  const renewals = () => asked.filter((path) => path.endsWith('/lease'));
  // First nobody who knows its name, then whoever answers its renewals.
  strange = () => SOME_STRANGERS[next++ % SOME_STRANGERS.length] ?? { status: 404, text: '' };
  const keeper = new LeaseKeeper({
    controlPlaneUrl: planeUrl,
    sledName: 's',
    leaseMs: 600,
    directory: await folders.make(),
    disk: new Disk(),
    vmsFolder: null,
    living: () => [],
    powerOff: async () => {
      poweredOff += 1;
    },
    onExpunged: async () => {},
    onTrouble: (message) => troubles.push(message),
  });
  try {
    keeper.start();
    await waitUntil(() => asked.length > SOME_STRANGERS.length, 'it did not go on asking who it is');
    expect([keeper.held, renewals()]).toEqual([false, []]);
    expect(troubles.join('\n')).not.toMatch(/there is no sled/);
    next = 0;
    strange = (path) => {
      if (!path.endsWith('/lease')) return { status: 200, text: '{"sled_id":"00000000-0000-4000-8000-000000000001"}' };
      return SOME_STRANGERS[next++ % SOME_STRANGERS.length] ?? { status: 404, text: '' };
    };
    await waitUntil(() => renewals().length > SOME_STRANGERS.length, 'it did not go on renewing');
    expect([keeper.held, poweredOff]).toEqual([false, 0]);
    expect(troubles.join('\n')).not.toMatch(/declared dead|expunged/);
    strange = null;
    await waitUntil(() => keeper.held, 'it never got a lease');
  } finally {
    strange = null;
    await keeper.stop(true);
  }
});

test('an agent that is not its sled’s own says why it has no lease, and why no report is taken, once each, and tries on', async () => {
  const troubles: string[] = [];
  let agent: SledAgentHandle | undefined;
  const refuse = (status: number, error_code: string) => () => ({
    status,
    text: JSON.stringify({ error_code, message: `the word of ${error_code}`, request_id: 'r' }),
  });
  const told = (pattern: RegExp) => troubles.filter((one) => pattern.test(one)).length;
  try {
    const { address } = { address: `${loopbackAddress()}:0` };
    const size = { threads: 64, memoryBytes: 2 ** 40, transitionMs: 1, networkPollMs: 0 };
    const common = { ...size, name: 's', listen: address, controlPlaneUrl: planeUrl, dataDir: await folders.make() };
    renewedBy.length = 0;
    agent = await startSledAgent({
      ...common,
      fencing: { leaseMs: 3_000 },
      onTrouble: (message) => troubles.push(message),
    });
    await agent.ready;
    const { agent_id: id } = (await (await fetch(`${agent.url}/agent`)).json()) as { agent_id: string };
    expect(new Set(renewedBy)).toEqual(new Set([id]));
    const sled = new SledCaller(agent, 2 ** 20);
    const { vmmId } = await sled.running();
    for (const [status, code] of [
      [403, 'FOREIGN_AGENT'],
      [401, 'CERTIFICATE_EXPIRED'],
    ] as const) {
      strange = refuse(status, code);
      asked.length = 0;
      agent.faults.halt(vmmId);
      await waitUntil(() => asked.filter((one) => one === `/vmms/${vmmId}`).length >= 4, 'it does not report again');
      await waitUntil(() => asked.filter((one) => one.endsWith('/lease')).length >= 3, 'it does not renew again');
      expect([code, told(new RegExp(`reports are refused \\(${status} ${code}`))]).toEqual([code, 1]);
      expect([code, told(new RegExp(`lease was not renewed.*${status}.*${code}`))]).toEqual([code, 1]);
    }
    strange = null;
    await waitUntil(
      () => reports.some((one) => one.vmmId === vmmId && one.state === 'destroyed'),
      'what was refused was not kept',
    );
  } finally {
    strange = null;
    await agent?.stop();
  }
});

test('a sled joins, and keeps its identity, by the control plane’s word alone', async () => {
  const authority = await Authority.openOrCreate(join(await folders.make(), 'authority'));
  const shown = await materialOf(authority, { kind: 'control_plane' }, ['127.0.0.1']);
  const answers: Strange[] = [
    { status: 404, text: '<html>default backend</html>' },
    { status: 403, text: '{"message":"Forbidden"}' },
    { status: 200, text: '<html>Sign in</html>' },
  ];
  let joins = 0;
  let lists = 0;
  const claimed: unknown[] = [];
  // Valid JSON, and no list: it must neither be taken for one nor end the agent.
  let list: Strange = { status: 200, text: '{"revoked":[]}' };
  const server = createHttpsServer(
    { key: shown.privateKeyPem, cert: `${shown.certificatePem}\n${shown.authorityPem}` },
    (request, response) => {
      let text = '';
      request.on('data', (chunk) => {
        text += chunk;
      });
      request.on('end', async () => {
        if (request.url === '/sled-identity/join') joins += 1;
        else lists += 1;
        const answer = request.url === '/sled-identity/join' ? answers.shift() : list;
        response.statusCode = answer?.status ?? 200;
        if (answer !== undefined) {
          response.end(answer.text);
          return;
        }
        const asked = JSON.parse(text);
        claimed.push(asked.vmm_ids);
        const requested = await readRequest(asked.request);
        if (requested === null) throw new Error('no request for a certificate');
        const sledId = randomUUID();
        const { pem } = await authority.issue(requested.request.publicKey, { kind: 'sled', sledId }, ['127.0.0.1']);
        const joined = { sled_id: sledId, name: 's', certificate: pem, authority: authority.certificatePem };
        response.end(JSON.stringify(joined));
      });
    },
  );
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
  const url = `https://127.0.0.1:${(server.address() as AddressInfo).port}`;
  const token = writeInviteToken({ url, authority: authority.fingerprint, secret: 'secret' });
  const folder = await folders.make();
  // Another agent with this folder had a VM: who joins with its data has it.
  const vmmId = randomUUID();
  mkdirSync(join(folder, 'vmm-records'));
  writeFileSync(join(folder, 'vmm-records', `${vmmId}.json`), '{}');
  try {
    const stored = await joinSled({ token, folder, address: '127.0.0.1:1', threads: 1, memoryBytes: GIBIBYTE });
    expect([stored.name, joins]).toEqual(['s', 4]);
    expect(claimed).toEqual([[vmmId]]);
    const identity = new SledIdentity(stored, folder);
    try {
      await waitUntil(() => lists > 0, 'it never asked for what was revoked');
      expect(await identity.destinationOf(randomUUID(), randomUUID())).toBeNull();
      list = { status: 200, text: '{"sled_id":1}' };
      expect(await identity.destinationOf(randomUUID(), randomUUID())).toBeNull();
    } finally {
      await identity.stop();
    }
    answers.push({ status: 403, text: '{"error_code":"Forbidden","message":"used before","request_id":"r"}' });
    joins = 0;
    await expect(
      joinSled({ token, folder, address: '127.0.0.1:1', threads: 1, memoryBytes: GIBIBYTE }),
    ).rejects.toThrow(/it answered 403: used before/);
    expect(joins).toBe(1);
  } finally {
    server.closeAllConnections();
    server.close();
  }
});
