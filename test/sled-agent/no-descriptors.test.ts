/** A sled agent as a process of its own that has no file descriptors left, or meets an error that nobody expected: it lives on. */
import { type ChildProcess, execFile, spawn } from 'node:child_process';
import { randomUUID } from 'node:crypto';
import { createRequire } from 'node:module';
import { connect, type Socket } from 'node:net';
import { fileURLToPath, pathToFileURL } from 'node:url';
import { promisify } from 'node:util';
import { type FastifyInstance, fastify } from 'fastify';
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

/** Loaded into the agent: by the signal it opens files as long as there are descriptors, and by the next one closes them. */
const HOG = `import { closeSync, openSync } from 'node:fs';
const own = [];
process.on('SIGUSR2', () => {
  if (own.length > 0) { for (const file of own.splice(0)) closeSync(file); return; }
  try { for (;;) own.push(openSync('/dev/null')); } catch { process.stderr.write('it has none left\\n'); }
});`;

/** Starts an agent as a process that may have this many descriptors once it runs. */
async function startFew(descriptors: number, controlPlaneUrl: string, more: readonly string[] = []) {
  const folder = await temporaryFolder();
  ends.push(folder.close);
  const ip = loopbackAddress();
  const port = await freePort(ip);
  const agent = spawn(
    process.execPath,
    [
      ...['--import', `data:text/javascript,${encodeURIComponent(HOG)}`, ...MOORING],
      ...['sled-agent', '--name', 'few', '--address', `${ip}:${port}`, '--control-plane', controlPlaneUrl],
      ...['--data', folder.path, '--network-poll-ms', '0', '--test-endpoints', ...more],
    ],
    { stdio: ['ignore', 'pipe', 'pipe'] },
  );
  const output = printed(agent);
  ends.push(() => agent.kill('SIGKILL'));
  await eventually(() => {
    if (agent.exitCode !== null) throw new Error(`the agent ended: ${output()}`);
    return output().includes('sled agent "few"');
  }, 'the agent never started');
  // Not sooner: loading a program takes more than running it.
  await promisify(execFile)('prlimit', ['--pid', String(agent.pid), `--nofile=${descriptors}:${descriptors}`]);
  return { ip, port, agent, output };
}

test('without file descriptors it takes no VMM and says why, its guests live on, and it goes on when it has some', async () => {
  const plane = new ListeningControlPlane();
  await plane.listen();
  ends.push(() => plane.close());
  const { ip, port, agent, output } = await startFew(100, plane.url);

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

  agent.kill('SIGUSR2');
  const refused = randomUUID();
  await eventually(async () => {
    const answer = await register(randomUUID());
    return answer.status === 503 && answer.body.error_code === 'NO_FILE_DESCRIPTORS';
  }, 'it never ran out of file descriptors');
  await eventually(() => output().includes('it has none left'), 'the answer was not for want of descriptors');
  expect(await register(refused)).toMatchObject({ status: 503, body: { error_code: 'NO_FILE_DESCRIPTORS' } });
  expect((await call('GET', `/vmms/${refused}/state`)).status).toBe(404);
  expect((await call('GET', '/agent')).body.trouble).toEqual([expect.stringContaining('no file descriptors')]);
  expect((await call('GET', `/vmms/${guest}/state`)).status).toBe(200);

  agent.kill('SIGUSR2');
  await eventually(async () => (await register(refused)).status === 200, 'it never went on');
  await eventually(
    async () => (await call('GET', '/agent')).body.trouble?.toString() === '',
    'it never said that it is well again',
  );
  const { entries } = (await call('GET', '/test/guest-log')).body as { entries: { vmm_id: string; event: string }[] };
  expect(entries.filter((entry) => entry.vmm_id === guest).map(({ event }) => event)).toEqual(['began']);
  expect(agent.exitCode).toBeNull();
});

/** A control plane that grants leases and takes reports, and keeps no connection: each call needs another descriptor. */
class GrantingControlPlane {
  readonly states = new Map<string, string>();
  renewals = 0;
  readonly #app: FastifyInstance = fastify({ forceCloseConnections: true });

  async listen(): Promise<string> {
    this.#app.addHook('onSend', async (request, reply) => {
      reply.header('connection', 'close').header('x-request-id', request.id);
    });
    this.#app.get('/sleds/by-name/few', async () => ({ sled_id: INSTANCE }));
    this.#app.put('/sleds/:id/lease', async () => {
      this.renewals += 1;
      return { epoch: 0, margin_ms: 1_000 };
    });
    this.#app.put('/vmms/:id', async (request, reply) => {
      const { vmm_state } = request.body as { vmm_state: { state: string } };
      this.states.set((request.params as { id: string }).id, vmm_state.state);
      return reply.status(204).send();
    });
    return this.#app.listen({ host: '127.0.0.1', port: 0 });
  }

  close(): Promise<void> {
    return this.#app.close();
  }
}

/** Connections that are kept for as long as they can be, and opened again where they are closed. Returns how they are ended. */
function holdConnections(ip: string, port: number, sent: string): () => void {
  const sockets = new Set<Socket>();
  let over = false;
  const open = () => {
    if (over) return;
    const socket = connect(port, ip, () => socket.write(sent)).on('error', () => {});
    sockets.add(socket);
    socket.resume().once('close', () => {
      sockets.delete(socket);
      setTimeout(open, 50);
    });
  };
  for (let more = 0; more < 100; more++) open();
  return () => {
    over = true;
    for (const socket of sockets) socket.destroy();
  };
}

const HELD_BY: Readonly<Record<string, string>> = {
  'connections that say nothing': '',
  'headers that never end': 'GET /agent HTTP/1.1\r\nHost: a\r\nX-Slow: ',
  'bodies that never come':
    'PUT /vmms/a/state HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\nContent-Length: 1000\r\n\r\n{',
  'connections that are kept for a next request': 'GET /agent HTTP/1.1\r\nHost: a\r\n\r\n',
};

test('whatever holds its descriptors, it renews its lease, answers, reports and ends guests', async () => {
  const plane = new GrantingControlPlane();
  const url = await plane.listen();
  ends.push(() => plane.close());
  const { ip, port, agent, output } = await startFew(64, url, ['--fencing', '--lease', '9', '--threads', '100']);
  await eventually(() => output().includes('lease held'), 'it never had a lease');
  const call = async (method: 'GET' | 'PUT' | 'DELETE', path: string, body?: unknown) => {
    const answer = await fetch(`http://${ip}:${port}${path}`, {
      method,
      headers: { connection: 'close', ...(body === undefined ? {} : { 'content-type': 'application/json' }) },
      ...(body === undefined ? {} : { body: JSON.stringify(body) }),
    });
    return { status: answer.status, body: (await answer.json()) as Record<string, unknown> };
  };
  const patiently = async (method: 'GET' | 'PUT' | 'DELETE', path: string, body?: unknown) => {
    let answer: Awaited<ReturnType<typeof call>> | null = null;
    await eventually(async () => {
      answer = await call(method, path, body).catch(() => null);
      return answer !== null;
    }, `nobody answers ${method} ${path}`);
    return (answer as Awaited<ReturnType<typeof call>> | null)?.status;
  };
  const register = async (id: string) =>
    patiently('PUT', `/vmms/${id}`, {
      instance_id: INSTANCE,
      vmm_runtime: { state: 'starting', gen: 2, time_updated: new Date().toISOString() },
      vmm_spec: { name: 'web', ncpus: 1, memory_bytes: 2 ** 20 },
      vmm_addr: `${ip}:${await freePort(ip)}`,
    });
  const run = async (): Promise<string> => {
    const id = randomUUID();
    // What was held is let go of in its own time.
    await eventually(async () => (await register(id)) === 200, `VMM ${id} was never taken`);
    await patiently('PUT', `/vmms/${id}/state`, { state: { type: 'running' } });
    await eventually(() => plane.states.get(id) === 'running', `VMM ${id} never ran`);
    return id;
  };
  const guest = await run();

  type LetGo = () => unknown;
  const holds: { what: string; hold: () => LetGo | Promise<LetGo> }[] = Object.entries(HELD_BY).map(([what, sent]) => ({
    what,
    hold: () => holdConnections(ip, port, sent),
  }));
  const toggle = () => void agent.kill('SIGUSR2');
  holds.push({
    what: 'files of its own',
    hold() {
      toggle();
      return toggle;
    },
  });
  holds.push({
    what: 'guests',
    async hold() {
      const ids: string[] = [];
      for (let status: number | undefined = 200; status !== 503; ) {
        const id = randomUUID();
        ids.push(id);
        status = await register(id);
      }
      return async () => {
        for (const id of ids) await patiently('DELETE', `/vmms/${id}`);
      };
    },
  });
  for (const { what, hold } of holds) {
    const other = await run();
    const letGo = await hold();
    try {
      const before = plane.renewals;
      await eventually(() => {
        if (output().includes('lapsed')) throw new Error(`${what} cost the lease: ${output()}`);
        return plane.renewals >= before + 2;
      }, `${what} keep the lease from being renewed`);
      expect([what, await patiently('GET', `/vmms/${guest}/state`)]).toEqual([what, 200]);
      expect([what, await patiently('PUT', `/vmms/${other}/state`, { state: { type: 'stopped' } })]).toEqual([
        what,
        200,
      ]);
      await eventually(() => plane.states.get(other) === 'destroyed', `${what}: the end of a guest is not reported`);
    } finally {
      await letGo();
    }
    await eventually(
      async () => (await call('GET', '/agent').catch(() => null))?.body.trouble?.toString() === '',
      `after ${what} it never said that it is well again`,
    );
  }
  await eventually(() => output().includes('no file descriptors left'), 'it never said that it had none left');
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
