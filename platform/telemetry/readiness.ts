import type { Connection } from '@temporalio/client';
import { processDescriptors } from '../host/descriptor-reserve.ts';
import { within } from '../host/with-limit.ts';
import type { WriteProbe } from './write-probe.ts';

/** How long PostgreSQL and Temporal may take to answer, in milliseconds. */
export const ANSWER_MS = 2_000;

/** What a process says of its readiness, one line each for people. */
export interface Readiness {
  /** What keeps it from doing its work; empty when it is ready. */
  readonly problems: readonly string[];
  /** What it does without. */
  readonly notes: readonly string[];
}

/** What this process does without for want of file descriptors. */
export function descriptorNotes(): string[] {
  const { trouble } = processDescriptors;
  return trouble === null ? [] : [trouble];
}

/** The answer to the question whether a process is ready. */
export function describeReadiness({ problems, notes }: Readiness): {
  readonly status: 200 | 503;
  readonly body: string;
} {
  const isReady = problems.length === 0;
  const lines = [...(isReady ? ['ready'] : problems), ...notes.map((note) => `note: ${note}`)];
  return { status: isReady ? 200 : 503, body: `${lines.join('\n')}\n` };
}

/**
 * What keeps a process from doing its work: PostgreSQL (as `pingDatabase` finds it), or Temporal that does not answer, does not
 * know the namespace or does not let us in; or one of them that takes no writes, as `probes` try where both answer. Empty when it
 * is ready.
 */
export async function readinessProblems(
  pingDatabase: () => Promise<void>,
  connection: Connection,
  namespace: string,
  probes: readonly WriteProbe[] = [],
): Promise<string[]> {
  const checks: [string, () => Promise<unknown>][] = [
    ['PostgreSQL', pingDatabase],
    // Who may not see the namespace may do nothing in it: the health service answers everybody.
    [
      'Temporal',
      () =>
        connection.withDeadline(Date.now() + ANSWER_MS, () =>
          connection.workflowService.describeNamespace({ namespace }),
        ),
    ],
  ];
  const found = await Promise.all(
    checks.map(([name, check]) => {
      const answered = check().then(
        () => null,
        (error: unknown) => `${name}: ${error instanceof Error ? error.message.split('\n')[0] : error}`,
      );
      return within(ANSWER_MS, answered, () => `${name} does not answer`);
    }),
  );
  const silent = found.filter((problem) => problem !== null);
  if (silent.length > 0) return silent;
  return (await Promise.all(probes.map((probe) => probe.problem()))).filter((problem) => problem !== null);
}
