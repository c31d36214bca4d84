/** The `mooring` command, as an operator or a script runs it: real processes against a real stack. */
import { afterAll, beforeAll, expect, test } from 'vitest';
import { waitUntil } from '../../platform/host/child-process.ts';
import { startCommand } from '../support/command.ts';
import { type Harness, startHarness } from '../support/harness.ts';

let harness: Harness;
beforeAll(async () => {
  // A step that is tried again and again must not have failed for good before a command has looked.
  harness = await startHarness({ registerTimeoutMs: 60_000 });
});
afterAll(() => harness?.close());

const begin = (...args: string[]) => startCommand(args, { env: { MOORING_API_URL: harness.stack.apiUrl } });
const mooring = (...args: string[]) => begin(...args).done;
async function json(...args: string[]) {
  const run = await mooring(...args, '--json');
  expect([run.code, run.stderr]).toEqual([0, '']);
  return JSON.parse(run.stdout);
}

test('create, start with --wait, migrate with --wait, history and delete, by name', async () => {
  expect(await json('instance', 'create', 'web', '--no-start', '--memory', '512MiB')).toMatchObject({
    run_state: 'stopped',
    memory: 512 * 1024 ** 2,
  });
  const started = await json('instance', 'start', 'web', '--wait');
  expect(started.run_state).toBe('running');
  const there = harness.stack.sleds.find(({ id }) => id !== started.sled_id);
  const moved = await json('instance', 'migrate', 'web', '--to', there?.name ?? '', '--wait');
  expect(moved).toMatchObject({ run_state: 'running', sled_id: there?.id });

  const { items, complete } = await json('instance', 'history', 'web');
  expect(complete).toBe(true);
  const history: string[] = items.map((item: { text: string }) => item.text);
  for (const part of [
    'created as "web"',
    'start succeeded',
    'migrate succeeded',
    'target completed',
    'bring the records',
  ])
    expect(history.join('\n')).toContain(part);
  expect(items.find((item: { text: string }) => item.text === 'start succeeded').web_ui).toMatch(
    /^http:.*instance-start/,
  );

  const stopped = await mooring('instance', 'stop', 'web');
  expect(stopped.code).toBe(0);
  await harness.shows(started.id, 'stopped');
  expect(await json('instance', 'delete', 'web')).toEqual({ deleted: 'web' });
  expect((await json('instance', 'history', started.id)).items.at(-1).text).toBe('deleted');
});

test('a failed start exits with 1 and says what failed; with --json the error is JSON', async () => {
  await json('instance', 'create', 'bad', '--no-start');
  harness.everywhere(({ agent }) => agent.faults.plant({ call: 'register', act: { type: 'refuse', status: 409 } }));
  const plain = await mooring('instance', 'start', 'bad');
  expect(plain.code).toBe(1);
  expect(plain.stderr).toMatch(/error: the start failed and was undone: sled "sled-\d"/);
  const program = await mooring('instance', 'start', 'bad', '--json');
  expect(program.code).toBe(1);
  expect(JSON.parse(program.stderr)).toMatchObject({ status: 503, error_code: 'ServiceUnavailable' });
  harness.everywhere(({ agent }) => agent.faults.clear());
});

test('a create whose start fails exits with 1 and says why; the instance is there, and shown', async () => {
  const huge = await mooring('instance', 'create', 'huge', '--memory', '1TiB');
  expect([huge.code, huge.stdout]).toEqual([1, expect.stringMatching(/huge +stopped/)]);
  expect(huge.stderr).toMatch(/^error: created, but not started: .*no sled has room/);
  harness.everywhere(({ agent }) => agent.faults.plant({ call: 'register', act: { type: 'refuse', status: 409 } }));
  const program = await mooring('instance', 'create', 'unlucky', '--json');
  harness.everywhere(({ agent }) => agent.faults.clear());
  expect([program.code, JSON.parse(program.stdout)]).toEqual([
    1,
    expect.objectContaining({ name: 'unlucky', run_state: 'stopped' }),
  ]);
  expect(JSON.parse(program.stderr)).toMatchObject({
    status: 503,
    error_code: 'ServiceUnavailable',
    message: expect.stringMatching(/^created, but not started: the start failed and was undone/),
  });
  expect(await json('instance', 'create', 'lucky', '--wait')).toMatchObject({ name: 'lucky', run_state: 'running' });
});

test('Ctrl-C and a time-out leave the operation running and say how to follow it', async () => {
  const { id } = await json('instance', 'create', 'slow', '--no-start');
  harness.everywhere(({ agent }) => agent.faults.plant({ call: 'register', act: { type: 'refuse', status: 503 } }));
  const late = await mooring('instance', 'start', 'slow', '--timeout', '1');
  expect(late.code).toBe(75);
  const [, operationId] = /mooring operation show (\S+) --wait/.exec(late.stderr) ?? [];
  await waitUntil(
    async () => (await harness.client.getOperation(operationId ?? '')).progress?.step === 'registerVmm',
    'its progress was never shown',
  );
  const operation = await json('operation', 'show', operationId ?? '');
  expect(operation).toMatchObject({ state: 'running', progress: { phase: 'doing', step: expect.any(String) } });

  const { child, done } = begin('operation', 'show', operationId ?? '', '--wait');
  await waitUntil(async () => (await harness.client.getOperation(operationId ?? '')).progress !== null, 'no progress');
  // The signal counts once the command listens: sent again until it has.
  const again = setInterval(() => child.kill('SIGINT'), 500);
  const interrupted = await done;
  clearInterval(again);
  expect(interrupted.code === 130 || child.signalCode === 'SIGINT').toBe(true);

  harness.everywhere(({ agent }) => agent.faults.clear());
  expect(await json('operation', 'show', operationId ?? '', '--wait')).toMatchObject({ outcome: 'succeeded' });
  await harness.shows(id, 'running');
});

test('top, lists and completion show what there is', async () => {
  const top = await mooring('top', '--once');
  expect(top.stdout).toMatch(/3 sleds {2}\d+ instances/);
  expect(top.stdout).toMatch(/sled-1 +in service .*\/64/);
  expect((await json('top')).sleds).toHaveLength(3);
  const complete = async (...args: string[]) => (await mooring('complete', '--', ...args)).stdout.trim().split('\n');
  expect(await complete('inst')).toEqual(['instance']);
  expect(await complete('instance', 'mig')).toEqual(['migrate']);
  expect(await complete('instance', 'migrate', 'sl')).toEqual(['slow']);
  expect(await complete('instance', 'migrate', 'slow', '--to', 'sled-')).toEqual(['sled-1', 'sled-2', 'sled-3']);
  expect(await complete('instance', 'migrate', '--ti')).toEqual(['--timeout']);
  for (const shell of ['bash', 'zsh', 'fish'])
    expect((await mooring('completion', shell)).stdout).toContain('complete');
  const unknown = await mooring('completion', 'tcsh');
  expect(unknown.stderr).toMatch(/shell: "tcsh" is not known: one of bash, zsh, fish/);
});

test('errors come with what to do next', async () => {
  expect((await mooring('instance', 'show', 'nobody')).stderr).toMatch(/not found: instance with name or id "nobody"/);
  expect((await mooring('instance', 'migrate', 'slow', '--to', 'moon')).stderr).toMatch(
    /"mooring sled list" shows them/,
  );
  expect((await mooring('instance', 'create', 'x', '--memory', '12')).stderr).toMatch(/memory/);
  const away = await mooring('instance', 'list', '--api-url', 'http://127.0.0.1:1');
  expect(away.stderr).toMatch(/start one with "mooring up", or name another with --api-url/);
});

test('a call of the client library that is cancelled leaves its operation running', async () => {
  const { MooringClient } = await import('../../client/mooring-client.ts');
  const client = new MooringClient({ url: harness.stack.apiUrl });
  const { id } = await client.createInstance(
    { name: 'by-name', hostname: 'by-name', description: '', ncpus: 1, memory: 2 ** 30, start: false },
    { project: 'default' },
  );
  harness.everywhere(({ agent }) => agent.faults.plant({ call: 'register', act: { type: 'refuse', status: 503 } }));
  const stop = new AbortController();
  const call = client.startInstance(id, { signal: stop.signal }).catch((error: unknown) => error);
  await harness.shows(id, 'starting');
  stop.abort(new Error('no longer wanted'));
  expect(await call).toMatchObject({ message: 'no longer wanted' });
  harness.everywhere(({ agent }) => agent.faults.clear());
  await harness.shows(id, 'running');
});
