import { type Command, InvalidArgumentError, Option } from 'commander';
import { DEFAULT_BEAT_MS } from '../../model/lease.ts';
import { setting } from '../../platform/settings.ts';
import { splitAddress } from '../../wire/sled-protocol.ts';
import { DEFAULT_API_PORT, DEFAULT_SLED_PORT } from '../context.ts';
import {
  authorityOption,
  explained,
  externalParts,
  hostsOption,
  metricsAddress,
  noMigrateOption,
  openAuthority,
  requireFree,
  runUntilSignal,
  settleSchema,
} from '../processes.ts';
import { SUMMARIES } from '../summaries.ts';

interface ApiCommandOptions {
  readonly host?: string;
  readonly port?: number;
  readonly temporalUiUrl?: string;
  readonly authentication: 'tokens' | 'open';
  readonly hosts?: readonly string[];
  readonly tlsCert?: string;
  readonly tlsKey?: string;
  readonly insecure?: boolean;
  readonly requestsPerMinute: number;
  readonly wait: number;
  readonly migrate: boolean;
  readonly leaseBeatMs: number;
  readonly metrics?: string;
  readonly authority?: string;
  readonly sledListen?: string;
  readonly sledUrl?: string;
  readonly insecureSleds?: boolean;
}

/** Adds `mooring api`. Heavy modules are loaded when it runs. */
export function addApiCommand(program: Command): void {
  program
    .command('api')
    .description(SUMMARIES.api)
    .option('--host <address>', 'the address to listen on; by default that of MOORING_API_LISTEN, else 127.0.0.1')
    .option(
      '--port <port>',
      `the port to listen on; 0 chooses one; by default that of MOORING_API_LISTEN, else ${DEFAULT_API_PORT}`,
      Number,
    )
    .option('--temporal-ui-url <url>', 'where the Temporal Web UI is, for links')
    .addOption(
      new Option('--authentication <mode>', 'ask operators for tokens, or let in whoever reaches a loopback address')
        .choices(['tokens', 'open'])
        .default('tokens')
        .env('MOORING_API_AUTHENTICATION'),
    )
    .addOption(hostsOption())
    .addOption(new Option('--tls-cert <file>', 'the certificate to serve, in PEM').env('MOORING_API_TLS_CERT'))
    .addOption(new Option('--tls-key <file>', 'its key, in PEM').env('MOORING_API_TLS_KEY'))
    .option('--insecure', 'listen elsewhere than on a loopback address without TLS')
    .addOption(
      new Option('--requests-per-minute <n>', 'how many requests a token may send in a minute; 0 is unlimited')
        .argParser(Number)
        .default(6_000)
        .env('MOORING_API_REQUESTS_PER_MINUTE'),
    )
    .addOption(
      new Option(
        '--wait <seconds>',
        'how long a call waits for its operation where it asks for no less; shorter than the time-outs of proxies',
      )
        .argParser(readWait)
        .default(25),
    )
    .addOption(noMigrateOption())
    .addOption(authorityOption())
    .addOption(
      new Option(
        '--sled-listen <ip:port>',
        `where sleds that have joined reach it; by default port ${DEFAULT_SLED_PORT} of --host`,
      ).env('MOORING_SLED_LISTEN'),
    )
    .addOption(
      new Option(
        '--sled-url <url>',
        'how sleds reach that, for example https://mooring.example:12221; by default its address',
      ).env('MOORING_SLED_URL'),
    )
    .option('--insecure-sleds', 'let sleds be added that speak plain HTTP, without an identity')
    .option('--lease-beat-ms <ms>', 'how often to write down that leases can be renewed', Number, DEFAULT_BEAT_MS)
    .addOption(
      new Option('--metrics <ip:port>', 'show /metrics, /healthz and /readyz here').env('MOORING_METRICS_LISTEN'),
    )
    .action(async (options: ApiCommandOptions) => {
      const parts = await externalParts();
      const listen = listenAddress(options);
      await requireFree([
        { ...listen, option: '--port' },
        ...metricsAddress(options.metrics),
        ...(options.authority === undefined
          ? []
          : [{ ...sledListenAddress(options, listen.host), option: '--sled-listen' }]),
      ]);
      const { startApi } = await import('../../api/server.ts');
      const { createLog } = await import('../../platform/telemetry/log.ts');
      await runUntilSignal(
        () =>
          explained(parts, async () => {
            const authority = await openAuthority(options.authority);
            const log = createLog('api');
            await settleSchema(parts.databaseUrl, options.migrate, log);
            return startApi({
              ...parts,
              ...listen,
              authentication: options.authentication,
              hosts: options.hosts,
              tls: await readTls(options),
              insecure: options.insecure ?? false,
              limits: { requestsPerMinute: options.requestsPerMinute === 0 ? null : options.requestsPerMinute },
              temporalUiUrl: options.temporalUiUrl ?? null,
              metricsListen: options.metrics,
              leaseBeatMs: options.leaseBeatMs,
              sledListener: authority && {
                authority,
                ...sledListenAddress(options, listen.host),
                url: options.sledUrl,
              },
              plainSleds: options.insecureSleds ?? false,
              waitMs: options.wait * 1_000,
              log,
            });
          }),
        ({ url, consoleUrl, sledUrl }) => {
          console.log(`API: ${url}${sledUrl === null ? '' : `, for sleds: ${sledUrl}`}`);
          if (consoleUrl !== null) console.log(`console: ${consoleUrl}`);
        },
      );
    });
}

/** The longest that a call may wait, in seconds: what clients are ready for. */
const MAX_WAIT_SECONDS = 90;

function readWait(text: string): number {
  const seconds = Number(text);
  if (!Number.isFinite(seconds) || seconds < 0 || seconds > MAX_WAIT_SECONDS || text.trim() === '')
    throw new InvalidArgumentError(`a number of seconds from 0 to ${MAX_WAIT_SECONDS} is needed`);
  return seconds;
}

/** The certificate and key that the files hold; `undefined` without. Throws when one of them is missing. */
async function readTls({ tlsCert, tlsKey }: Pick<ApiCommandOptions, 'tlsCert' | 'tlsKey'>) {
  if (tlsCert === undefined && tlsKey === undefined) return undefined;
  if (tlsCert === undefined || tlsKey === undefined)
    throw new Error(`${tlsCert === undefined ? '--tls-cert' : '--tls-key'} is missing: TLS needs both files`);
  const { readFile } = await import('node:fs/promises');
  return { cert: await readFile(tlsCert), key: await readFile(tlsKey) };
}

/** Where operators reach it: as the options say, else as MOORING_API_LISTEN does. */
function listenAddress({ host, port }: ApiCommandOptions): { host: string; port: number } {
  const set = setting('MOORING_API_LISTEN');
  const fallback = set === undefined ? { host: '127.0.0.1', port: DEFAULT_API_PORT } : splitAddress(set);
  return { host: host ?? fallback.host, port: port ?? fallback.port };
}

/** Where the sled-facing listener is. Throws for an address that is none. */
function sledListenAddress({ sledListen }: ApiCommandOptions, host: string): { host: string; port: number } {
  if (sledListen === undefined) return { host, port: DEFAULT_SLED_PORT };
  const address = splitAddress(sledListen);
  if (sledListen.lastIndexOf(':') < 1 || !Number.isInteger(address.port) || address.port < 0 || address.port > 65_535)
    throw new Error(
      `--sled-listen: must be "ip:port", for example "0.0.0.0:${DEFAULT_SLED_PORT}", not "${sledListen}"`,
    );
  return address;
}
