import type { Command } from 'commander';
import { setting } from '../../platform/settings.ts';
import { colours } from '../format.ts';
import { printJson, table } from '../output.ts';
import { explained } from '../processes.ts';
import { SUMMARIES } from '../summaries.ts';

/** Adds `mooring deployment`: which builds of the workers there are, and which one gets new work. */
export function addDeploymentCommands(program: Command): void {
  const deployment = program.command('deployment').description(SUMMARIES.deployment);

  deployment
    .command('list')
    .description('list the builds, the newest first')
    .option('--json', 'print JSON, for programs')
    .action(async (options: { json?: boolean }) => {
      const { readPolledBuilds, readUnserved } = await import('../../temporal/deployment.ts');
      const { builds, unserved } = await withClient(async (client, installation) => {
        const polled = await readPolledBuilds(client, installation);
        return { builds: polled, unserved: installation === '' ? [] : await readUnserved(client, installation) };
      });
      if (options.json) printJson({ items: builds, ...(unserved.length === 0 ? {} : { unserved }) });
      else if (builds.length === 0) console.log('no versioned worker has run here yet');
      else {
        console.log(
          table(
            ['BUILD', 'STATUS', 'CREATED', 'ITS WORKERS', 'POLLING'],
            builds.map(({ buildId, status, created, pollers }) => [
              buildId,
              status === 'current' ? colours.green(status) : status,
              created?.toISOString() ?? '-',
              pollers === 0 && NEEDS_WORKERS.has(status) ? colours.red(MISSED[status]) : ADVICE[status],
              String(pollers),
            ]),
          ),
        );
      }
      if (!options.json) {
        for (const problem of unserved) console.log(colours.red(`WORK GOES TO NOBODY: ${problem}`));
      }
    });

  deployment
    .command('promote')
    .description('make a build current: it gets new work, and the next step of every long workflow')
    .argument('<build>', 'the build id, as "mooring deployment list" shows it')
    .option('--force', 'also where no worker of it polls both task queues: everything waits until one does')
    .option(
      '--keep-running',
      'what runs ends on the build that it is on: for going back to one that does not know what a newer one writes',
    )
    .option('--json', 'print JSON, for programs')
    .action(async (build: string, options: { force?: boolean; keepRunning?: boolean; json?: boolean }) => {
      const { keepRunsWhereTheyAre, promoteBuild, readBuilds } = await import('../../temporal/deployment.ts');
      const keptRuns = await withClient(async (client, installation) => {
        const builds = await readBuilds(client, installation);
        if (!builds.some(({ buildId }) => buildId === build))
          throw new Error(
            `there is no build "${build}": start a worker of it first; "mooring deployment list" shows those that there are`,
          );
        const promote = () => promoteBuild(client, installation, build, { unpolled: options.force ?? false });
        const keep = () => keepRunsWhereTheyAre(client, installation, build);
        if (!options.keepRunning) return promote().then(() => null);
        const before = await keep();
        await promote();
        // One that was pinned may be found once more: Temporal's visibility follows.
        return new Set([...before, ...(await keepTheRest(keep))]).size;
      });
      if (options.json)
        printJson({ build_id: build, status: 'current', ...(keptRuns === null ? {} : { kept_runs: keptRuns }) });
      else
        console.log(
          `build ${build} is current${keptRuns === null ? '' : `; ${keptRuns} runs end on the builds that they are on`}; the others drain: "mooring deployment list" says when to stop them`,
        );
    });
}

/** How long a run may take to be found after it has begun: Temporal's visibility follows, in milliseconds. */
const VISIBLE_MS = 3_000;

/**
 * Runs that began while the promotion was on its way: those that are found later than that go over with their next step, as all
 * do without `--keep-running`.
 */
async function keepTheRest(keep: () => Promise<string[]>): Promise<string[]> {
  const { setTimeout: pause } = await import('node:timers/promises');
  const first = await keep();
  await pause(VISIBLE_MS);
  return [...first, ...(await keep())];
}

const ADVICE = {
  unknown: '',
  inactive: 'get nothing yet: promote it when it is to take over',
  current: 'get new work',
  ramping: 'get a part of the new work',
  draining: 'end the sagas that they began: leave them running',
  drained: 'have nothing left: stop them',
  created: 'have not come up yet',
} as const;

/** Builds that something waits for. */
const NEEDS_WORKERS: ReadonlySet<string> = new Set(['current', 'ramping', 'draining']);
const MISSED = {
  ...ADVICE,
  current: 'NOBODY TAKES THE NEW WORK: start a worker of it, or promote a build that has workers',
  ramping: 'NOBODY TAKES ITS PART OF THE NEW WORK: start a worker of it, or end the ramp',
  draining: 'NOBODY ENDS THE SAGAS THAT IT BEGAN: start a worker of it again',
} as const;

/** The installation of the database in DATABASE_URL; `null` where none is named. */
async function readOwnInstallation(): Promise<string | null> {
  const url = setting('DATABASE_URL');
  if (url === undefined) return null;
  const { openDatabase } = await import('../../db/connect.ts');
  const { readInstallation } = await import('../../db/queries/read-installation.ts');
  const database = openDatabase(url, { maxConnections: 1, applicationName: 'mooring-deployment' });
  try {
    return (await readInstallation(database.db)).id;
  } finally {
    await database.close();
  }
}

/** The only installation that a namespace has; '' where it has none. Throws where there are several. */
async function findOnlyInstallation(client: import('@temporalio/client').Client): Promise<string> {
  const { findDeployedInstallations } = await import('../../temporal/deployment.ts');
  const found = await findDeployedInstallations(client);
  if (found.length > 1)
    throw new Error(
      `the namespace "${client.options.namespace}" has ${found.length} installations (${found.join(', ')}): set DATABASE_URL to the database of the one that you mean`,
    );
  return found[0] ?? '';
}

/** Works on a namespace, and on the installation in DATABASE_URL, else the only one that the namespace has. */
async function withClient<Result>(
  work: (client: import('@temporalio/client').Client, installation: string) => Promise<Result>,
): Promise<Result> {
  const { Client } = await import('@temporalio/client');
  const { connectClient, readTemporalSettings } = await import('../../temporal/connection.ts');
  const temporal = readTemporalSettings(process.env);
  const { namespace } = temporal;
  return explained({ databaseUrl: setting('DATABASE_URL'), temporal }, async () => {
    const own = await readOwnInstallation();
    const { connection, close } = await connectClient(temporal.connection);
    try {
      const client = new Client({ connection, namespace });
      return await work(client, own ?? (await findOnlyInstallation(client)));
    } finally {
      await close();
    }
  });
}
