import { activityInfo, heartbeat } from '@temporalio/activity';

const EVERY_MS = 3_000;

/** Tells Temporal that a long activity goes on, for as long as `work` does: whatever single call of it is slow. */
export async function whileHeartbeating<T>(work: () => Promise<T>): Promise<T> {
  if (activityInfo().heartbeatTimeoutMs === undefined) return work();
  const timer = setInterval(() => heartbeat(), EVERY_MS);
  try {
    return await work();
  } finally {
    clearInterval(timer);
  }
}
