import { type Command, InvalidArgumentError, Option } from 'commander';
import { DEFAULT_BEAT_MS } from '../../model/lease.ts';
import { splitAddress } from '../../wire/sled-protocol.ts';
import { colours } from '../colours.ts';
import { DEFAULT_API_PORT, DEFAULT_SLED_PORT } from '../context.ts';
import { printJson } from '../output.ts';
import { addSledAgentCommand, type HypervisorChoice, hypervisorOption, untilTold } from './sled-agent.ts';
import { authorityOption, openAuthority } from './sled-identity.ts';

/** Adds `mooring up`, `worker`, `api`, `sled-agent` (with `join`) and `demo`. Heavy modules are loaded when a command needs them. */
export function addProcessCommands(program: Command): void {
  program
    .command('up')
    .description('run a whole stack: PostgreSQL, Temporal with its Web UI, a worker, the API, sleds')
    .option('--data <dir>', 'keep the data here between runs; thrown away by default')
    .option('--api-port <port>', 'port of the API; 0 chooses one', Number, DEFAULT_API_PORT)
    .option('--temporal-ui-port <port>', 'port of the Temporal Web UI; 0 chooses one', Number, 0)
    .option('--sleds <n>', 'how many sleds; 0 to bring your own', Number, 3)
    .addOption(hypervisorOption())
    .option('--require-tokens', 'ask operators for a token; the stack’s own is found by every command of its user')
    .option('--sled-tls', 'sleds join by invitation and speak by certificates; none is added without')
    .option('--test-endpoints', 'let the sleds take planted faults over HTTP')
    .option('--json', 'print one line of JSON when it is ready')
    .action(
      async (options: {
        data?: string;
        apiPort: number;
        temporalUiPort: number;
        sleds: number;
        hypervisor: HypervisorChoice;
        requireTokens?: boolean;
        sledTls?: boolean;
        testEndpoints?: boolean;
        json?: boolean;
      }) => {
        const { startStack } = await import('../../stack/stack.ts');
        const told = untilTold();
        const stack = await startStack({
          dataDir: options.data,
          apiPort: options.apiPort,
          temporalUiPort: options.temporalUiPort,
          sleds: options.sleds,
          hypervisor: options.hypervisor,
          requireTokens: options.requireTokens ?? false,
          sledTls: options.sledTls ?? false,
          testEndpoints: options.testEndpoints ?? false,
          onProgress: (message) => options.json || console.log(`${colours.green('✓')} ${message}`),
        });
        const where = {
          api_url: stack.apiUrl,
          sled_url: stack.api.sledUrl,
          temporal_address: stack.temporalAddress,
          temporal_ui_url: stack.temporalUiUrl,
          token_file: stack.adminToken.file,
          sleds: stack.sleds.map(({ id, name, agent }) => ({ id, name, address: agent.address })),
        };
        if (options.json) printJson(where);
        else {
          const flag = stack.apiUrl.endsWith(`:${DEFAULT_API_PORT}`) ? '' : ` --api-url ${stack.apiUrl}`;
          console.log(
            [
              '',
              `${colours.bold('Ready.')} In another terminal:`,
              `  npx mooring instance create web${options.hypervisor === 'qemu' ? ' --memory 128MiB' : ''}${flag}`,
              ...(options.hypervisor === 'qemu' ? [`  npx mooring instance console web${flag}`] : []),
              `  npx mooring instance migrate web --to sled-2${flag}`,
              `  npx mooring instance list${flag}`,
              ...(stack.temporalUiUrl === null ? [] : [`Watch the sagas at ${colours.cyan(stack.temporalUiUrl)}`]),
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
    .addOption(authorityOption())
    .option('--metrics <ip:port>', 'show /metrics, /healthz and /readyz here', process.env.MOORING_METRICS_LISTEN)
    .addOption(
      new Option('--audit-days <n>', 'how long audit records are kept, in days')
        .argParser(parseDays)
        .default(90)
        .env('MOORING_AUDIT_DAYS'),
    )
    .action(async (options: { metrics?: string; authority?: string; auditDays: number }) => {
      const { databaseUrl, temporal } = await externalParts();
      const { startWorker } = await import('../../worker/worker.ts');
      const { migrateDatabase } = await import('../../db/connect.ts');
      const { createLog } = await import('../../platform/telemetry/log.ts');
      const told = untilTold();
      const authority = await openAuthority(options.authority);
      await migrateDatabase(databaseUrl);
      const worker = await startWorker({
        databaseUrl,
        temporal,
        authority,
        log: createLog('worker'),
        metricsListen: options.metrics,
        auditDays: options.auditDays,
      });
      console.log(`worker: running${worker.metricsUrl === null ? '' : `, metrics at ${worker.metricsUrl}/metrics`}`);
      await Promise.race([told, worker.ended]);
      await worker.stop();
    });

  program
    .command('api')
    .description('run one API process, against DATABASE_URL and TEMPORAL_ADDRESS')
    .option('--host <address>', 'the address to listen on', '127.0.0.1')
    .option('--port <port>', 'the port to listen on; 0 chooses one', Number, DEFAULT_API_PORT)
    .option('--temporal-ui-url <url>', 'where the Temporal Web UI is, for links')
    .addOption(
      new Option('--authentication <mode>', 'ask operators for tokens, or let in whoever reaches a loopback address')
        .choices(['tokens', 'open'])
        .default('tokens')
        .env('MOORING_API_AUTHENTICATION'),
    )
    .addOption(new Option('--tls-cert <file>', 'the certificate to serve, in PEM').env('MOORING_API_TLS_CERT'))
    .addOption(new Option('--tls-key <file>', 'its key, in PEM').env('MOORING_API_TLS_KEY'))
    .option('--insecure', 'listen elsewhere than on a loopback address without TLS')
    .addOption(
      new Option('--requests-per-minute <n>', 'how many requests a token may send in a minute; 0 is unlimited')
        .argParser(Number)
        .default(6_000)
        .env('MOORING_API_REQUESTS_PER_MINUTE'),
    )
    .addOption(authorityOption())
    .option(
      '--sled-listen <ip:port>',
      `where sleds that have joined reach it; by default port ${DEFAULT_SLED_PORT} of --host`,
      process.env.MOORING_SLED_LISTEN,
    )
    .option(
      '--sled-url <url>',
      'how sleds reach that, for example https://mooring.example:12221; by default its address',
      process.env.MOORING_SLED_URL,
    )
    .option('--insecure-sleds', 'let sleds be added that speak plain HTTP, without an identity')
    .option('--lease-beat-ms <ms>', 'how often to write down that leases can be renewed', Number, DEFAULT_BEAT_MS)
    .option('--metrics <ip:port>', 'show /metrics, /healthz and /readyz here', process.env.MOORING_METRICS_LISTEN)
    .action(async (options: ApiCommandOptions) => {
      const { databaseUrl, temporal } = await externalParts();
      const { startApi } = await import('../../api/server.ts');
      const { migrateDatabase } = await import('../../db/connect.ts');
      const { createLog } = await import('../../platform/telemetry/log.ts');
      const told = untilTold();
      const authority = await openAuthority(options.authority);
      await migrateDatabase(databaseUrl);
      const api = await startApi({
        databaseUrl,
        temporal,
        host: options.host,
        port: options.port,
        authentication: options.authentication,
        tls: await readTls(options),
        insecure: options.insecure ?? false,
        limits: { requestsPerMinute: options.requestsPerMinute === 0 ? null : options.requestsPerMinute },
        temporalUiUrl: options.temporalUiUrl ?? null,
        metricsListen: options.metrics,
        leaseBeatMs: options.leaseBeatMs,
        sledListener: authority && { authority, ...sledListenAddress(options), url: options.sledUrl },
        plainSleds: options.insecureSleds ?? false,
        log: createLog('api'),
      });
      console.log(`API: ${api.url}${api.sledUrl === null ? '' : `, for sleds: ${api.sledUrl}`}`);
      await told;
      await api.stop();
    });

  addSledAgentCommand(program);

  program
    .command('demo')
    .description('play the main job on a stack of its own: start, live-migrate, fail and clean up')
    .option('--keep', 'leave everything running afterwards')
    .option('--scenario <file>', 'the scenario to play')
    .addOption(hypervisorOption())
    .option('--sled-tls', 'sleds join by invitation and speak by certificates')
    .action(async (options: { keep?: boolean; scenario?: string; hypervisor: HypervisorChoice; sledTls?: boolean }) => {
      const { runDemo } = await import('../demo.ts');
      const { keep = false, scenario, hypervisor, sledTls = false } = options;
      process.exitCode = (await runDemo({ keep, scenarioFile: scenario, hypervisor, sledTls })) ? 0 : 1;
    });
}

function parseDays(text: string): number {
  const days = Number(text);
  if (!Number.isFinite(days) || days <= 0) throw new InvalidArgumentError('a number of days above 0 is needed');
  return days;
}

interface ApiCommandOptions {
  readonly host: string;
  readonly port: number;
  readonly temporalUiUrl?: string;
  readonly authentication: 'tokens' | 'open';
  readonly tlsCert?: string;
  readonly tlsKey?: string;
  readonly insecure?: boolean;
  readonly requestsPerMinute: number;
  readonly leaseBeatMs: number;
  readonly metrics?: string;
  readonly authority?: string;
  readonly sledListen?: string;
  readonly sledUrl?: string;
  readonly insecureSleds?: boolean;
}

/** The certificate and key that the files hold; `undefined` without. Throws when one of them is missing. */
async function readTls({ tlsCert, tlsKey }: Pick<ApiCommandOptions, 'tlsCert' | 'tlsKey'>) {
  if (tlsCert === undefined && tlsKey === undefined) return undefined;
  if (tlsCert === undefined || tlsKey === undefined)
    throw new Error(`${tlsCert === undefined ? '--tls-cert' : '--tls-key'} is missing: TLS needs both files`);
  const { readFile } = await import('node:fs/promises');
  return { cert: await readFile(tlsCert), key: await readFile(tlsKey) };
}

/** Where the sled-facing listener is. Throws for an address that is none. */
function sledListenAddress({ host, sledListen }: ApiCommandOptions): { host: string; port: number } {
  if (sledListen === undefined) return { host, port: DEFAULT_SLED_PORT };
  const at = sledListen.lastIndexOf(':');
  const port = Number(sledListen.slice(at + 1));
  if (at < 1 || !Number.isInteger(port) || port < 0 || port > 65_535)
    throw new Error(
      `--sled-listen: must be "ip:port", for example "0.0.0.0:${DEFAULT_SLED_PORT}", not "${sledListen}"`,
    );
  return splitAddress(sledListen);
}

async function externalParts() {
  const { readTemporalSettings } = await import('../../temporal/connection.ts');
  const databaseUrl = process.env.DATABASE_URL;
  if (databaseUrl === undefined || databaseUrl === '') {
    throw new Error(
      'DATABASE_URL is not set: name the PostgreSQL to work on, for example postgres://user@host/mooring ("mooring up" brings its own)',
    );
  }
  return { databaseUrl, temporal: readTemporalSettings(process.env) };
}
