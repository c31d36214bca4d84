/** The shape of a history: what its workflow did, without ids, times, and how the server cut it into tasks. */
import { z } from 'zod';

const event = z.looseObject({
  eventType: z.string(),
  workflowExecutionStartedEventAttributes: z.looseObject({ workflowType: z.object({ name: z.string() }) }).optional(),
  activityTaskScheduledEventAttributes: z.looseObject({ activityType: z.object({ name: z.string() }) }).optional(),
  markerRecordedEventAttributes: z
    .looseObject({
      markerName: z.string(),
      details: z.record(
        z.string(),
        z.looseObject({ payloads: z.array(z.looseObject({ data: z.string().optional() })) }),
      ),
    })
    .optional(),
  upsertWorkflowSearchAttributesEventAttributes: z
    .looseObject({ searchAttributes: z.looseObject({ indexedFields: z.record(z.string(), z.unknown()) }) })
    .optional(),
});
export const recordedHistory = z.looseObject({ events: z.array(event).min(1) });

const LEFT_OUT = /WORKFLOW_TASK_(SCHEDULED|STARTED|COMPLETED)|ACTIVITY_TASK_STARTED/;

/** One line an event that the workflow caused or received. Two histories of one shape prove the same in a replay. */
export function historyShape(history: z.infer<typeof recordedHistory>): string {
  return history.events
    .filter(({ eventType }) => !LEFT_OUT.test(eventType))
    .map((one) => {
      const attributes = one.upsertWorkflowSearchAttributesEventAttributes?.searchAttributes.indexedFields;
      const what =
        one.workflowExecutionStartedEventAttributes?.workflowType.name ??
        stepOf(one) ??
        patchOf(one) ??
        (attributes === undefined ? '' : Object.keys(attributes).sort().join(' '));
      return `${one.eventType.replace('EVENT_TYPE_', '')} ${what}`.trim();
    })
    .join('\n');
}

/** The activity that an event begins, or that it records of a step within a workflow task. */
export function stepOf(one: z.infer<typeof event>): string | undefined {
  return (
    one.activityTaskScheduledEventAttributes?.activityType.name ??
    marked(one, 'core_local_activity', 'data', 'activity_type')
  );
}

/** The change of a workflow that an event marks, by its id. */
function patchOf(one: z.infer<typeof event>): string | undefined {
  return marked(one, 'core_patch', 'patch-data', 'id');
}

/** A field of what the SDK writes into its markers of a name. Throws when such a marker is without it. */
function marked(one: z.infer<typeof event>, markerName: string, detail: string, field: string): string | undefined {
  const marker = one.markerRecordedEventAttributes;
  if (marker?.markerName !== markerName) return undefined;
  const data = marker.details[detail]?.payloads[0]?.data ?? '';
  return z.object({ [field]: z.string() }).parse(JSON.parse(Buffer.from(data, 'base64').toString('utf8')))[field];
}
