/** Waits of tests: for a condition, with one limit for all of them. */

/** How long is stuck, not slow, on a machine that others keep busy, in milliseconds. */
export const STUCK_MS = 100_000;

const FIRST_PAUSE_MS = 10;
const LAST_PAUSE_MS = 100;
const GROWTH = 1.3;

/**
 * Waits until `check` holds. It looks at once, then ever less often, down to ten times a second: what is quick is seen at
 * once, and thirty that wait for what is slow don't keep the machine from it. Throws `message` after {@link STUCK_MS}.
 */
export async function eventually(check: () => Promise<boolean> | boolean, message: string): Promise<void> {
  const end = performance.now() + STUCK_MS;
  for (let pauseMs = FIRST_PAUSE_MS; !(await check()); pauseMs = Math.min(LAST_PAUSE_MS, pauseMs * GROWTH)) {
    if (performance.now() > end) throw new Error(message);
    await new Promise((resolve) => setTimeout(resolve, pauseMs));
  }
}
