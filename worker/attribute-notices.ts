/** How a worker tells the workflows that it runs whether they may write search attributes. */
import type { ActivityInterceptorsFactory } from '@temporalio/worker';
import { withNotice } from '../model/attribute-notice.ts';
import { withinTime } from '../platform/host/with-limit.ts';
import type { SearchAttributes } from '../temporal/search-attributes.ts';

/** Of how many steps it is remembered that they ran within a workflow task. */
const REMEMBERED = 20_000;
/** How long a look may hold up a step, in milliseconds. */
const LOOK_MS = 1_000;

/** The activities by which a workflow asks, where no step has just told it. */
export function createAttributeActivities(attributes: SearchAttributes) {
  return {
    /** Whether a workflow may write search attributes now. Looks; a server that does not answer leaves what was known. */
    async searchAttributesUsable(): Promise<boolean> {
      await withinTime(attributes.look(), LOOK_MS);
      return attributes.usable;
    },
  };
}
export type AttributeActivities = ReturnType<typeof createAttributeActivities>;

/**
 * Adds the notice to the results of steps that run within a workflow task, while search attributes can't be used. A step that
 * runs there a second time was in a task that the server has refused, or lost: perhaps for the sake of an attribute that has
 * vanished since the last look, so there is another one first.
 */
export function attributeNotices(attributes: SearchAttributes): ActivityInterceptorsFactory {
  const ran = new Set<string>();
  return ({ info }) => ({
    inbound: {
      async execute(input, next) {
        if (!info.isLocal) return next(input);
        const step = `${info.workflowExecution?.runId}/${info.activityId}`;
        if (info.attempt === 1 && ran.has(step)) await withinTime(attributes.look(), LOOK_MS);
        if (ran.size >= REMEMBERED) ran.clear();
        ran.add(step);
        const result = await next(input);
        return attributes.usable ? result : withNotice(result);
      },
    },
  });
}
