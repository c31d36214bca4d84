import type { Command } from 'commander';
import pc from 'picocolors';
import { DEFAULT_API_PORT } from '../context.ts';
import { printJson } from '../output.ts';
import { parseSize } from '../sizes.ts';

/** Resolves at the first SIGINT or SIGTERM; a second one ends the process at once. */
export async function untilTold(): Promise<void> {
  await new Promise<void>((resolve) => {
    let told = false;
    const hear = () => {
      if (told) process.exit(130);
      told = true;
      resolve();
    };
    process.on('SIGINT', hear);
    process.on('SIGTERM', hear);
  });
}

/** Adds `mooring up`, `worker`, `api`, `sled-agent` and `demo`. Heavy modules are loaded when a command needs them. */
export function addProcessCommands(program: Command): void {
  program
    .command('up')
    .description('run a whole stack: PostgreSQL, Temporal with its Web UI, a worker, the API, simulated sleds')
    .option('--data <dir>', 'keep the data here between runs; thrown away by default')
    .option('--api-port <port>', 'port of the API; 0 chooses one', Number, DEFAULT_API_PORT)
    .option('--temporal-ui-port <port>', 'port of the Temporal Web UI; 0 chooses one', Number, 0)
    .option('--sleds <n>', 'how many simulated sleds; 0 to bring your own', Number, 3)
    .option('--test-endpoints', 'let the simulated sleds take planted faults over HTTP')
    .option('--json', 'print one line of JSON when it is ready')
    .action(
      async (options: {
        data?: string;
        apiPort: number;
        temporalUiPort: number;
        sleds: number;
        testEndpoints?: boolean;
        json?: boolean;
      }) => {
        const { startStack } = await import('../../worker/stack.ts');
        const told = untilTold();
        const stack = await startStack({
          dataDir: options.data,
          apiPort: options.apiPort,
          temporalUiPort: options.temporalUiPort,
          sleds: options.sleds,
          testEndpoints: options.testEndpoints ?? false,
          onProgress: (message) => options.json || console.log(`${pc.green('✓')} ${message}`),
        });
        const where = {
          api_url: stack.apiUrl,
          temporal_address: stack.temporalAddress,
          temporal_ui_url: stack.temporalUiUrl,
          sleds: stack.sleds.map(({ id, name, agent }) => ({ id, name, address: agent.address })),
        };
        if (options.json) printJson(where);
        else {
          const flag = stack.apiUrl.endsWith(`:${DEFAULT_API_PORT}`) ? '' : ` --api-url ${stack.apiUrl}`;
          console.log(
            [
              '',
              `${pc.bold('Ready.')} In another terminal:`,
              `  npx mooring instance create web${flag}`,
              `  npx mooring instance migrate web --to sled-2${flag}`,
              `  npx mooring instance list${flag}`,
              ...(stack.temporalUiUrl === null ? [] : [`Watch the sagas at ${pc.cyan(stack.temporalUiUrl)}`]),
              'Ctrl-C stops everything.',
            ].join('\n'),
          );
        }
        await told;
        if (!options.json) console.log('stopping…');
        await stack.stop();
      },
    );

  program
    .command('worker')
    .description('run one worker process, against DATABASE_URL and TEMPORAL_ADDRESS')
    .action(async () => {
      const { databaseUrl, temporal } = await externalParts();
      const { startWorker } = await import('../../worker/worker.ts');
      const { migrateDatabase } = await import('../../db/connect.ts');
      const { createLog } = await import('../../worker/log.ts');
      const told = untilTold();
      await migrateDatabase(databaseUrl);
      const worker = await startWorker({ databaseUrl, temporal, log: createLog('worker') });
      console.log('worker: running');
      await Promise.race([told, worker.ended]);
      await worker.stop();
    });

  program
    .command('api')
    .description('run one API process, against DATABASE_URL and TEMPORAL_ADDRESS')
    .option('--host <address>', 'the address to listen on', '127.0.0.1')
    .option('--port <port>', 'the port to listen on; 0 chooses one', Number, DEFAULT_API_PORT)
    .option('--temporal-ui-url <url>', 'where the Temporal Web UI is, for links')
    .action(async (options: { host: string; port: number; temporalUiUrl?: string }) => {
      const { databaseUrl, temporal } = await externalParts();
      const { startApi } = await import('../../api/server.ts');
      const { migrateDatabase } = await import('../../db/connect.ts');
      const { createLog } = await import('../../worker/log.ts');
      const told = untilTold();
      await migrateDatabase(databaseUrl);
      const api = await startApi({
        databaseUrl,
        temporal,
        ...options,
        temporalUiUrl: options.temporalUiUrl ?? null,
        log: createLog('api'),
      });
      console.log(`API: ${api.url}`);
      await told;
      await api.stop();
    });

  program
    .command('sled-agent')
    .description('run a sled agent with simulated VMs; add it with "mooring sled add"')
    .requiredOption('--name <name>', 'its name')
    .requiredOption('--address <ip:port>', 'the address to listen on; port 0 chooses one')
    .option('--control-plane <url>', 'where the API is', `http://127.0.0.1:${DEFAULT_API_PORT}`)
    .option('--threads <n>', 'hardware threads for VMs', Number, 16)
    .option('--memory <size>', 'memory for VMs', parseSize, 64 * 1024 ** 3)
    .option('--transition-ms <ms>', 'how long a transition of a VM takes', Number, 50)
    .option('--network-poll-ms <ms>', 'how often to ask where instances live; 0 never', Number, 1000)
    .option('--test-endpoints', 'take planted faults over HTTP')
    .action(
      async (options: {
        name: string;
        address: string;
        controlPlane: string;
        threads: number;
        memory: number;
        transitionMs: number;
        networkPollMs: number;
        testEndpoints?: boolean;
      }) => {
        const { startSledAgent } = await import('../../sled-agent/server.ts');
        const told = untilTold();
        const agent = await startSledAgent({
          name: options.name,
          listen: options.address,
          controlPlaneUrl: options.controlPlane,
          threads: options.threads,
          memoryBytes: options.memory,
          transitionMs: options.transitionMs,
          networkPollMs: options.networkPollMs,
          testEndpoints: options.testEndpoints ?? false,
        });
        console.log(`sled agent "${options.name}": ${agent.address}`);
        await told;
        await agent.stop();
      },
    );

  program
    .command('demo')
    .description('play the main job on a stack of its own: start, live-migrate, fail and clean up')
    .option('--keep', 'leave everything running afterwards')
    .option('--scenario <file>', 'the scenario to play')
    .action(async (options: { keep?: boolean; scenario?: string }) => {
      const { runDemo } = await import('../demo.ts');
      process.exitCode = (await runDemo({ keep: options.keep ?? false, scenarioFile: options.scenario })) ? 0 : 1;
    });
}

async function externalParts() {
  const { readTemporalSettings } = await import('../../worker/temporal-connection.ts');
  const databaseUrl = process.env.DATABASE_URL;
  if (databaseUrl === undefined || databaseUrl === '') {
    throw new Error(
      'DATABASE_URL is not set: name the PostgreSQL to work on, for example postgres://user@host/mooring ("mooring up" brings its own)',
    );
  }
  return { databaseUrl, temporal: readTemporalSettings(process.env) };
}
