/**
 * `npm run replay`: replays every recorded history on the workflows as they are, and with `--from ADDRESS` those of a
 * server. Exits with 1 when one does not replay: then a deploy would break what runs.
 */
import { fileURLToPath } from 'node:url';
import { Client, Connection } from '@temporalio/client';
import { Command } from 'commander';
import { pino } from 'pino';
import { colours } from '../../cli/format.ts';
import { printJson, table } from '../../cli/output.ts';
import { readTemporalSettings } from '../../temporal/connection.ts';
import { fetchHistories, type NamedHistory, readHistories, replay } from '../../worker/replay.ts';
import { installRuntime } from '../../worker/worker.ts';
import { workflowBundle } from '../../worker/workflow-bundle.ts';

const DEFAULT_QUERY = 'TaskQueue STARTS_WITH "mooring-"';
const folder = fileURLToPath(new URL('../histories', import.meta.url));
const program = new Command('npm run replay --')
  .description('Replays workflow histories on the workflows of this working tree: the gate before a deploy.')
  .option('--from <address>', 'replay the histories of this Temporal server too; the TEMPORAL_* variables say the rest')
  .option('--query <query>', 'which of its workflows', DEFAULT_QUERY)
  .option('--json', 'print JSON, for programs')
  .addHelpText(
    'after',
    `
Examples:
  npm run replay
  npm run replay -- --from 127.0.0.1:7233
  npm run replay -- --from 127.0.0.1:7233 --query 'ExecutionStatus = "Running"'`,
  );
program.parse();
const options = program.opts<{ from?: string; query: string; json?: boolean }>();

async function* everything(client: Client | null): AsyncGenerator<NamedHistory> {
  yield* readHistories(folder);
  if (client !== null) yield* fetchHistories(client, options.query);
}

try {
  const settings =
    options.from === undefined ? null : readTemporalSettings({ ...process.env, TEMPORAL_ADDRESS: options.from });
  const connection = settings === null ? null : await Connection.connect(settings.connection);
  const client =
    connection === null || settings === null ? null : new Client({ connection, namespace: settings.namespace });
  // The SDK's runtime ends with its last worker: there must be one.
  installRuntime(pino({ level: 'silent' }));
  const outcomes = [];
  for await (const outcome of replay(await workflowBundle(), everything(client))) outcomes.push(outcome);
  await connection?.close();
  const failed = outcomes.filter(({ problem }) => problem !== null);
  if (options.json) printJson({ items: outcomes, failed: failed.length });
  else {
    console.log(
      table(
        ['HISTORY', 'WORKFLOW', 'EVENTS', 'REPLAYS'],
        outcomes.map(({ name, workflowType, events, problem }) => [
          name,
          workflowType,
          String(events),
          problem === null ? colours.green('yes') : colours.red('NO'),
        ]),
      ),
    );
    for (const { name, problem } of failed) console.log(`\n${colours.red(name)}: ${problem}`);
    console.log(
      failed.length === 0
        ? `\n${outcomes.length} histories replay.`
        : `\n${failed.length} of ${outcomes.length} histories don't replay: deployed, this build would break such workflows. Guard the change with patched(), or see docs/deploys.md.`,
    );
  }
  process.exitCode = failed.length === 0 && outcomes.length > 0 ? 0 : 1;
} catch (error) {
  // The SDK's own message says what it did, its cause why that failed.
  const cause = error instanceof Error && error.cause instanceof Error ? `: ${error.cause.message}` : '';
  console.error(`${colours.red('error:')} ${error instanceof Error ? error.message : error}${cause}`);
  process.exitCode = 1;
}
