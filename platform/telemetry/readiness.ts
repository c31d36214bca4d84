import type { Connection } from '@temporalio/client';

/** How long PostgreSQL and Temporal may take to answer, in milliseconds. */
const ANSWER_MS = 2_000;

/**
 * What keeps a process from doing its work: PostgreSQL (as `pingDatabase` finds it) or Temporal that does not answer. Empty
 * when it is ready.
 */
export async function readinessProblems(pingDatabase: () => Promise<void>, connection: Connection): Promise<string[]> {
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
  return found.filter((problem) => problem !== null);
}
