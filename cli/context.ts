import type { Command } from 'commander';
import { MooringClient } from '../client/mooring-client.ts';
import { isUuid } from '../wire/operator-api/names.ts';
import type { SledView } from '../wire/operator-api/sleds.ts';
import { currentApiUrl, tokenFor } from './credentials.ts';
import { printJson } from './output.ts';

/** The port of the API when none is named. */
export const DEFAULT_API_PORT = 12220;
/** The port at which sleds that have joined reach the API when none is named. */
export const DEFAULT_SLED_PORT = 12221;

/** What every command that speaks to the API works with. */
export interface CommandContext {
  readonly client: MooringClient;
  readonly project: string;
  readonly json: boolean;
  /** Prints `value` as JSON, or `text()` for people. */
  print(value: unknown, text: () => string): void;
}

let known: string | undefined;

/** `MOORING_API_URL`, or where the last login was, or this machine. */
export function defaultApiUrl(): string {
  known ??= process.env.MOORING_API_URL ?? currentApiUrl() ?? `http://127.0.0.1:${DEFAULT_API_PORT}`;
  return known;
}

/** Adds the options of every command that speaks to the API. */
export function withApiOptions(command: Command): Command {
  return command
    .option('--api-url <url>', 'where the API is', defaultApiUrl())
    .option('--project <name>', 'the project', process.env.MOORING_PROJECT ?? 'default')
    .option('--json', 'print JSON, for programs');
}

/** Makes the context from a command's options. */
export function contextOf(options: { apiUrl: string; project: string; json?: boolean | undefined }): CommandContext {
  const json = options.json ?? false;
  return {
    client: new MooringClient({ url: options.apiUrl, token: () => tokenFor(options.apiUrl) }),
    project: options.project,
    json,
    print: (value, text) => (json ? printJson(value) : console.log(text())),
  };
}

/** Finds a sled by its id or name. Throws when there is none. */
export async function findSled(client: MooringClient, nameOrId: string): Promise<SledView> {
  if (isUuid(nameOrId)) return client.getSled(nameOrId);
  for await (const sled of client.listSleds()) if (sled.name === nameOrId) return sled;
  throw new Error(`there is no sled "${nameOrId}": "mooring sled list" shows them`);
}
