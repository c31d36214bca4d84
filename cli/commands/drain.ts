import type { Command } from 'commander';
import type { DrainView } from '../../wire/operator-api/drains.ts';
import { colours } from '../colours.ts';
import { contextOf, findSled, withApiOptions } from '../context.ts';
import { table } from '../output.ts';

type ApiOptions = { apiUrl: string; project: string; json?: boolean };

/** Adds the commands of `mooring sled` that drain one. */
export function addDrainCommands(sled: Command): void {
  const sub = (usage: string, description: string) => withApiOptions(sled.command(usage)).description(description);

  sub('drain <sled>', 'migrate everything away from a sled, and place nothing new on it')
    .option('--wait', 'wait for the end, and show how far it has come; exits with 1 when something could not move')
    .option('--parallel <n>', 'how many instances to move at a time', Number)
    .action(async (name: string, options: ApiOptions & { wait?: boolean; parallel?: number }) => {
      const context = contextOf(options);
      const { id } = await findSled(context.client, name);
      const begun = await context.client.drainSled(
        id,
        options.parallel === undefined ? {} : { parallel: options.parallel },
      );
      if (!options.wait) {
        context.print(begun, () => drainReport(begun));
        return;
      }
      const line = context.json ? () => {} : progressLine();
      const done = await context.client.waitForDrain(id, { onProgress: (drain) => line(drain.summary) });
      if (!context.json) line(null);
      context.print(done, () => drainReport(done));
      if (done.state !== 'drained') process.exitCode = 1;
    });
  sub('drain-status <sled>', 'show how far the drain of a sled has come, and what could not move').action(
    async (name: string, options: ApiOptions) => {
      const context = contextOf(options);
      const drain = await context.client.getDrain((await findSled(context.client, name)).id);
      context.print(drain, () => drainReport(drain));
    },
  );
  sub('stop-drain <sled>', 'stop a drain; the sled stays closed to new instances').action(
    async (name: string, options: ApiOptions) => {
      const context = contextOf(options);
      const drain = await context.client.stopDrain((await findSled(context.client, name)).id);
      context.print(drain, () => drainReport(drain));
    },
  );
}

/** One line that is written over on a terminal, and printed at each change elsewhere; `null` ends it. */
function progressLine(): (text: string | null) => void {
  let last = '';
  return (text) => {
    if (process.stderr.isTTY) {
      process.stderr.write(text === null ? '\r\u001b[K' : `\r\u001b[K${text}`);
    } else if (text !== null && text !== last) process.stderr.write(`${text}\n`);
    last = text ?? last;
  };
}

function drainReport(drain: DrainView): string {
  const rows = [
    ...drain.moving.map((one) => [one.name, colours.yellow('moving'), `to ${one.destination}`]),
    ...drain.waiting.map((one) => [one.name, colours.yellow('waited for'), one.until]),
    ...drain.could_not_move.map((one) => [one.name, colours.red('could not move'), one.reason]),
  ];
  return rows.length === 0
    ? drain.summary
    : `${drain.summary}\n${table(['INSTANCE', 'STATE', 'WHERE TO, OR WHY'], rows)}`;
}
