/** Every recorded history must replay on the workflows as they are: a change that breaks one breaks what runs. */
import { readdir, readFile } from 'node:fs/promises';
import { fileURLToPath } from 'node:url';
import { Worker } from '@temporalio/worker';
import { describe, expect, test } from 'vitest';
import { workflowBundle } from '../../worker/worker.ts';

const folder = fileURLToPath(new URL('../histories/', import.meta.url));
const files = (await readdir(folder)).filter((name) => name.endsWith('.json'));

describe('recorded histories replay', () => {
  test('there is a success and an unwind of each saga', () => {
    for (const name of [
      'instance-start.success',
      'instance-start.unwound',
      'instance-migrate.success',
      'instance-migrate.unwound',
      'instance-update.moved',
      'instance-update.unwound',
    ]) {
      expect(
        files.some((file) => file.startsWith(`${name}.`)),
        name,
      ).toBe(true);
    }
  });
  test.each(files)('%s', async (file) => {
    const history: unknown = JSON.parse(await readFile(folder + file, 'utf8'));
    await Worker.runReplayHistory({ workflowBundle: await workflowBundle() }, history);
  });
  test('a history whose steps differ does not replay', async () => {
    const text = await readFile(folder + files.find((file) => file.startsWith('instance-start.success')), 'utf8');
    const changed: unknown = JSON.parse(text.replaceAll('"registerVmm"', '"somethingElse"'));
    await expect(Worker.runReplayHistory({ workflowBundle: await workflowBundle() }, changed)).rejects.toThrow();
  });
});
