/** The commands that look at what an instance did and does: its history, its console, its changes. */
import type { Command } from 'commander';
import { MooringApiError } from '../../client/mooring-client.ts';
import { changes } from '../changes.ts';
import { type ApiOptions, type CommandContext, contextOf, subcommandsOf } from '../context.ts';
import { colours } from '../format.ts';
import { paintState, printJson, table } from '../output.ts';

/** How often an instance is read where the API tells no changes, and how often its console, in milliseconds. */
const WATCH_EVERY_MS = 250;
const CONSOLE_EVERY_MS = 100;
/** How long a console may be out of reach before that is reported, in milliseconds. */
const REPORT_WAITING_AFTER_MS = 3_000;

/** Adds `mooring instance history`, `console` and `watch`. */
export function addInstanceObservationCommands(instance: Command): void {
  const sub = subcommandsOf(instance);

  sub('history <instance>', 'tell an instance’s story: what happened to it, when, and where to look further').action(
    async (name: string, options: ApiOptions) => {
      const context = contextOf(options);
      const { items, complete, instance_id } = await context.client.getInstanceHistory(name, {
        project: context.project,
      });
      context.print({ instance_id, complete, items }, () => {
        const rows = items.map((item) => [
          colours.dim(item.time),
          item.kind,
          item.text,
          colours.dim(item.web_ui ?? ''),
        ]);
        const history = table(['TIME', 'WHAT', 'HAPPENED', 'LINK'], rows);
        return complete
          ? history
          : `${history}\n${colours.yellow('Temporal did not answer: its workflows are missing here.')}`;
      });
    },
  );
  sub('console <instance>', 'show the serial console and follow it, also across a migration, until Ctrl-C')
    .option('--no-follow', 'end when everything that is there was shown')
    .action(async (name: string, options: ApiOptions & { follow: boolean }) => {
      const context = contextOf(options);
      for await (const piece of followConsole(context, name, options.follow))
        if (context.json) printJson({ data: piece.data.toString('utf8'), last_byte_offset: piece.endOffset });
        else process.stdout.write(piece.data);
    });
  sub('watch <instance>', 'print every change of an instance until Ctrl-C')
    .option('--until <state>', 'end when it shows this state')
    .action(async (name: string, options: ApiOptions & { until?: string }) => {
      const context = contextOf(options);
      const { client, project } = context;
      let last = '';
      for await (const heard of changes(client, {
        kinds: ['instance'],
        instance: name,
        project,
        everyMs: WATCH_EVERY_MS,
      })) {
        if (heard.event !== 'look' && heard.event !== 'instance') continue;
        const seen = heard.event === 'look' ? await client.getInstance(name, { project }) : heard.data.object;
        if (seen === null) throw new Error(`instance "${name}" was deleted`);
        const line = `${seen.run_state} ${seen.sled_id ?? '-'}`;
        if (line !== last)
          context.print(
            seen,
            () => `${seen.time_run_state_updated}  ${paintState(seen.run_state)}  ${seen.sled_id ?? ''}`,
          );
        last = line;
        if (seen.run_state === options.until) return;
      }
    });
}

/**
 * Yields an instance's serial console, piece by piece. While it is followed, what is temporary is waited out: a sled that
 * doesn't answer, a hand-over, a VM that is stopped and started again. Throws every other error, and without `follow` all.
 */
async function* followConsole(
  { client, project }: CommandContext,
  name: string,
  follow: boolean,
): AsyncGenerator<{ data: Buffer; endOffset: number }> {
  let offset = 0;
  let waitingSince: number | null = null;
  for (;;) {
    let read = 0;
    try {
      const piece = await client.readSerialConsole(name, { project, fromStart: offset });
      read = piece.data.length;
      if (piece.last_byte_offset < offset) {
        console.error('[the guest has begun anew]');
        offset = 0;
        continue;
      }
      offset = piece.last_byte_offset;
      waitingSince = null;
      if (read > 0) yield { data: Buffer.from(piece.data), endOffset: offset };
    } catch (error) {
      const temporary =
        error instanceof MooringApiError && (error.status === 503 || (error.status === 409 && offset > 0));
      if (!follow || !temporary) throw error;
      // A hand-over takes less: only a longer wait is reported.
      if (waitingSince === null) waitingSince = performance.now();
      else if (performance.now() > waitingSince + REPORT_WAITING_AFTER_MS) {
        console.error(`[${error.message}]`);
        waitingSince = Number.POSITIVE_INFINITY;
      }
    }
    if (read > 0) continue;
    if (!follow) return;
    await new Promise((resolve) => setTimeout(resolve, CONSOLE_EVERY_MS));
  }
}
