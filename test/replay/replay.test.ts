/** Every recorded history must replay on the workflows as they are: a change that breaks one breaks what runs. */
import { readdir, readFile } from 'node:fs/promises';
import { fileURLToPath } from 'node:url';
import { Worker } from '@temporalio/worker';
import { beforeAll, describe, expect, test } from 'vitest';
import { SEARCH_ATTRIBUTES } from '../../model/search-attributes.ts';
import { type ReplayOutcome, readHistories, replay } from '../../worker/replay.ts';
import { testBundle } from '../support/bundle.ts';

const folder = fileURLToPath(new URL('../histories/', import.meta.url));
const files = (await readdir(folder)).filter((name) => name.endsWith('.json'));

/** A history with other search attributes in each of its events: the server shows them by what it knows now. */
function retellAttributes(history: unknown, change: (name: string) => string | null): unknown {
  return JSON.parse(JSON.stringify(history), (key, value: unknown) =>
    key === 'indexedFields' && typeof value === 'object' && value !== null
      ? Object.fromEntries(
          Object.entries(value).flatMap(([name, payload]) => {
            const now = change(name);
            return now === null ? [] : [[now, payload]];
          }),
        )
      : value,
  );
}
const withoutAttributes = (history: unknown) => retellAttributes(history, () => null);
const withSwappedAttributes = (history: unknown) =>
  retellAttributes(history, (name) => ATTRIBUTES[(ATTRIBUTES.indexOf(name) + 1) % ATTRIBUTES.length] ?? null);
const ATTRIBUTES: readonly string[] = Object.values(SEARCH_ATTRIBUTES);

describe('recorded histories replay', () => {
  const outcomes = new Map<string, ReplayOutcome>();
  // All of them on one worker: to make one costs more than to replay a history.
  beforeAll(async () => {
    for await (const outcome of replay(await testBundle(), readHistories(folder)))
      outcomes.set(`${outcome.name}.json`, outcome);
  });

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
  test.each(files)('%s', (file) => {
    expect(outcomes.get(file)).toMatchObject({ problem: null });
  });

  test('as a server tells them that has lost its search attributes, or has them under each other’s names', async () => {
    const broken: ReplayOutcome[] = [];
    for (const retell of [withoutAttributes, withSwappedAttributes]) {
      async function* retold() {
        for await (const { name, history } of readHistories(folder)) yield { name, history: retell(history) };
      }
      for await (const outcome of replay(await testBundle(), retold()))
        if (outcome.problem !== null) broken.push(outcome);
    }
    expect(broken).toEqual([]);
  });
  test('whatever kept the worker from saying whether search attributes can be written', async () => {
    const file = files.find((name) => name.startsWith('instance-start.attributes-unanswered'));
    const text = await readFile(folder + file, 'utf8');
    const failure =
      '"failure":{"message":"Activity timed out","timeoutFailureInfo":{"timeoutType":"TIMEOUT_TYPE_START_TO_CLOSE"}}';
    expect(text.split(failure)).toHaveLength(2);
    const said = (value: unknown) =>
      `"details":{"result":{"payloads":[{"metadata":{"encoding":"anNvbi9wbGFpbg=="},"data":"${Buffer.from(JSON.stringify(value)).toString('base64')}"}]},`;
    const instead = [
      ...['START_TO_CLOSE', 'SCHEDULE_TO_CLOSE', 'SCHEDULE_TO_START'].map((type) =>
        failure.replace('START_TO_CLOSE', type),
      ),
      '"failure":{"message":"away","applicationFailureInfo":{"type":"Error"}}',
      '"failure":{"message":"away","applicationFailureInfo":{"type":"Error","nonRetryable":true}}',
    ].map((other) => text.replace(failure, other));
    // The marker's details stand before its failure: the last ones before it are its own.
    const at = text.lastIndexOf('"details":{', text.indexOf(failure));
    instead.push(
      `${text.slice(0, at)}${said(false)}${text.slice(at + '"details":{'.length).replace(`,${failure}`, '')}`,
    );
    async function* retold() {
      for (const [index, history] of instead.entries()) yield { name: String(index), history: JSON.parse(history) };
    }
    const outcomes: ReplayOutcome[] = [];
    for await (const outcome of replay(await testBundle(), retold())) outcomes.push(outcome);
    expect(outcomes.map(({ problem }) => problem)).toEqual(instead.map(() => null));
  });

  test('a history whose steps differ does not replay', async () => {
    const text = await readFile(
      folder + files.find((file) => file.startsWith('instance-start.register-retried')),
      'utf8',
    );
    expect(text).toContain('"registerVmm"');
    const changed: unknown = JSON.parse(text.replaceAll('"registerVmm"', '"somethingElse"'));
    await expect(Worker.runReplayHistory({ workflowBundle: await testBundle() }, changed)).rejects.toThrow();
  });
});
