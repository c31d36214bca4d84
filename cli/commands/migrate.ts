import { type Command, InvalidArgumentError, Option } from 'commander';
import { setting } from '../../platform/settings.ts';
import { printJson } from '../output.ts';
import { SUMMARIES } from '../summaries.ts';

interface MigrateOptions {
  readonly databaseUrl?: string;
  readonly limit: number;
  readonly json?: boolean;
}

const DEFAULT_LIMIT_SECONDS = 300;

/** Adds `mooring migrate`. Heavy modules are loaded when it runs. */
export function addMigrateCommand(program: Command): void {
  program
    .command('migrate')
    .description(SUMMARIES.migrate)
    .addOption(
      new Option('--database-url <url>', 'the database, by that role; by default what DATABASE_URL names').env(
        'MOORING_MIGRATE_DATABASE_URL',
      ),
    )
    .addOption(
      new Option('--limit <seconds>', 'how long it may take, with all its tries')
        .argParser(readSeconds)
        .default(DEFAULT_LIMIT_SECONDS),
    )
    .option('--json', 'print JSON, for programs')
    .addHelpText(
      'after',
      `
It never keeps the readers of a running installation waiting: each migration is one transaction, which gives up within two
seconds where somebody holds a lock (a dump, a long transaction) and is tried again. Where all is up to date it changes nothing.
Workers and APIs that are started with --no-migrate need a role that may read and write rows, and no more.`,
    )
    .action(async ({ databaseUrl: named, limit, json }: MigrateOptions) => {
      const { migrateDatabase } = await import('../../db/migrate.ts');
      const { requireDatabaseUrl } = await import('../../db/unreachable.ts');
      const variable = named ? '--database-url' : 'DATABASE_URL';
      const url = requireDatabaseUrl(named || databaseUrlOfEnvironment(), variable);
      const applied = await migrateDatabase(url, {
        variable,
        limitMs: limit * 1_000,
        onProgress: (message) => json || console.error(message),
      });
      if (json) printJson({ applied });
      else console.log(applied.length === 0 ? 'the schema is up to date' : `applied: ${applied.join(', ')}`);
    });
}

function databaseUrlOfEnvironment(): string {
  const url = setting('DATABASE_URL');
  if (url === undefined)
    throw new Error('name the database to migrate with --database-url, MOORING_MIGRATE_DATABASE_URL or DATABASE_URL');
  return url;
}

function readSeconds(text: string): number {
  const seconds = Number(text);
  if (!Number.isFinite(seconds) || seconds <= 0)
    throw new InvalidArgumentError('a number of seconds above 0 is needed');
  return seconds;
}
