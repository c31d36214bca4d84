/** The shape of a history: what its workflow did, without ids, times, and how the server cut it into tasks. */
import { z } from 'zod';

const event = z.looseObject({
  eventType: z.string(),
  workflowExecutionStartedEventAttributes: z.looseObject({ workflowType: z.object({ name: z.string() }) }).optional(),
  activityTaskScheduledEventAttributes: z.looseObject({ activityType: z.object({ name: z.string() }) }).optional(),
  markerRecordedEventAttributes: z
    .looseObject({
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

/** One line an event that the workflow caused or heard. Two histories of one shape prove the same in a replay. */
export function historyShape(history: z.infer<typeof recordedHistory>): string {
  return history.events
    .filter(({ eventType }) => !LEFT_OUT.test(eventType))
    .map((one) => {
      const attributes = one.upsertWorkflowSearchAttributesEventAttributes?.searchAttributes.indexedFields;
      const what =
        one.workflowExecutionStartedEventAttributes?.workflowType.name ??
        one.activityTaskScheduledEventAttributes?.activityType.name ??
        markedBy(one.markerRecordedEventAttributes) ??
        (attributes === undefined ? '' : Object.keys(attributes).sort().join(' '));
      return `${one.eventType.replace('EVENT_TYPE_', '')} ${what}`.trim();
    })
    .join('\n');
}

/** What the SDK marks in a history: a change of a workflow, by its id, or a step within a workflow task, by its activity. */
function markedBy(marker: z.infer<typeof event>['markerRecordedEventAttributes']): string | undefined {
  const data = (marker?.details['patch-data'] ?? marker?.details.data)?.payloads[0]?.data;
  if (data === undefined) return undefined;
  const mark = z
    .object({ id: z.string().optional(), activity_type: z.string().optional() })
    .parse(JSON.parse(Buffer.from(data, 'base64').toString('utf8')));
  return mark.id ?? mark.activity_type;
}
