/** How a command that fails says so. */
import { MooringApiError } from '../client/mooring-client.ts';
import { StillRunning } from './follow.ts';
import { colours } from './format.ts';

/** Prints why a command failed on standard error, as JSON for programs. Returns the exit code that fits. */
export function printFailure(error: unknown, json: boolean): number {
  const exitCode = error instanceof StillRunning ? error.exitCode : 1;
  const message = error instanceof Error ? error.message : String(error);
  if (json) {
    const details =
      error instanceof MooringApiError
        ? { status: error.status, error_code: error.errorCode, request_id: error.requestId }
        : {};
    console.error(JSON.stringify({ message, ...details }));
  } else if (error instanceof StillRunning) console.error(message);
  else console.error(`${colours.red('error:')} ${message}`);
  return exitCode;
}
