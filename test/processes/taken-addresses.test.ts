/** A process that can't listen where it is told to says so before it has begun anything, with who is there and what to change. */
import { createServer, type Server } from 'node:net';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { requireFreeAddresses } from '../../platform/host/free-address.ts';
import { runCommand } from '../support/command.ts';

let server: Server;
let port: number;
beforeAll(async () => {
  server = createServer();
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
  const address = server.address();
  port = typeof address === 'object' && address !== null ? address.port : 0;
});
afterAll(() => new Promise((resolve) => server.close(resolve)));

const NOWHERE = { DATABASE_URL: 'postgres://x@127.0.0.1:1/z', TEMPORAL_ADDRESS: '127.0.0.1:1' };
const COMMANDS: readonly (readonly [string, (at: string) => string[], NodeJS.ProcessEnv])[] = [
  ['--api-port', (at) => ['up', '--api-port', at.split(':')[1] ?? ''], {}],
  ['--temporal-ui-port', (at) => ['up', '--api-port', '0', '--temporal-ui-port', at.split(':')[1] ?? ''], {}],
  ['--port', (at) => ['api', '--port', at.split(':')[1] ?? ''], NOWHERE],
  ['--metrics', (at) => ['api', '--port', '0', '--metrics', at], NOWHERE],
  ['--sled-listen', (at) => ['api', '--port', '0', '--authority', '/nowhere', '--sled-listen', at], NOWHERE],
  ['--metrics', (at) => ['worker', '--metrics', at], NOWHERE],
  ['--address', (at) => ['sled-agent', '--name', 'a', '--address', at], {}],
];

test.each(COMMANDS)('%s: mooring %o', async (option, args, env) => {
  const { code, stdout, stderr } = await runCommand(args(`127.0.0.1:${port}`), { env });
  expect([code, stdout]).toEqual([1, '']);
  const owner = process.platform === 'linux' ? ` by \\S+ \\(process ${process.pid}\\)` : '';
  expect(stderr).toMatch(new RegExp(`^error: 127.0.0.1:${port} is taken${owner}: .* ${option}\\n$`));
});

test.each([
  [
    { host: '203.0.113.9', port: 4_000 },
    /^203.0.113.9 is no address of this machine: choose one of its own with --host$/,
  ],
  [{ host: 'nowhere.invalid', port: 4_000 }, /nowhere.invalid/],
])('%o', async (address, said) => {
  await expect(requireFreeAddresses([{ ...address, option: '--host' }])).rejects.toThrow(said);
});

test('a port of its own choice is always free', async () => {
  await expect(requireFreeAddresses([{ host: '127.0.0.1', port: 0, option: '--port' }])).resolves.toBeUndefined();
});
