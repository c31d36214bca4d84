/** How a sled joins by the commands, and what others of the machine can see of it. */
import { readdirSync, readFileSync, statSync } from 'node:fs';
import { chmod, readFile, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { waitUntil } from '../../platform/host/child-process.ts';
import { Authority } from '../../platform/identity/authority.ts';
import { loadIdentity } from '../../sled-agent/identity-file.ts';
import { readInviteToken } from '../../wire/invite-token.ts';
import { sledInviteView } from '../../wire/sled-identity.ts';
import { type CommandRun, type RunningCommand, startCommand } from '../support/command.ts';
import { type Harness, startHarness } from '../support/harness.ts';
import { Folders } from '../support/identities.ts';
import { loopbackAddress } from '../support/sled.ts';

const folders = new Folders();
const running: RunningCommand[] = [];
let harness: Harness;
beforeAll(async () => {
  harness = await startHarness({ sledTls: true, sleds: 0 });
});
afterAll(async () => {
  for (const command of running) await command.stop();
  await harness?.close();
  await folders.close();
});

function begin(args: readonly string[], input = ''): RunningCommand {
  const command = startCommand(args, { env: { MOORING_API_URL: harness.stack.apiUrl }, input });
  running.push(command);
  return command;
}

const run = (args: readonly string[], input = ''): Promise<CommandRun> => begin(args, input).done;

/** Begins an agent and waits until it serves. */
async function serving(args: readonly string[], input = ''): Promise<RunningCommand> {
  const agent = begin(args, input);
  await agent.untilPrinted(/sled agent "[^"]+": /);
  return agent;
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
        const { code, stdout } = await run(['sled', 'invite', name, '--json']);
        expect(code).toBe(0);
        return sledInviteView.parse(JSON.parse(stdout));
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
    for (const [index, agent] of agents.entries()) {
      expect(agent.output).not.toContain(invites[index]?.token);
      expect(agent.output).not.toContain('PRIVATE KEY');
      expect(statSync(join(dirs[index] ?? '', 'identity.json')).mode & 0o777).toBe(0o600);
    }

    const id = await harness.running();
    const { rows } = await harness.database.db.execute('SELECT name FROM sled ORDER BY name');
    expect(rows.map(({ name }) => name)).toEqual(['s1', 's2', 's3']);
    await harness.client.stopInstance(id);
    await harness.shows(id, 'stopped');

    // Started again by its folder alone.
    await agents[1]?.stop();
    const again = await serving(['sled-agent', '--data', dirs[1] ?? '', ...size]);
    expect(again.output).toContain('sled agent "s2"');
    const listed = await run(['sled', 'certificates', 's2', '--json']);
    expect(JSON.parse(listed.stdout)).toHaveLength(1);

    // Once it learns of its revocation, it prints so.
    const revoked = await run(['sled', 'revoke', 's2', '--json']);
    expect(JSON.parse(revoked.stdout)).toMatchObject({ revoked: 1 });
    await again.untilPrinted(/401/);
    expect(again.output).toContain('mooring sled invite');
  },
);

test('an error names the field and never repeats the token', async () => {
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
    const { code, stderr } = await run(args, input);
    expect(code).toBe(1);
    expect(stderr).toMatch(expected);
    expect(stderr).not.toContain(token);
    expect(stderr).not.toContain('mooring-sled-invite-x');
  }
  expect(await loadIdentity(data)).toBeNull();
});

test('an authority is made once, kept from others, and a key that others can read is not used', async () => {
  const folder = join(await folders.make(), 'authority');
  const made = await run(['authority', 'create', folder, '--json']);
  expect(made.code).toBe(0);
  const { fingerprint } = await Authority.open(folder);
  const shown = { folder, fingerprint, also_trusted: [] };
  expect(JSON.parse(made.stdout)).toEqual(shown);
  expect(JSON.parse((await run(['authority', 'show', folder, '--json'])).stdout)).toEqual(shown);
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
