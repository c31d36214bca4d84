/** A sled agent as a process of its own that has no file descriptors left, or meets an error that nobody expected: it lives on. */
import { type ChildProcess, spawn } from 'node:child_process';
import { randomUUID } from 'node:crypto';
import { createRequire } from 'node:module';
import { connect, type Socket } from 'node:net';
import { fileURLToPath, pathToFileURL } from 'node:url';
import { Client } from 'undici';
import { afterEach, expect, test } from 'vitest';
import { freePort } from '../../platform/host/child-process.ts';
import { MOORING } from '../support/command.ts';
import { temporaryFolder } from '../support/qemu.ts';
import { INSTANCE, ListeningControlPlane, loopbackAddress } from '../support/sled.ts';
import { eventually } from '../support/wait.ts';

const at = (path: string) => fileURLToPath(new URL(`../../${path}`, import.meta.url));
const ends: (() => unknown)[] = [];
afterEach(async () => {
  for (const end of ends.splice(0).reverse()) await end();
});

/** Collects what a process prints. */
function printed(child: ChildProcess): () => string {
  let text = '';
  for (const stream of [child.stdout, child.stderr])
    stream?.setEncoding('utf8').on('data', (chunk: string) => {
      text += chunk;
    });
  return () => text;
}

test('without file descriptors it takes no VMM and says why, its guests live on, and it goes on when it has some', async () => {
  const plane = new ListeningControlPlane();
  await plane.listen();
  const folder = await temporaryFolder();
  ends.push(folder.close, () => plane.close());
  const ip = loopbackAddress();
  const port = await freePort(ip);
  const agent = spawn(
    'sh',
    [
      ...['-c', 'ulimit -n 100 && exec "$0" "$@"', process.execPath, ...MOORING],
      ...['sled-agent', '--name', 'few', '--address', `${ip}:${port}`, '--control-plane', plane.url],
      ...['--data', folder.path, '--network-poll-ms', '0', '--test-endpoints'],
    ],
    { stdio: ['ignore', 'pipe', 'pipe'] },
  );
  const output = printed(agent);
  ends.push(() => agent.kill('SIGKILL'));
  await eventually(() => output().includes('sled agent "few"'), 'the agent never started');

  // A connection that stays open: another one would need a file descriptor.
  const client = new Client(`http://${ip}:${port}`, { keepAliveTimeout: 60_000 });
  ends.push(() => client.destroy());
  const call = async (method: 'GET' | 'PUT' | 'DELETE', path: string, body?: unknown) => {
    const answer = await client.request({
      ...{ method, path },
      ...(body === undefined ? {} : { headers: { 'content-type': 'application/json' }, body: JSON.stringify(body) }),
    });
    return { status: answer.statusCode, body: (await answer.body.json()) as Record<string, unknown> };
  };
  const register = async (vmmId: string) =>
    call('PUT', `/vmms/${vmmId}`, {
      instance_id: INSTANCE,
      vmm_runtime: { state: 'starting', gen: 2, time_updated: new Date().toISOString() },
      vmm_spec: { name: 'web', ncpus: 1, memory_bytes: 2 ** 30 },
      vmm_addr: `${ip}:${await freePort(ip)}`,
    });
  const guest = randomUUID();
  expect((await register(guest)).status).toBe(200);
  await call('PUT', `/vmms/${guest}/state`, { state: { type: 'running' } });
  await plane.untilReported(guest, 'running');
  expect((await call('GET', '/agent')).body.trouble).toEqual([]);

  const sockets: Socket[] = [];
  const refused = randomUUID();
  await eventually(async () => {
    for (let more = 0; more < 40; more++) sockets.push(connect(port, ip).on('error', () => {}));
    const answer = await register(randomUUID());
    return answer.status === 503 && answer.body.error_code === 'NO_FILE_DESCRIPTORS';
  }, 'it never ran out of file descriptors').finally(() =>
    ends.push(() => sockets.forEach((one) => void one.destroy())),
  );
  expect(await register(refused)).toMatchObject({ status: 503, body: { error_code: 'NO_FILE_DESCRIPTORS' } });
  expect((await call('GET', `/vmms/${refused}/state`)).status).toBe(404);
  expect((await call('GET', '/agent')).body.trouble).toEqual([expect.stringContaining('no file descriptors')]);
  expect((await call('GET', `/vmms/${guest}/state`)).status).toBe(200);

  for (const socket of sockets.splice(0)) socket.destroy();
  await eventually(async () => (await register(refused)).status === 200, 'it never went on');
  await eventually(
    async () => (await call('GET', '/agent')).body.trouble?.toString() === '',
    'it never said that it is well again',
  );
  const { entries } = (await call('GET', '/test/guest-log')).body as { entries: { vmm_id: string; event: string }[] };
  expect(entries.filter((entry) => entry.vmm_id === guest).map(({ event }) => event)).toEqual(['began']);
  expect(agent.exitCode).toBeNull();
});

test('an error in a timer, and a promise that nobody waits for, are on record and end nothing', async () => {
  const child = spawn(
    process.execPath,
    [
      ...['--import', pathToFileURL(createRequire(import.meta.url).resolve('tsx')).href, '--input-type=module', '-e'],
      `import { surviveStrayErrors } from ${JSON.stringify(pathToFileURL(at('sled-agent/guarded.ts')).href)};
       surviveStrayErrors((message) => console.log(message));
       setTimeout(() => { throw new Error('stray'); }, 1);
       void Promise.reject(new Error('lost'));
       setTimeout(() => console.log('it lives'), 100);`,
    ],
    { stdio: ['ignore', 'pipe', 'pipe'] },
  );
  const output = printed(child);
  const code = await new Promise((resolve) => child.once('close', resolve));
  expect([code, output()]).toEqual([0, expect.stringMatching(/lost.*stray.*it lives/s)]);
});
