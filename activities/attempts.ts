import { activityInfo } from '@temporalio/activity';

/**
 * Whether an earlier execution of this step may have taken effect or still be on its way: an ordinary activity always comes after
 * the try within the workflow task. That try is itself made again when its workflow task was lost, which it can't know: there it
 * comes right after the step before it, which has just looked.
 */
export function isTriedAgain(): boolean {
  const { attempt, isLocal } = activityInfo();
  return !isLocal || attempt > 1;
}
