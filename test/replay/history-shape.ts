/** The shape of a history: what its workflow did, without ids, times, and how the server cut it into tasks. */
import { z } from 'zod';

const event = z.looseObject({
  eventType: z.string(),
  workflowExecutionStartedEventAttributes: z.looseObject({ workflowType: z.object({ name: z.string() }) }).optional(),
  activityTaskScheduledEventAttributes: z.looseObject({ activityType: z.object({ name: z.string() }) }).optional(),
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
        (attributes === undefined ? '' : Object.keys(attributes).sort().join(' '));
      return `${one.eventType.replace('EVENT_TYPE_', '')} ${what}`.trim();
    })
    .join('\n');
}
