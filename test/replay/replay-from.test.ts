/** `npm run replay -- --from`: the gate before a deploy, on what a real server has. */
import { execFile } from 'node:child_process';
import { fileURLToPath } from 'node:url';
import { promisify } from 'node:util';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { workflowIds } from '../../model/workflow-names.ts';
import { freePort } from '../../platform/host/child-process.ts';
import { type Harness, startHarness } from '../support/harness.ts';

const COMMAND = fileURLToPath(new URL('./replay-histories.ts', import.meta.url));
let harness: Harness;
beforeAll(async () => {
  harness = await startHarness({ reconcileEveryMs: 0 });
});
afterAll(() => harness?.close());

async function replayFrom(address: string, ...more: string[]) {
  const args = ['--import', 'tsx', COMMAND, '--from', address, ...more];
  const { stdout, stderr, code } = await promisify(execFile)(process.execPath, args, {
    maxBuffer: 64 * 1024 ** 2,
  }).then(
    (done) => ({ ...done, code: 0 }),
    (error: { stdout: string; stderr: string; code: number }) => error,
  );
  return { stdout, stderr, code };
}

test('it replays the recorded histories, and those of the server that the query finds, and no others', async () => {
  const [web, shop] = [await harness.running(), await harness.running()];
  const id = workflowIds.start(web);
  const { code, stdout, stderr } = await replayFrom(
    harness.stack.temporalAddress,
    '--query',
    `WorkflowId = "${id}"`,
    '--json',
  );
  expect([code, stderr]).toEqual([0, '']);
  const { items, failed } = JSON.parse(stdout) as { items: { name: string; problem: string | null }[]; failed: number };
  expect(failed).toBe(0);
  const names = items.map(({ name }) => name);
  expect(names.filter((name) => name.startsWith(`${id} `))).toHaveLength(1);
  expect(names.filter((name) => name.includes(shop))).toEqual([]);
  expect(names).toContain('instance-start.success.0001');
});

test('a query that the server does not understand, and a server that is not there, are clear errors', async () => {
  const misunderstood = await replayFrom(harness.stack.temporalAddress, '--query', 'Nonsense = = 1');
  expect(misunderstood.code).toBe(1);
  expect(misunderstood.stderr).toMatch(/error: .*(query|syntax|invalid)/i);
  const gone = await replayFrom(`127.0.0.1:${await freePort()}`);
  expect(gone.code).toBe(1);
  expect(gone.stderr).toMatch(/error: /);
});
