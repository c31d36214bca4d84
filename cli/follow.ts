/** Follows an operation on a terminal: one line that shows the saga's present step, until its outcome. */
import { MooringApiError } from '../client/mooring-client.ts';
import type { OperationView } from '../wire/operator-api/operations.ts';
import type { CommandContext } from './context.ts';
import { colours } from './format.ts';
import { StatusLine } from './output.ts';

/** How an operation is followed. */
interface FollowOptions {
  /** What is done, for people: `start web`. */
  readonly what: string;
  /** How long to follow, in seconds; without a limit when absent. */
  readonly timeoutSeconds?: number | undefined;
}

/** The operation goes on, although this command no longer waits for it. Its message names the command that follows it. */
export class StillRunning extends Error {
  override readonly name = 'StillRunning';
  /** The exit code that fits: 130 after Ctrl-C, 75 (try again later) after a time-out. */
  readonly exitCode: number;

  constructor(message: string, exitCode: number) {
    super(message);
    this.exitCode = exitCode;
  }
}

/** The operation that was followed has failed: its error. */
export class FailedOperation extends MooringApiError {}

/**
 * Waits for an operation's outcome. Throws the operation's error as a {@link FailedOperation}, or {@link StillRunning}
 * after Ctrl-C or the time-out, neither of which stops the operation.
 */
export async function followOperation(
  context: CommandContext,
  operationId: string,
  options: FollowOptions,
): Promise<OperationView> {
  const line = new StatusLine(!context.json);
  const stop = new AbortController();
  const stillRunning = (why: string, exitCode: number) =>
    new StillRunning(
      `${why}: ${options.what} goes on. Follow it with: mooring operation show ${operationId} --wait`,
      exitCode,
    );
  const interrupted = () => stop.abort(stillRunning('interrupted', 130));
  process.once('SIGINT', interrupted);
  const timer =
    options.timeoutSeconds === undefined
      ? undefined
      : setTimeout(
          () => stop.abort(stillRunning(`no outcome after ${options.timeoutSeconds} s`, 75)),
          options.timeoutSeconds * 1000,
        );
  try {
    const operation = await context.client.waitForOperation(operationId, {
      signal: stop.signal,
      onProgress: (seen) => line.show(describeProgress(options.what, seen)),
    });
    if (operation.error !== null) {
      throw new FailedOperation(operation.error.status, operation.error);
    }
    return operation;
  } finally {
    line.clear();
    clearTimeout(timer);
    process.off('SIGINT', interrupted);
  }
}

/** Describes an operation's present state in one line. */
function describeProgress(what: string, operation: OperationView): string {
  const { progress } = operation;
  if (operation.state === 'done') return `${what}: ${operation.outcome}`;
  if (progress === null) return `${what}: …`;
  const phase = progress.phase === 'undoing' ? colours.yellow('undoing: ') : '';
  const again = progress.attempt > 1 ? colours.yellow(`, attempt ${progress.attempt}`) : '';
  const why = progress.last_failure === null ? '' : colours.dim(` (${progress.last_failure})`);
  return `${what}: ${phase}${progress.title}${again}${why}`;
}
