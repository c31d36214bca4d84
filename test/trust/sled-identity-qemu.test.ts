/** Real guests between sleds that joined: nothing of them crosses the network in the clear, or to a stranger. */
import { randomUUID } from 'node:crypto';
import { readFileSync } from 'node:fs';
import { chmod, mkdtemp, rm } from 'node:fs/promises';
import { connect as connectTcp, type Socket } from 'node:net';
import { join } from 'node:path';
import { createInterface } from 'node:readline';
import { connect as connectTls, createServer as createTlsServer } from 'node:tls';
import { sql } from 'drizzle-orm';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { freePort, waitUntil } from '../../platform/host/child-process.ts';
import type { Authority } from '../../platform/identity/authority.ts';
import type { IdentityMaterial } from '../../platform/identity/holder.ts';
import { sledVmmState } from '../../wire/sled-protocol.ts';
import { type Harness, startHarness } from '../support/harness.ts';
import { callAs, Folders, materialOf, strangeAuthority } from '../support/identities.ts';
import { GUEST_MEMORY_BYTES, qemuForTests } from '../support/qemu.ts';
import { loopbackAddress } from '../support/sled.ts';

const PATIENT_MS = 90_000;
/** What a migration begins with. */
const MIGRATION_MAGIC = 'QEVM';

const qemu = await qemuForTests('real guests between sleds that joined');
const folders = new Folders();

describe.skipIf(qemu === null)('real guests', () => {
  let harness: Harness;
  let authority: Authority;
  let dataDir: string;
  beforeAll(async () => {
    // Where PostgreSQL's own user may enter, also when the tests run as root.
    dataDir = await mkdtemp('/var/tmp/mooring-test-');
    await chmod(dataDir, 0o711);
    // The watcher would end the VM that a test makes by itself, which no database knows.
    harness = await startHarness({ sledTls: true, sleds: 2, hypervisor: 'qemu', dataDir, reconcileEveryMs: 0 });
    if (harness.stack.authority === null) throw new Error('the stack has no authority');
    authority = harness.stack.authority;
  });
  afterAll(async () => {
    await harness?.close();
    await rm(dataDir, { recursive: true, force: true });
    await folders.close();
  });

  const shows = (id: string, externalState: string) =>
    waitUntil(
      async () => (await harness.record(id)).externalState === externalState,
      `it never showed ${externalState}`,
      PATIENT_MS,
    );

  async function booted(): Promise<string> {
    const id = await harness.create(undefined, { ncpus: 1, memory: GUEST_MEMORY_BYTES });
    await harness.client.startInstance(id);
    await shows(id, 'running');
    return id;
  }

  async function ended(id: string): Promise<void> {
    await harness.client.stopInstance(id);
    await shows(id, 'stopped');
    await harness.rests(id);
  }

  test('a guest boots, migrates there and back, and stops', async () => {
    const id = await booted();
    for (let hop = 0; hop < 2; hop += 1) {
      const { there } = await harness.placed(id);
      await harness.client.migrateInstance(id, there.id);
      await shows(id, 'running');
      expect((await harness.record(id)).active?.sledId).toBe(there.id);
    }
    await ended(id);
    await harness.examined(true);
  });

  /** A migration that nobody works on. Returns its id. */
  async function migrationRow(instanceId: string, sourceVmmId: string, targetSledId: string): Promise<string> {
    const [migrationId, targetVmmId] = [randomUUID(), randomUUID()];
    const { db } = harness.database;
    await db.execute(sql`INSERT INTO vmm (id, instance_id, sled_id, ip, port, state)
      VALUES (${targetVmmId}, ${instanceId}, ${targetSledId}, '127.0.0.1', 9, 'creating')`);
    await db.execute(sql`INSERT INTO migration (id, instance_id, source_vmm_id, target_vmm_id)
      VALUES (${migrationId}, ${instanceId}, ${sourceVmmId}, ${targetVmmId})`);
    return migrationId;
  }

  test('a source sends its guest to nobody that the authority does not know, and goes on with it', async () => {
    const id = await booted();
    const { active } = await harness.record(id);
    const { here } = await harness.placed(id);
    const { rows } = await harness.database.db.execute(sql`SELECT ip, port FROM vmm WHERE id = ${active?.id}`);
    const at = { host: String(rows[0]?.ip), port: Number(rows[0]?.port) };
    const { shape } = JSON.parse(
      readFileSync(join(dataDir, here.name, 'vms', active?.id ?? '', 'vm.json'), 'utf8'),
    ) as { shape: unknown };

    const stranger = await materialOf(await strangeAuthority(folders), { kind: 'sled', sledId: randomUUID() }, [
      '127.0.0.1',
    ]);
    const sent: Buffer[] = [];
    let connections = 0;
    let over = 0;
    const server = createTlsServer(tlsOf(stranger), (socket) => {
      socket.on('error', () => {});
      socket.on('data', (data) => sent.push(data));
    });
    server.on('connection', (socket: Socket) => {
      connections += 1;
      socket.once('close', () => {
        over += 1;
      });
    });
    const clear: string[] = [];
    // One that begins in the clear is not even a handshake.
    server.on('tlsClientError', (error) => clear.push(error.message));
    await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
    const bound = server.address();
    const uri = `tcp:127.0.0.1:${typeof bound === 'object' ? bound?.port : 0}`;

    const ask = async (sledId: string, migrationId: string) => {
      const socket = connectTls({ ...at, ...tlsOf(await materialOf(authority, { kind: 'sled', sledId })) });
      const lines = linesOf(socket);
      await waitUntil(() => lines.some((line) => 'hello' in line), 'the source never greeted', PATIENT_MS);
      socket.write(`${JSON.stringify({ fetch: { migration_id: migrationId, instance_id: id, uri, shape } })}\n`);
      return { socket, lines };
    };
    // A sled that the migration does not go to is refused, and so is a migration that is none.
    const { there } = await harness.placed(id);
    const migrationId = await migrationRow(id, active?.id ?? '', there.id);
    for (const [sledId, migration] of [
      [randomUUID(), migrationId],
      [there.id, randomUUID()],
    ] as const) {
      const refusal = await ask(sledId, migration);
      await waitUntil(() => refusal.lines.some((line) => 'refused' in line), 'the source never refused', PATIENT_MS);
      refusal.socket.destroy();
    }
    expect(connections).toBe(0);
    // The destination itself, taken over, has the guest sent to a place that is no sled's.
    const { socket } = await ask(there.id, migrationId);
    await waitUntil(() => connections > 0 && over === connections, 'the source never tried to send', PATIENT_MS);
    expect(sent).toEqual([]);
    expect(clear.filter((message) => /version|http request/i.test(message))).toEqual([]);
    socket.destroy();
    await waitUntil(
      async () => {
        const answer = await callAs(
          await materialOf(authority, { kind: 'control_plane' }),
          'GET',
          `${here.agent.url}/vmms/${active?.id}/state`,
        );
        return sledVmmState.parse(answer.body).vmm_state.state === 'running';
      },
      'the source never went on with its guest',
      PATIENT_MS,
    );
    server.close();
    await harness.client.stopInstance(id);
    await shows(id, 'stopped');
  });

  test('a destination takes a guest from its source alone', async () => {
    const [sled] = harness.stack.sleds;
    if (sled === undefined) throw new Error('there is no sled');
    const plane = await materialOf(authority, { kind: 'control_plane' });
    const host = loopbackAddress();
    const source = await materialOf(authority, { kind: 'sled', sledId: randomUUID() }, [host]);
    let uri: string | null = null;
    const server = createTlsServer({ ...tlsOf(source), requestCert: true }, (socket) => {
      const lines = linesOf(socket, (line) => {
        const fetch = line.fetch as { uri?: string } | undefined;
        if (fetch !== undefined) uri = fetch.uri ?? null;
      });
      expect(lines).toEqual([]);
      socket.write(`${JSON.stringify({ hello: { vmm_id: randomUUID(), agent: `${host}:1` } })}\n`);
    });
    const port = await freePort(host);
    await new Promise<void>((resolve) => server.listen(port, host, resolve));
    const vmmId = randomUUID();
    const vmmHost = loopbackAddress();
    const path = `${sled.agent.url}/vmms/${vmmId}`;
    const registered = await callAs(plane, 'PUT', path, {
      instance_id: randomUUID(),
      migration_id: randomUUID(),
      vmm_runtime: { state: 'migrating', gen: 2, time_updated: new Date().toISOString() },
      vmm_spec: { name: 'web', ncpus: 1, memory_bytes: GUEST_MEMORY_BYTES },
      vmm_addr: `${vmmHost}:${await freePort(vmmHost)}`,
    });
    expect(registered.status).toBe(200);
    const command = { state: { type: 'migration_target', value: { src_vmm_addr: `${host}:${port}` } } };
    expect((await callAs(plane, 'PUT', `${path}/state`, command)).status).toBe(200);
    await waitUntil(() => uri !== null, 'the destination never asked for the guest', PATIENT_MS);
    const incoming = /^tcp:(.+):(\d+)$/.exec(uri ?? '');
    const at = { host: incoming?.[1] ?? '', port: Number(incoming?.[2]) };

    const strange = await materialOf(await strangeAuthority(folders), { kind: 'sled', sledId: randomUUID() });
    const stream = (socket: Socket) => {
      socket.write(MIGRATION_MAGIC);
      socket.write(Buffer.alloc(4096));
    };
    // An agent forgets a VMM that has ended once the control plane has its last report.
    const stateOf = async () => {
      const { status, body } = await callAs(plane, 'GET', `${path}/state`);
      return status === 404 ? 'forgotten' : sledVmmState.parse(body).vmm_state.state;
    };
    const attempt = (dial: (onOpen: () => void) => Socket) =>
      new Promise<string>((resolve) => {
        let text = '';
        const socket = dial(() => stream(socket));
        socket.on('data', (data) => {
          text += data.toString('latin1');
        });
        socket.on('error', (error) => {
          text += `[${error.message}]`;
        });
        socket.once('close', () => resolve(text));
        setTimeout(() => socket.destroy(new Error('nothing happened')), 5_000).unref();
      });
    // Strangers are sent away before anything that they send is read: the VM goes on waiting for its guest.
    expect(await attempt((onOpen) => connectTls({ ...at, ...tlsOf(strange) }, onOpen))).not.toContain(
      'nothing happened',
    );
    expect(await attempt((onOpen) => connectTcp(at, onOpen))).not.toContain('nothing happened');
    // And so is another sled of the installation, which is not the source.
    const other = await materialOf(authority, { kind: 'sled', sledId: randomUUID() });
    expect(await attempt((onOpen) => connectTls({ ...at, ...tlsOf(other) }, onOpen))).not.toContain('nothing happened');
    expect(await stateOf()).toBe('migrating');
    // To the source it listens, and finds that this is no guest.
    await attempt((onOpen) => connectTls({ ...at, ...tlsOf(source) }, onOpen));
    await waitUntil(async () => (await stateOf()) !== 'migrating', 'it took nonsense for a guest', PATIENT_MS);
    server.close();
    expect((await callAs(plane, 'DELETE', path)).status).toBe(200);
  });
});

function tlsOf({ privateKeyPem, certificatePem, authorityPem }: IdentityMaterial) {
  return { key: privateKeyPem, cert: certificatePem, ca: authorityPem, rejectUnauthorized: false };
}

/** What the other side says, line by line, as it comes. */
function linesOf(
  socket: Socket,
  onLine: (line: Record<string, unknown>) => void = () => {},
): Record<string, unknown>[] {
  const lines: Record<string, unknown>[] = [];
  socket.on('error', () => {});
  createInterface({ input: socket })
    .on('error', () => {})
    .on('line', (text) => {
      const line = JSON.parse(text) as Record<string, unknown>;
      lines.push(line);
      onLine(line);
    });
  return lines;
}
