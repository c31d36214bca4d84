import type { Command } from 'commander';
import { colours } from '../format.ts';
import { printJson, table } from '../output.ts';

/** Adds `mooring deployment`: which builds of the workers there are, and which one gets new work. */
export function addDeploymentCommands(program: Command): void {
  const deployment = program
    .command('deployment')
    .description('the builds of the workers: which one gets new work, which ones may be stopped (TEMPORAL_ADDRESS)');

  deployment
    .command('list')
    .description('list the builds, the newest first')
    .option('--json', 'print JSON, for programs')
    .action(async (options: { json?: boolean }) => {
      const { readBuilds } = await import('../../temporal/deployment.ts');
      const builds = await withClient(readBuilds);
      if (options.json) printJson({ items: builds });
      else if (builds.length === 0) console.log('no versioned worker has run here yet');
      else
        console.log(
          table(
            ['BUILD', 'STATUS', 'CREATED', 'ITS WORKERS'],
            builds.map(({ buildId, status, created }) => [
              buildId,
              status === 'current' ? colours.green(status) : status,
              created?.toISOString() ?? '-',
              ADVICE[status],
            ]),
          ),
        );
    });

  deployment
    .command('promote')
    .description('make a build current: it gets new work, and the next step of every long workflow')
    .argument('<build>', 'the build id, as "mooring deployment list" shows it')
    .option('--json', 'print JSON, for programs')
    .action(async (build: string, options: { json?: boolean }) => {
      const { promoteBuild, readBuilds } = await import('../../temporal/deployment.ts');
      await withClient(async (client) => {
        const builds = await readBuilds(client);
        if (!builds.some(({ buildId }) => buildId === build))
          throw new Error(
            `there is no build "${build}": start a worker of it first; "mooring deployment list" shows those that there are`,
          );
        await promoteBuild(client, build);
      });
      if (options.json) printJson({ build_id: build, status: 'current' });
      else console.log(`build ${build} is current; the others drain: "mooring deployment list" says when to stop them`);
    });
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

async function withClient<Result>(
  work: (client: import('@temporalio/client').Client) => Promise<Result>,
): Promise<Result> {
  const { Client } = await import('@temporalio/client');
  const { connectClient, readTemporalSettings } = await import('../../temporal/connection.ts');
  const { connection: settings, namespace } = readTemporalSettings(process.env);
  const { connection, close } = await connectClient(settings);
  try {
    return await work(new Client({ connection, namespace }));
  } finally {
    await close();
  }
}
