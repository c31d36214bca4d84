/** How a sled joins by the commands, and what others of the machine can see of it. */
import { type ChildProcess, spawn } from 'node:child_process';
import { once } from 'node:events';
import { readdirSync, readFileSync, statSync } from 'node:fs';
import { chmod, readFile, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { text } from 'node:stream/consumers';
import { fileURLToPath } from 'node:url';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { waitUntil } from '../../platform/host/child-process.ts';
import { Authority } from '../../platform/identity/authority.ts';
import { loadIdentity } from '../../sled-agent/identity-file.ts';
import { readInviteToken, sledInviteView } from '../../wire/sled-identity.ts';
import { type Harness, startHarness } from '../support/harness.ts';
import { Folders } from '../support/identities.ts';
import { loopbackAddress } from '../support/sled.ts';

const MOORING = fileURLToPath(new URL('../../cli/mooring.ts', import.meta.url));
const folders = new Folders();
const running: ChildProcess[] = [];
let harness: Harness;
beforeAll(async () => {
  harness = await startHarness({ sledTls: true, sleds: 0 });
});
afterAll(async () => {
  for (const child of running) {
    if (child.exitCode !== null || child.signalCode !== null) continue;
    child.kill('SIGTERM');
    await once(child, 'exit');
  }
  await harness?.close();
  await folders.close();
});

function begin(args: readonly string[], input?: string): ChildProcess {
  const child = spawn(process.execPath, ['--import', 'tsx', MOORING, ...args], {
    env: { ...process.env, MOORING_API_URL: harness.stack.apiUrl, NO_COLOR: '1' },
    stdio: ['pipe', 'pipe', 'pipe'],
  });
  child.stdin?.on('error', () => {});
  child.stdin?.end(input ?? '');
  running.push(child);
  return child;
}

async function run(
  args: readonly string[],
  input?: string,
): Promise<{ code: number | null; out: string; err: string }> {
  const child = begin(args, input);
  if (child.stdout === null || child.stderr === null) throw new Error('no pipes');
  const [out, err, [code]] = await Promise.all([text(child.stdout), text(child.stderr), once(child, 'exit')]);
  return { code, out, err };
}

/** Begins an agent and waits until it serves; returns what it has said. */
async function serving(args: readonly string[], input?: string): Promise<{ child: ChildProcess; said: () => string }> {
  const child = begin(args, input);
  let said = '';
  child.stdout?.on('data', (data) => {
    said += data;
  });
  child.stderr?.on('data', (data) => {
    said += data;
  });
  await waitUntil(
    () => {
      if (child.exitCode !== null) throw new Error(`it ended: ${said}`);
      return /sled agent "[^"]+": /.test(said);
    },
    'the agent never served',
    120_000,
    50,
  );
  return { child, said: () => said };
}

/** The command lines of all processes of this machine. */
function processList(): string {
  return readdirSync('/proc')
    .filter((name) => /^\d+$/.test(name) && Number(name) !== process.pid)
    .map((pid) => {
      try {
        return readFileSync(`/proc/${pid}/cmdline`, 'latin1');
      } catch {
        // It ended meanwhile.
        return '';
      }
    })
    .join('\n');
}

test.skipIf(process.platform !== 'linux')(
  'invite and join make a sled that serves, by a file, by standard input and by the argument; no token is left to see',
  async () => {
    const size = ['--threads', '8', '--memory', '8GiB', '--transition-ms', '10'];
    const invites = await Promise.all(
      ['s1', 's2', 's3'].map(async (name) => {
        const { code, out } = await run(['sled', 'invite', name, '--json']);
        expect(code).toBe(0);
        return sledInviteView.parse(JSON.parse(out));
      }),
    );
    const [byFile, byInput, byArgument] = invites.map(({ token }) => token) as [string, string, string];
    const dirs = await Promise.all(invites.map(() => folders.make()));
    const file = join(dirs[0] ?? '', 'token');
    await writeFile(file, `${byFile}\n`, { mode: 0o600 });
    const where = (index: number) => ['--data', dirs[index] ?? '', '--address', `${loopbackAddress()}:0`, ...size];
    const agents = [
      await serving(['sled-agent', 'join', '--token-file', file, ...where(0)]),
      await serving(['sled-agent', 'join', ...where(1)], byInput),
      await serving(['sled-agent', 'join', byArgument, ...where(2)]),
    ];

    const seen = processList();
    for (const token of invites.map((one) => one.token)) {
      expect(seen).not.toContain(token);
      expect(seen).not.toContain(readInviteToken(token)?.secret);
    }
    for (const [index, { said }] of agents.entries()) {
      expect(said()).not.toContain(invites[index]?.token);
      expect(said()).not.toContain('PRIVATE KEY');
      expect(statSync(join(dirs[index] ?? '', 'identity.json')).mode & 0o777).toBe(0o600);
    }

    const id = await harness.running();
    const { rows } = await harness.database.db.execute('SELECT name FROM sled ORDER BY name');
    expect(rows.map(({ name }) => name)).toEqual(['s1', 's2', 's3']);
    await harness.client.stopInstance(id);
    await harness.shows(id, 'stopped');

    // Started again by its folder alone.
    const again = agents[1]?.child;
    again?.kill('SIGTERM');
    if (again !== undefined) await once(again, 'exit');
    const { said } = await serving(['sled-agent', '--data', dirs[1] ?? '', ...size]);
    expect(said()).toContain('sled agent "s2"');
    const listed = await run(['sled', 'certificates', 's2', '--json']);
    expect(JSON.parse(listed.out)).toHaveLength(1);

    // Told of its revocation, it says so.
    const revoked = await run(['sled', 'revoke', 's2', '--json']);
    expect(JSON.parse(revoked.out)).toMatchObject({ revoked: 1 });
    await waitUntil(() => said().includes('401'), 'the agent never said that it was revoked', 60_000);
    expect(said()).toContain('mooring sled invite');
  },
);

test('what can’t go well is said in words that name the field, and never repeat the token', async () => {
  const data = await folders.make();
  const address = ['--data', data, '--address', '127.0.0.1:0'];
  const { token } = await harness.client.inviteSled({ name: 'unlucky', valid_seconds: 1 });
  await waitUntil(
    async () =>
      (
        await harness.database.db.execute(
          "SELECT 1 FROM sled_invite WHERE sled_name = 'unlucky' AND time_expires < now()",
        )
      ).rows.length === 1,
    'the invitation never expired',
  );
  const cases: [readonly string[], string | undefined, RegExp][] = [
    [['sled-agent', 'join', ...address], token, /has expired.*mooring sled invite/],
    [['sled-agent', 'join', ...address], 'mooring-sled-invite-x', /^error: token: .*mooring sled invite NAME/],
    [['sled-agent', 'join', ...address, '--token-file', '/no/such/file'], undefined, /no such file/],
    [['sled-agent', '--data', data], undefined, /--name: .*mooring sled-agent join/],
  ];
  for (const [args, input, expected] of cases) {
    const { code, err } = await run(args, input);
    expect(code).toBe(1);
    expect(err).toMatch(expected);
    expect(err).not.toContain(token);
    expect(err).not.toContain('mooring-sled-invite-x');
  }
  expect(await loadIdentity(data)).toBeNull();
});

test('an authority is made once, kept from others, and a key that others can read is not used', async () => {
  const folder = join(await folders.make(), 'authority');
  const made = await run(['authority', 'create', folder, '--json']);
  expect(made.code).toBe(0);
  const { fingerprint } = await Authority.open(folder);
  expect(JSON.parse(made.out)).toEqual({ folder, fingerprint });
  expect(JSON.parse((await run(['authority', 'show', folder, '--json'])).out)).toEqual({ folder, fingerprint });
  const key = join(folder, 'authority.key');
  expect(statSync(key).mode & 0o777).toBe(0o600);
  await expect(Authority.create(folder)).rejects.toThrow(/holds an authority already/);
  expect((await Authority.open(folder)).fingerprint).toBe(fingerprint);
  await expect(Authority.open(await folders.make())).rejects.toThrow(/mooring authority create/);

  await chmod(key, 0o644);
  await expect(Authority.open(folder)).rejects.toThrow(/chmod 600/);
  await chmod(key, 0o600);
  // Another authority's key does not go with this certificate.
  const other = join(await folders.make(), 'authority');
  await Authority.create(other);
  await writeFile(key, await readFile(join(other, 'authority.key')));
  const error = await Authority.open(folder).catch((e: Error) => e);
  expect(String(error)).toMatch(/can't be used: the private key is not that of the certificate/);
  expect(String(error)).not.toContain('PRIVATE KEY');
});
