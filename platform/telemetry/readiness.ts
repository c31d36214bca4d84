import type { Connection } from '@temporalio/client';
import type { WriteProbe } from './write-probe.ts';

/** How long PostgreSQL and Temporal may take to answer, in milliseconds. */
export const ANSWER_MS = 2_000;

/**
 * What keeps a process from doing its work: PostgreSQL (as `pingDatabase` finds it) or Temporal that does not answer, or one
 * of them that takes no writes, as `probes` try where both answer. Empty when it is ready.
 */
export async function readinessProblems(
  pingDatabase: () => Promise<void>,
  connection: Connection,
  probes: readonly WriteProbe[] = [],
): Promise<string[]> {
  const checks: [string, () => Promise<unknown>][] = [
    ['PostgreSQL', pingDatabase],
    ['Temporal', () => connection.withDeadline(Date.now() + ANSWER_MS, () => connection.healthService.check({}))],
  ];
  const found = await Promise.all(
    checks.map(async ([name, check]) => {
      let timer: NodeJS.Timeout | undefined;
      const late = new Promise<string>((resolve) => {
        timer = setTimeout(() => resolve(`${name} does not answer`), ANSWER_MS);
      });
      const answered = check().then(
        () => null,
        (error: unknown) => `${name}: ${error instanceof Error ? error.message.split('\n')[0] : error}`,
      );
      return Promise.race([answered, late]).finally(() => clearTimeout(timer));
    }),
  );
  const silent = found.filter((problem) => problem !== null);
  if (silent.length > 0) return silent;
  return (await Promise.all(probes.map((probe) => probe.problem()))).filter((problem) => problem !== null);
}
