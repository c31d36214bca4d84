import type { Command } from 'commander';
import type { Examination } from '../../doctor/examine.ts';
import { setting } from '../../platform/settings.ts';
import { DEFAULT_API_PORT } from '../context.ts';
import { colours } from '../format.ts';
import { printJson } from '../output.ts';
import { authorityOption, explained, openAuthority } from '../processes.ts';
import { SUMMARIES } from '../summaries.ts';

/** Adds `mooring doctor`. Heavy modules are loaded when it runs. */
export function addDoctorCommand(program: Command): void {
  program
    .command('doctor')
    .description(SUMMARIES.doctor)
    .option('--at-rest', 'nothing is under way: check also what must hold then')
    .option(
      '--api-url <url>',
      'the API of a stack that runs on this machine; DATABASE_URL and TEMPORAL_* name other installations',
      setting('MOORING_API_URL') ?? `http://127.0.0.1:${DEFAULT_API_PORT}`,
    )
    .addOption(authorityOption())
    .option('--json', 'print JSON, for programs')
    .addHelpText(
      'after',
      '\nPrints one line for each thing that is wrong, by the number of its invariant, and exits 1 if there is any.\nIt changes nothing; whether PostgreSQL and Temporal take writes it tries with one of each that leaves nothing.',
    )
    .action(async (options: { atRest?: boolean; apiUrl: string; authority?: string; json?: boolean }) => {
      const { Client } = await import('@temporalio/client');
      const { openDatabase } = await import('../../db/connect.ts');
      const { readInstallation } = await import('../../db/queries/read-installation.ts');
      const { connectClient } = await import('../../temporal/connection.ts');
      const { SledClient } = await import('../../activities/sled-client.ts');
      const { SledDirectory } = await import('../../activities/sled-directory.ts');
      const { becomeControlPlane } = await import('../../platform/identity/control-plane.ts');
      const { examine } = await import('../../doctor/examine.ts');
      const { examineSurroundings } = await import('../../temporal/surroundings.ts');
      const { writeProbes } = await import('../../temporal/write-probes.ts');
      const { databaseUrl, temporal, authorityDir } = await findParts(options.apiUrl);
      const authority = await openAuthority(options.authority ?? authorityDir);
      await explained({ databaseUrl, temporal }, async () => {
        const database = openDatabase(databaseUrl, { maxConnections: 2, applicationName: 'mooring-doctor' });
        const directory =
          authority === undefined ? null : await SledDirectory.open(database.db, await becomeControlPlane(authority));
        const ends: (() => unknown)[] = [() => directory?.close(), () => database.close()];
        try {
          const { id } = await readInstallation(database.db);
          const sleds = new SledClient(undefined, directory, async () => id);
          ends.push(() => sleds.close());
          const { connection, close } = await connectClient(temporal.connection);
          ends.push(close);
          const client = new Client({ connection, namespace: temporal.namespace });
          const examination = await examine({
            db: database.db,
            temporal: client,
            sleds,
            surroundings: () => examineSurroundings(database.db, connection, client),
            probes: writeProbes(database.db, connection, temporal.namespace),
            atRest: options.atRest ?? false,
          });
          if (options.json) printJson(asJson(examination));
          else console.log(await asText(examination));
          if (examination.findings.length > 0) process.exitCode = 1;
        } finally {
          await Promise.allSettled(ends.map(async (end) => end()));
        }
      });
    });
}

/** The database and Temporal that the environment names; else those of the stack on this machine with that API. */
async function findParts(apiUrl: string) {
  const { plainTemporal, readTemporalSettings } = await import('../../temporal/connection.ts');
  const { readStackFile, stackFileFolder } = await import('../../stack/stack-file.ts');
  const databaseUrl = setting('DATABASE_URL');
  if (databaseUrl !== undefined) {
    return {
      databaseUrl,
      temporal: readTemporalSettings(process.env),
      authorityDir: undefined,
    };
  }
  const stack = await readStackFile(apiUrl);
  if (stack === null) {
    throw new Error(
      `no stack with its API at ${apiUrl} runs on this machine (looked in ${stackFileFolder()}): name its API with --api-url, or set DATABASE_URL and TEMPORAL_ADDRESS`,
    );
  }
  const temporal =
    process.env.TEMPORAL_ADDRESS === undefined || process.env.TEMPORAL_ADDRESS === ''
      ? plainTemporal(stack.temporal_address, stack.temporal_namespace)
      : readTemporalSettings(process.env);
  return { databaseUrl: stack.database_url, temporal, authorityDir: stack.authority_dir };
}

function asJson({ findings, checked }: Examination) {
  return {
    findings: findings.map((finding) => ({
      invariant: finding.invariant,
      rule: finding.rule,
      instance_id: finding.instanceId,
      sled_id: finding.sledId,
      message: finding.message,
    })),
    checked: {
      at_rest: checked.atRest,
      rules: checked.rules,
      journal: checked.journal,
      instances: checked.instances,
      vmms: checked.vmms,
      sleds: checked.sleds,
      silent_sleds: checked.silentSleds,
      temporal: checked.temporal,
      notes: checked.notes,
    },
  };
}

async function asText({ findings, checked }: Examination): Promise<string> {
  const { findingLines } = await import('../../doctor/finding.ts');
  const { INVARIANTS } = await import('../../model/invariants.ts');
  const notes = [
    ...checked.notes,
    ...(checked.silentSleds.length === 0
      ? []
      : [`sleds that gave no answer, so that nothing is known of what runs there: ${checked.silentSleds.join(', ')}`]),
    ...(checked.journal
      ? []
      : ['no journal is installed: who wrote what (invariants 3, 5 and 6, and most of 2) was not checked']),
    ...(checked.atRest ? [] : ['what must only hold when nothing is under way was not checked: --at-rest does']),
  ].map((note) => `${colours.yellow('note:')} ${note}`);
  if (findings.length > 0) {
    const lines = findingLines(findings).map((line) => `${colours.red(line.slice(0, 2))}${line.slice(2)}`);
    const broken = [...new Set(findings.map((finding) => finding.invariant))].sort((a, b) => a - b);
    return [
      ...lines,
      '',
      colours.red(
        `${findings.length} finding${findings.length === 1 ? '' : 's'}, on ${broken.map((number) => `invariant ${number} (${INVARIANTS[number]})`).join(', ')}`,
      ),
      ...notes,
    ].join('\n');
  }
  const asked = [
    `${checked.rules} rules on ${checked.instances} instances and ${checked.vmms} VMMs`,
    `${checked.sleds} sleds`,
    ...(checked.temporal ? ['Temporal'] : []),
    ...(checked.journal ? ['the journal'] : []),
  ];
  return [`${colours.green('✓')} nothing is wrong: checked ${asked.join(', ')}`, ...notes].join('\n');
}
