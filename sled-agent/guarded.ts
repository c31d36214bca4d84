/**
 * Callbacks that nobody waits for: of timers, sockets and child processes. What one throws is a fault of ours, which goes on
 * record; it must not end the agent, which would take its guests with it.
 */

/** Runs a callback. What it throws goes to `onTrouble`. */
export function guarded(onTrouble: (message: string) => void, callback: () => void): void {
  try {
    callback();
  } catch (error) {
    onTrouble(describe(error));
  }
}

/** The same for what got past every other guard of this process. To be called once, when guests may run here. */
export function surviveStrayErrors(onTrouble: (message: string) => void): void {
  for (const event of ['uncaughtException', 'unhandledRejection'] as const)
    process.on(event, (error: unknown) => onTrouble(describe(error)));
}

function describe(error: unknown): string {
  return `an error that nobody expected: ${error instanceof Error ? (error.stack ?? error.message) : error}`;
}
