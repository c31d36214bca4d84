/** The declared steps of the sagas against the histories that they left. */
import { readdir, readFile } from 'node:fs/promises';
import { fileURLToPath } from 'node:url';
import { describe, expect, test } from 'vitest';
import { z } from 'zod';
import { declaredSteps } from '../../model/saga-steps.ts';

const folder = fileURLToPath(new URL('../histories/', import.meta.url));
const files = (await readdir(folder)).filter((name) => name.endsWith('.json'));
const history = z.object({
  events: z.array(
    z.looseObject({
      workflowExecutionStartedEventAttributes: z.object({ workflowType: z.object({ name: z.string() }) }).optional(),
      activityTaskScheduledEventAttributes: z.object({ activityType: z.object({ name: z.string() }) }).optional(),
      markerRecordedEventAttributes: z
        .object({
          markerName: z.string(),
          details: z.record(z.string(), z.object({ payloads: z.array(z.object({ data: z.string().optional() })) })),
        })
        .optional(),
    }),
  ),
});

/** The step that a marker of the SDK stands for, where it ran within a workflow task. */
function localActivity(marker: z.infer<typeof history>['events'][number]['markerRecordedEventAttributes']) {
  if (marker?.markerName !== 'core_local_activity') return undefined;
  const data = marker.details.data?.payloads[0]?.data ?? '';
  return z.object({ activity_type: z.string() }).parse(JSON.parse(Buffer.from(data, 'base64').toString()))
    .activity_type;
}

describe('every step that a history shows is declared, and every declared step that always runs is there, in order', () => {
  test.each(files)('%s', async (file) => {
    const { events } = history.parse(JSON.parse(await readFile(folder + file, 'utf8')));
    const type = events[0]?.workflowExecutionStartedEventAttributes?.workflowType.name ?? '';
    const declared = declaredSteps(type);
    if (declared === undefined) throw new Error(`workflow type "${type}" is not declared in model/saga-steps.ts`);
    const ran = events
      .map(
        (event) =>
          event.activityTaskScheduledEventAttributes?.activityType.name ??
          localActivity(event.markerRecordedEventAttributes),
      )
      .filter((name): name is string => name !== undefined);
    const all = [...declared.steps, ...declared.compensations];
    expect(all.map((step) => step.activity)).toEqual(expect.arrayContaining(ran));
    if (file.includes('.success.')) {
      const always = declared.steps.filter((step) => !step.sometimes).map((step) => step.activity);
      expect(ran.filter((name) => always.includes(name))).toEqual(always);
    }
  });
});
