/** What the commands that run processes share: their options, the parts that the environment names, and when they end. */
import { InvalidArgumentError, Option } from 'commander';
import { refuseToListen } from '../model/host-address.ts';
import type { ListenAddress } from '../platform/host/free-address.ts';
import { hostName } from '../platform/http/web-pages.ts';
import type { Authority } from '../platform/identity/authority.ts';
import type { TemporalSettings } from '../temporal/connection.ts';
import { splitAddress } from '../wire/sled-protocol.ts';
import type { WorkedOn } from './explain-trouble.ts';

const HYPERVISORS = ['simulated', 'qemu'] as const;
/** What can run the VMs of a sled. */
export type HypervisorChoice = (typeof HYPERVISORS)[number];

/** The option that chooses what runs the VMs of a command's sleds. */
export function hypervisorOption(): Option {
  return new Option('--hypervisor <which>', 'what runs the VMs').choices(HYPERVISORS).default('simulated');
}

/** The option that names the folder of the authority. */
export function authorityOption(): Option {
  return new Option(
    '--authority <dir>',
    'the certificate authority by which sleds join ("mooring authority create" makes one)',
  ).env('MOORING_AUTHORITY');
}

/** Opens the authority in a folder; `undefined` when none is named. Throws when it can't be used. */
export async function openAuthority(folder: string | undefined): Promise<Authority | undefined> {
  if (folder === undefined) return undefined;
  const { Authority } = await import('../platform/identity/authority.ts');
  return Authority.open(folder);
}

/** The option that names the hosts by which an open API may be called. */
export function hostsOption(): Option {
  return new Option(
    '--hosts <names>',
    'hosts by which it may be called without a token, besides loopback addresses: names and addresses, with commas between',
  )
    .argParser((text) => {
      const hosts = text.split(',').map((host) => host.trim());
      const wrong = hosts.find((host) => hostName(host) === null);
      if (wrong !== undefined)
        throw new InvalidArgumentError(`"${wrong}" is no host: a name or an address without a port`);
      return hosts;
    })
    .env('MOORING_HOSTS');
}

/** The option that leaves the schema as it is. */
export function noMigrateOption(): Option {
  return new Option(
    '--no-migrate',
    'leave the schema as it is, and end with a message where it is too old: "mooring migrate" has brought it up to date',
  );
}

/**
 * Brings the schema up to date, or only checks it (`migrate` is `false`). Throws, with what to do, when it is not what this build
 * needs.
 */
export async function settleSchema(
  databaseUrl: string,
  migrate: boolean,
  log: { info(message: string): void; warn(message: string): void },
): Promise<void> {
  const { migrateDatabase, requireCurrentSchema } = await import('../db/migrate.ts');
  if (migrate) await migrateDatabase(databaseUrl, { onProgress: (message) => log.info(message) });
  else await requireCurrentSchema(databaseUrl, (message) => log.warn(message));
}

/** The PostgreSQL and the Temporal that the environment names. Throws when DATABASE_URL is not set, or is no URL. */
export async function externalParts(): Promise<{ databaseUrl: string; temporal: TemporalSettings }> {
  const { readTemporalSettings } = await import('../temporal/connection.ts');
  const { setting } = await import('../platform/settings.ts');
  const databaseUrl = setting('DATABASE_URL');
  if (databaseUrl === undefined) {
    throw new Error(
      'DATABASE_URL is not set: name the PostgreSQL to work on, for example postgres://user@host/mooring ("mooring up" brings its own)',
    );
  }
  return { databaseUrl, temporal: readTemporalSettings(process.env) };
}

/** Throws, in words for people, when nobody can listen at one of these. */
export async function requireFree(addresses: readonly ListenAddress[]): Promise<void> {
  const { requireFreeAddresses } = await import('../platform/host/free-address.ts');
  await requireFreeAddresses(addresses);
}

/** Where `--metrics` says to listen, where it is given. Throws for what is no address. */
export function metricsAddress(metrics: string | undefined): ListenAddress[] {
  if (metrics === undefined) return [];
  const refusal = refuseToListen(metrics);
  if (refusal !== null) throw new Error(`--metrics: ${refusal}`);
  return [{ ...splitAddress(metrics), option: '--metrics' }];
}

/** Does what works on these; throws what it throws, in words for people where PostgreSQL or Temporal does not serve. */
export async function explained<Result>(worksOn: WorkedOn, work: () => Promise<Result>): Promise<Result> {
  try {
    return await work();
  } catch (error) {
    const { explainTrouble } = await import('./explain-trouble.ts');
    throw explainTrouble(error, worksOn);
  }
}

/** Resolves at the first SIGINT or SIGTERM; a second one ends the process at once. */
export async function untilShutdownSignal(): Promise<void> {
  await new Promise<void>((resolve) => {
    let received = false;
    const onSignal = () => {
      if (received) process.exit(130);
      received = true;
      resolve();
    };
    process.on('SIGINT', onSignal);
    process.on('SIGTERM', onSignal);
  });
}

/** How long a process may take to end once it was told to, in milliseconds: what is still open then would keep it for ever. */
const STOP_MS = 25_000;
/** 128 and the number of SIGTERM: the code of a process that a signal ended. */
const ENDED_BY_SIGNAL = 143;

/** A process that is up. */
interface Running {
  stop(): Promise<void>;
  /** Rejects when it has ended by itself. */
  readonly ended?: Promise<void>;
}

/**
 * Runs a process of `mooring` until a signal ends it: one that comes while it still starts ends it at once, and one that it can't
 * follow in time ends it all the same. Throws what keeps it from starting, and what ended it.
 */
export async function runUntilSignal<Process extends Running>(
  start: () => Promise<Process>,
  isUp: (process: Process) => void,
): Promise<void> {
  const shutdown = untilShutdownSignal();
  const starting = start();
  const running = await Promise.race([starting, shutdown.then(() => null)]);
  if (running === null) process.exit(ENDED_BY_SIGNAL);
  isUp(running);
  try {
    await Promise.race([shutdown, ...(running.ended === undefined ? [] : [running.ended])]);
  } finally {
    const late = setTimeout(() => process.exit(process.exitCode ?? 1), STOP_MS);
    await running.stop();
    // Whatever is still open does not keep the process.
    late.unref();
  }
}

/**
 * Starts what comes up part by part. A signal that comes meanwhile aborts what `start` is given, and ends the process when it has
 * stopped again, or has not in time; one that comes later resolves `shutdown`. Throws what keeps it from starting.
 */
export async function startUntilSignal<Started>(
  start: (signal: AbortSignal) => Promise<Started>,
): Promise<{ readonly started: Started; readonly shutdown: Promise<void> }> {
  const shutdown = untilShutdownSignal();
  const asked = new AbortController();
  void shutdown.then(() => {
    asked.abort();
    setTimeout(() => process.exit(ENDED_BY_SIGNAL), STOP_MS).unref();
  });
  try {
    return { started: await start(asked.signal), shutdown };
  } catch (error) {
    if (asked.signal.aborted) process.exit(ENDED_BY_SIGNAL);
    throw error;
  }
}
