/** Whom the control plane and the sleds believe, and who commands whom. */
import { createHash, randomUUID } from 'node:crypto';
import { mkdirSync, writeFileSync } from 'node:fs';
import { createServer } from 'node:http';
import { createServer as createHttpsServer, type Server } from 'node:https';
import { connect as connectTcp, type Socket } from 'node:net';
import { join } from 'node:path';
import { connect as connectTls, createServer as createTlsServer } from 'node:tls';
import { sql } from 'drizzle-orm';
import { pino } from 'pino';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { SledClient, SledError } from '../../activities/sled-client.ts';
import { SledDirectory } from '../../activities/sled-directory.ts';
import { type RunningApi, startApi } from '../../api/server.ts';
import { sledCertificate } from '../../db/schema.ts';
import { addSled } from '../../db/transactions/add-sled.ts';
import { freePort, waitUntil } from '../../platform/host/child-process.ts';
import { Authority } from '../../platform/identity/authority.ts';
import { makeKeyPair, makeRequest } from '../../platform/identity/certificates.ts';
import { becomeControlPlane } from '../../platform/identity/control-plane.ts';
import type { IdentityMaterial } from '../../platform/identity/holder.ts';
import { joinSled } from '../../sled-agent/join.ts';
import { readInviteToken, writeInviteToken } from '../../wire/invite-token.ts';
import { runCommand } from '../support/command.ts';
import { type Harness, refused, startHarness } from '../support/harness.ts';
import {
  Caller,
  callAs,
  Folders,
  GIBIBYTE,
  joinedWithoutAgent,
  materialOf,
  strangeAuthority,
} from '../support/identities.ts';
import { loopbackAddress } from '../support/sled.ts';

const folders = new Folders();
let harness: Harness;
let authority: Authority;
/** A second API beside the stack's, whose log and metrics are looked into. */
let api: RunningApi;
let logged = '';

beforeAll(async () => {
  harness = await startHarness({ sledTls: true, sleds: 2, reconcileEveryMs: 0 });
  if (harness.stack.authority === null) throw new Error('the stack has no authority');
  authority = harness.stack.authority;
  api = await startApi({
    databaseUrl: harness.stack.databaseUrl,
    temporal: harness.stack.temporal,
    host: '127.0.0.1',
    port: 0,
    metricsListen: '127.0.0.1:0',
    sledListener: { authority, host: '127.0.0.1', port: 0 },
    log: pino(
      { level: 'trace' },
      {
        write(line: string) {
          logged += line;
        },
      },
    ),
  });
});
afterAll(async () => {
  await api?.stop();
  await harness?.close();
  await folders.close();
});

async function refusedReports(reason: string): Promise<number> {
  const text = await (await fetch(`${api.metricsUrl}/metrics`)).text();
  return Number(new RegExp(`mooring_reports_refused_total\\{reason="${reason}"\\} (\\d+)`).exec(text)?.[1] ?? 0);
}

function failedReport() {
  return { vmm_state: { state: 'failed', gen: 1_000, time_updated: new Date().toISOString() } };
}

async function vmmRow(vmmId: string) {
  const { rows } = await harness.database.db.execute(
    sql`SELECT state, state_generation, sled_id FROM vmm WHERE id = ${vmmId}`,
  );
  return rows[0];
}

const reportUrl = (vmmId: string) => `${api.sledUrl}/vmms/${vmmId}`;

async function activeVmm(instanceId: string): Promise<string> {
  const { active } = await harness.record(instanceId);
  if (active == null) throw new Error('no active VMM');
  return active.id;
}

test('a report without a good certificate is refused with a message and counted, and writes nothing', async () => {
  const id = await harness.running();
  const vmmId = await activeVmm(id);
  const { here } = await harness.placed(id);
  const before = await vmmRow(vmmId);
  const expiring = await Authority.open(
    // The folder that holds the stack's authority: one that issues for a moment only.
    await copyOfAuthority(),
    1_000,
  );
  const expired = await materialOf(expiring, { kind: 'sled', sledId: here.id });
  await waitUntil(() => Date.now() > expired.notAfter.getTime(), 'the certificate never expired');
  const cases: [string, IdentityMaterial | null, number, string, string][] = [
    ['none', null, 401, 'NO_CERTIFICATE', 'no_certificate'],
    [
      'of another authority',
      await materialOf(await strangeAuthority(folders), { kind: 'sled', sledId: here.id }),
      401,
      'UNKNOWN_AUTHORITY',
      'other_authority',
    ],
    ['expired', expired, 401, 'CERTIFICATE_EXPIRED', 'expired'],
    [
      'the control plane’s',
      await materialOf(authority, { kind: 'control_plane' }),
      403,
      'NOT_A_SLED',
      'wrong_identity',
    ],
    // Signed by the authority, but no certificate that the installation gave to a sled.
    ['unknown', await materialOf(authority, { kind: 'sled', sledId: here.id }), 401, 'CERTIFICATE_REVOKED', 'revoked'],
  ];
  for (const [what, material, status, code, reason] of cases) {
    const counted = await refusedReports(reason);
    const answer = await callAs(material, 'PUT', reportUrl(vmmId), failedReport());
    expect([what, answer.status, answer.body.error_code]).toEqual([what, status, code]);
    expect(answer.body.message, what).not.toBe('');
    expect(await refusedReports(reason), what).toBe(counted + 1);
    for (const path of ['/network/instances', '/sled-identity/revoked', '/no/such/thing']) {
      expect([what, path, (await callAs(material, 'GET', api.sledUrl + path)).status]).toEqual([what, path, status]);
    }
  }
  expect(await vmmRow(vmmId)).toEqual(before);
});

/** The key is nowhere but in the stack's data: a test may take it from there. */
async function copyOfAuthority(): Promise<string> {
  const { rows } = await harness.database.db.execute(sql`SHOW data_directory`);
  return `${String(rows[0]?.data_directory).replace(/\/postgres.*$/, '')}/authority`;
}

test('a connection that outlives its certificate is worth nothing any more', async () => {
  const sledId = harness.stack.sleds[0]?.id ?? '';
  const short = await materialOf(await Authority.open(await copyOfAuthority(), 4_000), { kind: 'sled', sledId });
  await harness.database.db
    .insert(sledCertificate)
    .values({ serial: short.serial, sledId, timeExpires: short.notAfter });
  const caller = new Caller(short);
  try {
    expect((await caller.call('GET', `${api.sledUrl}/network/instances`)).status).toBe(200);
    await waitUntil(() => Date.now() > short.notAfter.getTime(), 'the certificate never expired');
    const answer = await caller.call('GET', `${api.sledUrl}/network/instances`);
    expect([answer.status, answer.body.error_code]).toEqual([401, 'CERTIFICATE_EXPIRED']);
  } finally {
    await caller.close();
  }
});

test('a sled speaks only of the VMMs that are placed on it', async () => {
  const id = await harness.running();
  const vmmId = await activeVmm(id);
  const foreign = await joinedWithoutAgent(harness.client, folders, 'foreign');
  const before = await vmmRow(vmmId);
  const counted = await refusedReports('foreign_vmm');
  const answer = await callAs(foreign, 'PUT', reportUrl(vmmId), failedReport());
  expect([answer.status, answer.body.error_code]).toEqual([403, 'FOREIGN_VMM']);
  expect(await refusedReports('foreign_vmm')).toBe(counted + 1);
  expect(await vmmRow(vmmId)).toEqual(before);
  // Nor by the operators' listener, where no certificate is asked for.
  const anonymous = await fetch(`${api.url}/vmms/${vmmId}`, {
    method: 'PUT',
    headers: { 'content-type': 'application/json' },
    body: JSON.stringify(failedReport()),
  });
  expect(anonymous.status).toBe(401);
  expect(await vmmRow(vmmId)).toEqual(before);
  expect((await callAs(foreign, 'PUT', reportUrl(randomUUID()), failedReport())).status).toBe(404);
  await harness.client.expungeSled(foreign.sledId);
});

test('a sled whose inventory names another’s VMM changes nothing of it', async () => {
  const id = await harness.running();
  const vmmId = await activeVmm(id);
  const before = await vmmRow(vmmId);
  const liar = await joinedWithoutAgent(harness.client, folders, 'liar');
  let requests = 0;
  let commands = 0;
  const server = await listenAs(liar, liar.address, (method) => {
    if (method !== 'GET') commands += 1;
    requests += 1;
    return { vmms: [{ vmm_id: vmmId, instance_id: id, ...failedReport() }] };
  });
  try {
    // A pass that was under way already did not see it.
    for (let pass = 0; pass < 5 && requests === 0; pass++) await harness.reconcile();
    expect(requests).toBeGreaterThan(0);
    expect(commands).toBe(0);
    expect(await vmmRow(vmmId)).toEqual(before);
    expect((await harness.record(id)).externalState).toBe('running');
  } finally {
    server.close();
    server.closeAllConnections();
    await harness.client.expungeSled(liar.sledId);
  }
});

/** An HTTPS server that answers everything with `answer`, and shows this identity. */
async function listenAs(
  material: IdentityMaterial,
  address: string,
  answer: (method: string) => unknown,
): Promise<Server> {
  const server = createHttpsServer(
    { key: material.privateKeyPem, cert: material.certificatePem, ca: material.authorityPem, requestCert: true },
    (incoming, response) => {
      response.setHeader('content-type', 'application/json');
      response.end(JSON.stringify(answer(incoming.method ?? '')));
    },
  );
  const at = address.lastIndexOf(':');
  await new Promise<void>((resolve) => server.listen(Number(address.slice(at + 1)), address.slice(0, at), resolve));
  return server;
}

test('a revoked sled reports nothing and is sent nothing until it joins again, and keeps its id then', async () => {
  const sled = await joinedWithoutAgent(harness.client, folders, 'revoked');
  const network = `${api.sledUrl}/network/instances`;
  expect((await callAs(sled, 'GET', network)).status).toBe(200);
  expect(await harness.client.revokeSledCertificates(sled.sledId)).toBe(1);
  const attempts = [
    callAs(sled, 'GET', network),
    callAs(sled, 'POST', `${api.sledUrl}/sled-identity/renew`, { request: await makeRequest(await makeKeyPair()) }),
    callAs(sled, 'PUT', reportUrl(await activeVmm(await harness.running())), failedReport()),
  ];
  for (const { status, body } of await Promise.all(attempts))
    expect([status, body.error_code]).toEqual([401, 'CERTIFICATE_REVOKED']);

  // Its agent would be sent nothing either: the certificate that it shows is known to be revoked.
  const server = await listenAs(sled, sled.address, () => ({ vmms: [] }));
  const directory = await SledDirectory.open(harness.database.db, await becomeControlPlane(authority));
  const client = new SledClient(undefined, directory);
  try {
    await expect(
      client.readInventory({ name: 'revoked', address: sled.address, keptAgentId: null }, 5_000),
    ).rejects.toThrow(/ERR_WRONG_PEER|not of sled/);
    const again = await joinedAgain(sled.name, sled.address);
    expect(again.sledId).toBe(sled.sledId);
    expect((await callAs(again, 'GET', network)).status).toBe(200);
    expect((await callAs(sled, 'GET', network)).status).toBe(401);
  } finally {
    await client.close();
    directory.close();
    server.close();
    server.closeAllConnections();
  }
  const [newest, former] = await harness.client.listSledCertificates(sled.sledId);
  expect([newest?.time_revoked, typeof former?.time_revoked]).toEqual([null, 'string']);
  await harness.client.expungeSled(sled.sledId);
});

async function joinedAgain(name: string, address: string, folder?: string) {
  const { token } = await harness.client.inviteSled({ name });
  const size = { threads: 1, memoryBytes: GIBIBYTE / 8 };
  return joinSled({ token, folder: folder ?? (await folders.make()), address, ...size });
}

async function freeAddress(): Promise<string> {
  const host = loopbackAddress();
  return `${host}:${await freePort(host)}`;
}

test('a sled whose certificates were revoked is powered on all the same: no word that it is off is believed', async () => {
  const sled = await joinedWithoutAgent(harness.client, folders, 'revoked-alive');
  const server = await listenAs(sled, sled.address, () => ({ vmms: [] }));
  await harness.client.revokeSledCertificates(sled.sledId);
  try {
    const off = { sled_powered_off: true };
    expect((await refused(harness.client.declareSledDead(sled.sledId, off))).message).toMatch(/answers/);
    expect((await refused(harness.client.expungeSled(sled.sledId))).message).toMatch(/answers/);
    // Nor by a process that has no authority, and could not speak to any sled that has joined.
    const stranger = new SledClient();
    expect(
      await stranger.answers({ name: sled.name, address: sled.address, identified: true, keptAgentId: null }, 5_000),
    ).toBe(true);
    await stranger.close();
  } finally {
    server.close();
    server.closeAllConnections();
  }
  expect(await harness.client.expungeSled(sled.sledId)).toMatchObject({ state: 'decommissioned' });
});

test('a sled that leaves hears it with every answer though its certificates were revoked, and is shown to wait for a word', async () => {
  const sled = await joinedWithoutAgent(harness.client, folders, 'revoked-leaving');
  await harness.client.revokeSledCertificates(sled.sledId);
  // As when it was expunged while it answered, with guests.
  await harness.database.db.execute(
    sql`UPDATE sled SET expunging_since = now(), policy = 'no_provision' WHERE id = ${sled.sledId}`,
  );
  const vmmId = await activeVmm(await harness.running());
  const before = await vmmRow(vmmId);
  for (const attempt of [
    callAs(sled, 'GET', `${api.sledUrl}/network/instances`),
    callAs(sled, 'PUT', reportUrl(vmmId), failedReport()),
    callAs(sled, 'PUT', `${api.sledUrl}/sleds/${sled.sledId}/lease`, { lease_ms: 60_000, held: false, vmms: [] }),
    callAs(sled, 'POST', `${api.sledUrl}/sled-identity/renew`, { request: await makeRequest(await makeKeyPair()) }),
  ]) {
    const { status, body } = await attempt;
    expect([status, body.error_code]).toEqual([403, 'SLED_EXPUNGED']);
  }
  expect(await vmmRow(vmmId)).toEqual(before);
  expect(await harness.client.getSled(sled.sledId)).toMatchObject({ state: 'active', expunge_awaits: 'word' });
  for (const command of [['list'], ['show', sled.name]]) {
    const { stdout } = await runCommand(['sled', ...command, '--api-url', harness.stack.apiUrl]);
    expect(stdout).toContain(`"mooring sled expunge ${sled.name}"`);
  }
  const off = { sled_powered_off: true };
  expect(await harness.client.expungeSled(sled.sledId, off)).toMatchObject({
    state: 'decommissioned',
    expunge_awaits: null,
  });
});

test('an expunged sled is heard only where it shows that it is that sled', async () => {
  const sled = await joinedWithoutAgent(harness.client, folders, 'heard');
  const other = await joinedWithoutAgent(harness.client, folders, 'not-heard');
  for (const { sledId } of [sled, other]) await harness.client.expungeSled(sledId);
  const directory = await SledDirectory.open(harness.database.db, await becomeControlPlane(authority));
  const client = new SledClient(undefined, directory);
  const asked = {
    id: sled.sledId,
    name: 'heard',
    address: sled.address,
    identified: true,
    expunged: true,
    keptAgentId: null,
  } as const;
  try {
    for (const [shown, heard] of [
      [sled, true],
      [other, false],
    ] as const) {
      const server = await listenAs(shown, sled.address, () => ({ vmms: [] }));
      const answer = await client.readInventory(asked, 5_000).catch((error: unknown) => error);
      expect(answer instanceof SledError).toBe(!heard);
      await new Promise((resolve) => {
        server.close(resolve);
        server.closeAllConnections();
      });
    }
  } finally {
    await client.close();
    directory.close();
  }
});

test('a sled whose VMs live at its address joins nowhere else: they would be called lost while they run', async () => {
  const id = await harness.running();
  const { here } = await harness.placed(id);
  const good = (await harness.client.listSledCertificates(here.id)).filter((one) => one.time_revoked === null);
  const { agent } = await harness.client.getSled(here.id);
  if (agent?.id == null) throw new Error('the sled does not say who it is');
  // Without its data; and with a copy of them, by all that the control plane can see: the agent that has the guest answers.
  const copy = await folders.make();
  writeFileSync(join(copy, 'agent-id'), agent.id);
  mkdirSync(join(copy, 'vmm-records'));
  writeFileSync(join(copy, 'vmm-records', `${await activeVmm(id)}.json`), '{}');
  for (const folder of [undefined, copy])
    await expect(joinedAgain(here.name, await freeAddress(), folder)).rejects.toThrow(
      `sled "${here.name}" answers at ${here.agent.address}: end its agent there first`,
    );
  expect(await harness.client.getSled(here.id)).toMatchObject({ address: here.agent.address });
  // Its identity is as good as before.
  expect((await harness.client.listSledCertificates(here.id)).filter((one) => one.time_revoked === null)).toEqual(good);
  await harness.client.stopInstance(id);
  await harness.shows(id, 'stopped');
});

test.each([
  ['nobody', false, false, true],
  ['nobody, and its certificates are revoked', false, true, true],
  ['its agent', true, false, false],
  ['its agent, whose certificates are revoked', true, true, false],
])(
  'a sled joins elsewhere where it was asked first whether it answers: there is %s',
  async (_, listens, revoked, ok) => {
    const sled = await joinedWithoutAgent(harness.client, folders, `asked-${randomUUID().slice(0, 8)}`);
    const server = listens ? await listenAs(sled, sled.address, () => ({ vmms: [] })) : null;
    try {
      if (revoked) await harness.client.revokeSledCertificates(sled.sledId);
      const to = await freeAddress();
      const joining = joinedAgain(sled.name, to);
      if (ok) expect((await joining).sledId).toBe(sled.sledId);
      else await expect(joining).rejects.toThrow(`answers at ${sled.address}: end its agent there first`);
      expect((await harness.client.getSled(sled.sledId)).address).toBe(ok ? to : sled.address);
      // What answers at its own address may be the agent that joins.
      if (!ok) expect((await joinedAgain(sled.name, sled.address)).sledId).toBe(sled.sledId);
    } finally {
      server?.close();
      server?.closeAllConnections();
    }
    await harness.client.expungeSled(sled.sledId);
  },
);

test('a plain sled joins elsewhere once its agent does not answer any more; nobody is asked for a stranger', async () => {
  const address = await freeAddress();
  const [host, port] = address.split(':');
  let asked = 0;
  const server = createServer((_, response) => {
    asked += 1;
    response.setHeader('content-type', 'application/json').end('{"vmms":[]}');
  });
  const open = () => new Promise<void>((resolve) => server.listen(Number(port), host, resolve));
  const shut = () =>
    new Promise<void>((resolve) => {
      server.close(() => resolve());
      server.closeAllConnections();
    });
  await open();
  const db = harness.database.db;
  const plain = await addSled(db, { name: 'plain-asked', address, threads: 1, memoryBytes: GIBIBYTE / 8 });
  try {
    const to = await freeAddress();
    await expect(joinedAgain('plain-asked', to)).rejects.toThrow(`answers at ${address}: end its agent there first`);
    expect(asked).toBeGreaterThan(0);
    asked = 0;
    const { token } = await harness.client.inviteSled({ name: 'plain-asked' });
    const parts = readInviteToken(token);
    if (parts === null) throw new Error('no token');
    const guessed = writeInviteToken({ ...parts, secret: 'guessed' });
    const where = { folder: await folders.make(), address: to, threads: 1, memoryBytes: GIBIBYTE / 8 };
    await expect(joinSled({ token: guessed, ...where })).rejects.toThrow(/not one of this installation/);
    expect(asked).toBe(0);
    await shut();
    expect((await joinSled({ token, ...where })).sledId).toBe(plain.id);
  } finally {
    if (server.listening) await shut();
  }
  await harness.client.expungeSled(plain.id);
});

test('the certificate of an expunged sled ends with it; a sled of the same name is another one', async () => {
  const sled = await joinedWithoutAgent(harness.client, folders, 'gone');
  await harness.client.expungeSled(sled.sledId);
  for (const attempt of [
    callAs(sled, 'GET', `${api.sledUrl}/network/instances`),
    callAs(sled, 'PUT', reportUrl(await activeVmm(await harness.running())), failedReport()),
    callAs(sled, 'POST', `${api.sledUrl}/sled-identity/renew`, { request: await makeRequest(await makeKeyPair()) }),
  ]) {
    const { status, body } = await attempt;
    expect([status, body.error_code]).toEqual([403, 'SLED_EXPUNGED']);
  }
  const other = await joinedAgain('gone', sled.address);
  expect(other.sledId).not.toBe(sled.sledId);
  await harness.client.expungeSled(other.sledId);
});

test('the control plane tells nothing to another sled’s agent, or a stranger’s, at a sled’s address', async () => {
  const sled = await joinedWithoutAgent(harness.client, folders, 'victim');
  const thief = await joinedWithoutAgent(harness.client, folders, 'thief');
  const host = sled.address.slice(0, sled.address.lastIndexOf(':'));
  const directory = await SledDirectory.open(harness.database.db, await becomeControlPlane(authority));
  const client = new SledClient(undefined, directory);
  const impostors: IdentityMaterial[] = [
    thief,
    await materialOf(await strangeAuthority(folders), { kind: 'sled', sledId: sled.sledId }, [host]),
    await materialOf(authority, { kind: 'control_plane' }, [host]),
  ];
  try {
    for (const impostor of impostors) {
      let received = 0;
      const server = await listenAs(impostor, sled.address, () => {
        received += 1;
        return { vmms: [] };
      });
      const error = await client
        .readInventory({ name: 'victim', address: sled.address, keptAgentId: null }, 5_000)
        .catch((e) => e);
      expect(error).toBeInstanceOf(SledError);
      expect([error.kind, received]).toEqual(['unavailable', 0]);
      await new Promise((resolve) => {
        server.close(resolve);
        server.closeAllConnections();
      });
    }
    const server = await listenAs(sled, sled.address, () => ({ vmms: [] }));
    expect(await client.readInventory({ name: 'victim', address: sled.address, keptAgentId: null }, 5_000)).toEqual({
      vmms: [],
    });
    server.close();
    server.closeAllConnections();
    await expect(
      client.readInventory({ name: 'nobody', address: '127.0.0.1:9', keptAgentId: null }, 5_000),
    ).rejects.toThrow(/no sled that is not expunged/);
  } finally {
    await client.close();
    directory.close();
    await harness.client.expungeSled(sled.sledId);
    await harness.client.expungeSled(thief.sledId);
  }
});

test('an agent takes commands from its control plane alone; another sled may only ask for a VMM’s state', async () => {
  const id = await harness.running();
  const vmmId = await activeVmm(id);
  const { here } = await harness.placed(id);
  const sled = await joinedWithoutAgent(harness.client, folders, 'curious');
  const { url } = here.agent;
  const stranger = await strangeAuthority(folders);
  for (const material of [null, await materialOf(stranger, { kind: 'control_plane' })])
    await expect(callAs(material, 'GET', `${url}/vmms`)).rejects.toThrow();
  // Not even a line in the clear.
  await expect(fetch(`${url.replace('https', 'http')}/vmms`)).rejects.toThrow();

  const before = await vmmRow(vmmId);
  for (const [method, path, body] of [
    ['GET', '/vmms', undefined],
    ['DELETE', `/vmms/${vmmId}`, undefined],
    ['PUT', `/vmms/${vmmId}/state`, { state: { type: 'stopped' } }],
    ['GET', `/vmms/${vmmId}/serial-console`, undefined],
    ['POST', '/test/faults', {}],
  ] as const) {
    const answer = await callAs(sled, method, url + path, body);
    expect([method, path, answer.status, answer.body.error_code]).toEqual([method, path, 403, 'NOT_THE_CONTROL_PLANE']);
  }
  expect((await callAs(sled, 'GET', `${url}/vmms/${vmmId}/state`)).status).toBe(200);
  const known = await callAs(await materialOf(authority, { kind: 'control_plane' }), 'GET', `${url}/vmms`);
  expect(known.status).toBe(200);
  expect(await vmmRow(vmmId)).toEqual(before);

  // Once revoked, not even that.
  await harness.client.revokeSledCertificates(sled.sledId);
  await waitUntil(
    async () => (await callAs(sled, 'GET', `${url}/vmms/${vmmId}/state`)).status === 403,
    'the agent never learned of the revocation',
    30_000,
    200,
  );
  await harness.client.expungeSled(sled.sledId);
});

test('nobody but the destination of a migration gets a guest from a VMM', async () => {
  const id = await harness.running();
  const vmmId = await activeVmm(id);
  const { rows } = await harness.database.db.execute(sql`SELECT ip, port FROM vmm WHERE id = ${vmmId}`);
  const { ip, port } = rows[0] as { ip: string; port: number };
  const ask = `${JSON.stringify({ fetch: randomUUID(), instance: id })}\n`;
  const receivedFrom = (dial: () => Socket) =>
    new Promise<string>((resolve) => {
      let text = '';
      const socket = dial();
      socket.setEncoding('latin1');
      socket.on('data', (data) => {
        text += data;
      });
      socket.on('error', () => {});
      socket.once('close', () => resolve(text));
    });
  const at = { host: String(ip), port: Number(port) };
  const plain = await receivedFrom(() => {
    const socket = connectTcp(at, () => socket.write(ask));
    return socket;
  });
  expect(plain).not.toContain('begin');
  const { here } = await harness.placed(id);
  for (const stranger of [
    await materialOf(await strangeAuthority(folders), { kind: 'sled', sledId: here.id }),
    await materialOf(authority, { kind: 'control_plane' }),
    // A sled of the installation, to which no migration goes.
    await materialOf(authority, { kind: 'sled', sledId: (await harness.placed(id)).there.id }),
  ]) {
    const received = await receivedFrom(() => {
      const credentials = { key: stranger.privateKeyPem, cert: stranger.certificatePem, rejectUnauthorized: false };
      const socket = connectTls({ ...at, ...credentials }, () => socket.write(ask));
      return socket;
    });
    expect(received).not.toContain('begin');
  }
  expect((await harness.record(id)).externalState).toBe('running');
});

test('an invitation is good once, for a time, and only where it is from', async () => {
  const where = async () => {
    const host = loopbackAddress();
    return {
      folder: await folders.make(),
      address: `${host}:${await freePort(host)}`,
      threads: 1,
      memoryBytes: GIBIBYTE,
    };
  };
  const { token } = await harness.client.inviteSled({ name: 'invited' });
  const secret = readInviteToken(token)?.secret ?? '';
  const join = async (given: string) => joinSled({ token: given, ...(await where()) });

  // Two at once, one of them a thief: exactly one is the sled.
  const outcomes = await Promise.allSettled([join(token), join(token)]);
  expect(outcomes.map(({ status }) => status).sort()).toEqual(['fulfilled', 'rejected']);
  await expect(join(token)).rejects.toThrow(/used before.*mooring sled invite/);

  const { token: short } = await harness.client.inviteSled({ name: 'late', valid_seconds: 1 });
  await waitUntil(async () => {
    const { rows } = await harness.database.db.execute(
      sql`SELECT 1 FROM sled_invite WHERE sled_name = 'late' AND time_expires < now()`,
    );
    return rows.length === 1;
  }, 'the invitation never expired');
  await expect(join(short)).rejects.toThrow(/has expired/);

  const parts = readInviteToken(token);
  if (parts === null) throw new Error('the token is none');
  await expect(join(writeInviteToken({ ...parts, secret: 'guessed' }))).rejects.toThrow(/not one of this installation/);
  await expect(join('mooring-sled-invite-nonsense')).rejects.toThrow(/not the token of an invitation/);

  // A server that is not the control plane, though it is at the token's address, receives nothing of it.
  let received = '';
  const impostor = await materialOf(await strangeAuthority(folders), { kind: 'control_plane' });
  const server = createTlsServer({ key: impostor.privateKeyPem, cert: impostor.certificatePem }, (socket) => {
    socket.on('error', () => {});
    socket.on('data', (data) => {
      received += data.toString('latin1');
    });
  });
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
  const bound = server.address();
  const url = `https://127.0.0.1:${typeof bound === 'object' ? bound?.port : 0}`;
  const { token: good } = await harness.client.inviteSled({ name: 'misled' });
  const misled = writeInviteToken({ ...(readInviteToken(good) ?? parts), url });
  const error = await join(misled).catch((e: Error) => e);
  expect(String(error)).toMatch(/has another authority. Nothing was sent/);
  expect(received).toBe('');
  server.close();

  // A sled's own certificate makes no control plane: a sled that answers in its place is no better.
  const invited = outcomes.find((one) => one.status === 'fulfilled')?.value;
  if (invited === undefined) throw new Error('nobody joined');
  let requests = 0;
  const sledServer = await listenAs(
    { ...invited, certificatePem: `${invited.certificatePem}\n${invited.authorityPem}` },
    `127.0.0.1:${await freePort()}`,
    () => {
      requests += 1;
      return {};
    },
  );
  const at = sledServer.address();
  const sledUrl = `https://127.0.0.1:${typeof at === 'object' ? at?.port : 0}`;
  await expect(join(writeInviteToken({ ...(readInviteToken(good) ?? parts), url: sledUrl }))).rejects.toThrow(
    /not of the control plane/,
  );
  expect(requests).toBe(0);
  sledServer.close();

  // What was answered, printed and stored has neither the secret nor a key.
  const stored = await everythingStored();
  for (const text of [logged, String(error), stored]) {
    expect(text).not.toContain(secret);
    expect(text).not.toContain('PRIVATE KEY');
  }
  expect(stored).toContain(createHash('sha256').update(secret).digest('hex'));
  await harness.client.expungeSled(invited.sledId);
});

/** Every row of every table, as text. */
async function everythingStored(): Promise<string> {
  const { db } = harness.database;
  const { rows } = await db.execute(
    sql`SELECT format('%I.%I', schemaname, tablename) AS name FROM pg_tables WHERE schemaname NOT IN ('pg_catalog', 'information_schema')`,
  );
  const texts = await Promise.all(
    rows.map(({ name }) =>
      db.execute(sql`SELECT coalesce(string_agg(one::text, ' '), '') AS text FROM ${sql.raw(String(name))} one`),
    ),
  );
  return texts.map((result) => String(result.rows[0]?.text)).join('\n');
}

test('no key is in a workflow’s history', async () => {
  const id = await harness.running();
  const { there } = await harness.placed(id);
  await harness.client.migrateInstance(id, there.id);
  await harness.shows(id, 'running');
  let histories = 0;
  for await (const execution of harness.temporal.workflow.list()) {
    const handle = harness.temporal.workflow.getHandle(execution.workflowId, execution.runId);
    const { events } = await handle.fetchHistory();
    const text = JSON.stringify(events, (_, value) =>
      value instanceof Uint8Array ? Buffer.from(value).toString('latin1') : value,
    );
    expect(text).not.toContain('PRIVATE KEY');
    expect(text).not.toContain('mooring-sled-invite-');
    histories += 1;
  }
  expect(histories).toBeGreaterThan(2);
});

test('an API takes a sled without an identity only where it is configured to', async () => {
  const error = await refused(
    harness.client.addSled({ name: 'plain', address: '127.0.0.1:9', threads: 1, memory: GIBIBYTE }),
  );
  expect(error.status).toBe(400);
  expect(error.message).toMatch(/^address: .*mooring sled invite.*--insecure-sleds/);
});

test('a process without the authority says that it can’t speak to sleds that have joined', async () => {
  let output = '';
  const alone = await startApi({
    databaseUrl: harness.stack.databaseUrl,
    temporal: harness.stack.temporal,
    host: '127.0.0.1',
    port: 0,
    authentication: 'open',
    log: pino(
      { level: 'error' },
      {
        write(line: string) {
          output += line;
        },
      },
    ),
  });
  try {
    expect(output).toContain(harness.stack.sleds[0]?.agent.address);
    expect(output).toContain('--authority');
    const response = await fetch(`${alone.url}/v1/system/hardware/sled-invites`, {
      method: 'POST',
      headers: { 'content-type': 'application/json' },
      body: JSON.stringify({ name: 'nowhere' }),
    });
    expect([response.status, ((await response.json()) as { message: string }).message]).toEqual([
      409,
      expect.stringMatching(/no certificate authority.*--authority.*--sled-tls/),
    ]);
  } finally {
    await alone.stop();
  }
});
