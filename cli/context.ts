import type { Command } from 'commander';
import { MooringClient } from '../client/mooring-client.ts';
import { setting } from '../platform/settings.ts';
import { isUuid } from '../wire/operator-api/names.ts';
import type { SledView } from '../wire/operator-api/sleds.ts';
import { currentApiUrl, tokenFor } from './credentials.ts';
import { printJson } from './output.ts';

/** The port of the API when none is named. */
export const DEFAULT_API_PORT = 12220;
/** The port at which sleds that have joined reach the API when none is named. */
export const DEFAULT_SLED_PORT = 12221;

/** The options that {@link withApiOptions} adds. */
export interface ApiOptions {
  readonly apiUrl: string;
  readonly project: string;
  readonly json?: boolean | undefined;
}

/** What every command that calls the API works with. */
export interface CommandContext {
  readonly client: MooringClient;
  readonly project: string;
  readonly json: boolean;
  /** Prints `value` as JSON, or `text()` for people. */
  print(value: unknown, text: () => string): void;
}

let cachedApiUrl: string | undefined;

/** The URL of the API when none is named: `MOORING_API_URL`, or that of the last login, or this machine. */
export function defaultApiUrl(): string {
  cachedApiUrl ??= setting('MOORING_API_URL') ?? currentApiUrl() ?? `http://127.0.0.1:${DEFAULT_API_PORT}`;
  return cachedApiUrl;
}

/**
 * The URL that somebody named for the API: `http://` is taken for granted. Throws, with the names of the option and the variable,
 * for what is none.
 */
export function readApiUrl(named: string): string {
  const url = /^[a-z][a-z0-9+.-]*:\/\//i.test(named) ? named : `http://${named}`;
  if (URL.canParse(url) && /^https?:/i.test(url)) return url;
  throw new Error(
    `--api-url (or MOORING_API_URL): "${named}" is no URL of an API; an example is http://127.0.0.1:${DEFAULT_API_PORT}`,
  );
}

/** Adds the options of every command that calls the API. */
export function withApiOptions(command: Command): Command {
  return command
    .option('--api-url <url>', 'where the API is', defaultApiUrl())
    .option('--project <name>', 'the project', setting('MOORING_PROJECT') ?? 'default')
    .option('--json', 'print JSON, for programs');
}

/** Returns what adds subcommands with these options to a command, by their usage and description. */
export function subcommandsOf(parent: Command): (usage: string, description: string) => Command {
  return (usage, description) => withApiOptions(parent.command(usage)).description(description);
}

/** Makes the context from a command's options. */
export function contextOf(options: ApiOptions): CommandContext {
  const json = options.json ?? false;
  const apiUrl = readApiUrl(options.apiUrl);
  return {
    client: new MooringClient({ url: apiUrl, token: () => tokenFor(apiUrl) }),
    project: options.project,
    json,
    print: (value, text) => (json ? printJson(value) : console.log(text())),
  };
}

/** Reads a list of the API to its end. Throws what the client throws. */
export async function collect<Item>(items: AsyncIterable<Item>): Promise<Item[]> {
  const found: Item[] = [];
  for await (const item of items) found.push(item);
  return found;
}

/** Finds a sled by its id or name. Throws when there is none. */
export async function findSled(client: MooringClient, nameOrId: string): Promise<SledView> {
  if (isUuid(nameOrId)) return client.getSled(nameOrId);
  for await (const sled of client.listSleds()) if (sled.name === nameOrId) return sled;
  throw new Error(`there is no sled "${nameOrId}": "mooring sled list" shows them`);
}
