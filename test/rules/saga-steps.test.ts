/** The declared steps of the sagas against the histories that they left. */
import { readdir, readFile } from 'node:fs/promises';
import { fileURLToPath } from 'node:url';
import { describe, expect, test } from 'vitest';
import { ASK_ATTRIBUTES } from '../../model/attribute-notice.ts';
import { declaredSteps } from '../../model/saga-steps.ts';
import { recordedHistory, stepOf } from '../replay/history-shape.ts';

const folder = fileURLToPath(new URL('../histories/', import.meta.url));
const files = (await readdir(folder)).filter((name) => name.endsWith('.json'));

describe('every step that a history shows is declared, and every declared step that always runs is there, in order', () => {
  test.each(files)('%s', async (file) => {
    const { events } = recordedHistory.parse(JSON.parse(await readFile(folder + file, 'utf8')));
    const type = events[0]?.workflowExecutionStartedEventAttributes?.workflowType.name ?? '';
    const declared = declaredSteps(type);
    if (declared === undefined) throw new Error(`workflow type "${type}" is not declared in model/saga-steps.ts`);
    const ran = events.map(stepOf).filter((name): name is string => name !== undefined && name !== ASK_ATTRIBUTES);
    const all = [...declared.steps, ...declared.compensations];
    expect(all.map((step) => step.activity)).toEqual(expect.arrayContaining(ran));
    if (file.includes('.success.')) {
      const always = declared.steps.filter((step) => !step.sometimes).map((step) => step.activity);
      expect(ran.filter((name) => always.includes(name))).toEqual(always);
    }
  });
});
