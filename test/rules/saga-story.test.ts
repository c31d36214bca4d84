/** What a person reads of a saga, and what it may cost. */
import { readdir, readFile } from 'node:fs/promises';
import { fileURLToPath } from 'node:url';
import { expect, test } from 'vitest';
import { collectFacts, describeStep, SagaStory } from '../../model/saga-story.ts';
import { recordedHistory } from '../replay/history-shape.ts';
import { RECORDINGS } from '../replay/recordings.ts';

const folder = fileURLToPath(new URL('../histories/', import.meta.url));
const facts = collectFacts({}, { claim: { vmmId: '3f0c12ab-0000-4000-8000-000000000000', sled: { name: 'sled-2' } } });

test('a step names the VMM and the sled; one that nobody declared is described by its name', () => {
  expect(describeStep('instanceStart', 'registerVmm', facts)).toBe('register VMM 3f0c12ab on sled-2');
  expect(describeStep('instanceStart', 'registerVmm', {})).toBe('register the VMM on its sled');
  expect(describeStep('sledDrain', 'moveInstances', facts)).toBe('move instances (VMM 3f0c12ab, sled-2)');
});

test('the progress says what is done, doing and to do, and while it compensates, why', () => {
  const story = new SagaStory('instanceStart', facts);
  story.begin('claimStart', 'claim')('done', '');
  const failed = story.begin('runVmm', 'tell sled-2 to run it');
  expect(story.toMarkdown()).toMatch(/Running\.[\s\S]*✓ claim[\s\S]*▶ \*\*tell sled-2/);
  failed('failed', 'refused *twice*');
  story.begin('beginUnwind', 'mark it');
  expect(story.toMarkdown()).toMatch(
    /\*\*Compensating\*\*, because this failed: tell sled-2 to run it\. refused \\\*twice\\\*/,
  );
  expect(story.toMarkdown()).toMatch(/▶ \*\*mark it\*\*[\s\S]*○ write saga_unwound/);
  story.end({ outcome: 'unwound', message: 'it failed' });
  expect(story.toMarkdown()).toMatch(/Ended: \*\*unwound\*\*: it failed\./);
  expect(story.toMarkdown()).not.toMatch(/○/);
});

/** What a saga may cost that is done within one workflow task. */
const MOST_EVENTS: Readonly<Record<string, number>> = {
  'instance-start.success': 9,
  'instance-start.unwound': 14,
  'instance-migrate.success': 11,
  'instance-update.unwound': 7,
};

test('what failed within the task and was then done as an activity is not why a saga compensates', () => {
  const story = new SagaStory('instanceStart', {});
  story.begin('registerVmm', 'register it')('failed', 'no answer');
  story.begin('registerVmm', 'register it')('done', '');
  story.begin('runVmm', 'tell sled-2 to run it')('failed', 'busy');
  expect(story.failedStep).toBe('runVmm');
  story.begin('runVmm', 'tell sled-2 to run it')('failed', 'refused');
  story.begin('beginUnwind', 'mark it')('done', '');
  expect(story.failedStep).toBe('runVmm');
  expect(story.toMarkdown()).toMatch(/because this failed: tell sled-2 to run it\. refused/);
  expect(story.toMarkdown()).toMatch(/✓ register it \(2 times\): no answer/);
});

test('every recording has its history, a saga in one workflow task has few events, and all that is kept is under 2 MB', async () => {
  const files = (await readdir(folder)).sort();
  for (const name of Object.keys(RECORDINGS))
    expect(
      files.some((file) => file.startsWith(`${name}.`)),
      name,
    ).toBe(true);
  let bytes = 0;
  for (const file of files) {
    const text = await readFile(folder + file, 'utf8');
    bytes += text.length;
    const { events } = recordedHistory.parse(JSON.parse(text));
    const [, name = ''] = /^(.*)\.\d{4}\.json$/.exec(file) ?? [];
    const limit = MOST_EVENTS[name];
    if (limit === undefined) continue;
    expect(events.length, file).toBeLessThanOrEqual(limit);
    expect(events.filter(({ eventType }) => eventType === 'EVENT_TYPE_WORKFLOW_TASK_STARTED').length, file).toBe(1);
  }
  expect(bytes).toBeLessThan(2 * 1024 * 1024);
});
