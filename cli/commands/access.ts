import { text as readAll } from 'node:stream/consumers';
import { type Command, Option } from 'commander';
import { MooringClient } from '../../client/mooring-client.ts';
import { ACCESS_ROLES, type AccessRole } from '../../model/access.ts';
import { isLoopback } from '../../platform/host/loopback.ts';
import { DEFAULT_TOKEN_SECONDS, MAX_TOKEN_SECONDS } from '../../wire/operator-api/access-tokens.ts';
import { type ApiOptions, collect, contextOf, defaultApiUrl, subcommandsOf, withApiOptions } from '../context.ts';
import { credentialsFile, forgetLogin, saveLogin } from '../credentials.ts';
import { colours, parseDuration } from '../format.ts';
import { printJson, table } from '../output.ts';
import { SUMMARIES } from '../summaries.ts';

/** Adds `mooring token …`, `login`, `logout` and `whoami`. */
export function addAccessCommands(program: Command): void {
  const token = program.command('token').description(SUMMARIES.token);
  const sub = subcommandsOf(token);

  sub('create <name>', 'make a token; it is shown once')
    .addOption(new Option('--role <role>', 'what its owner may do').choices(ACCESS_ROLES).makeOptionMandatory())
    .option('--on-project <name>', 'the one project that it is on; the whole fleet by default')
    .option('--expires <span>', 'how long it lives, for example 12h or 30d', parseDuration, DEFAULT_TOKEN_SECONDS)
    .option('--in-database', 'write it into DATABASE_URL: for the first token of an installation')
    .action(
      async (
        name: string,
        options: ApiOptions & { role: AccessRole; onProject?: string; expires: number; inDatabase?: boolean },
      ) => {
        if (options.expires < 1 || options.expires > MAX_TOKEN_SECONDS)
          throw new Error(`--expires: at least 1s and at most ${MAX_TOKEN_SECONDS / 24 / 3600}d`);
        const wanted = { name, role: options.role, project: options.onProject, expires_in_seconds: options.expires };
        const made = options.inDatabase
          ? await (await import('./first-token.ts')).createFirstToken(wanted)
          : await contextOf(options).client.createToken(wanted);
        if (options.json) return printJson(made);
        // The token alone goes to standard output, so that it can be piped to where it is kept.
        console.error(
          `token "${made.name}" (${made.role} on ${made.project_id === null ? 'the fleet' : `project ${options.onProject}`}), until ${made.time_expires}. It is not shown again:`,
        );
        console.log(made.token);
      },
    );
  sub('list', 'list the tokens').action(async (options: ApiOptions) => {
    const context = contextOf(options);
    const found = await collect(context.client.listTokens());
    context.print(found, () =>
      table(
        ['NAME', 'ROLE', 'ON', 'EXPIRES', 'CREATED', 'ID'],
        found.map((one) => [
          one.name,
          one.role,
          one.project_id === null ? 'fleet' : `project ${one.project_id}`,
          one.time_expires === null ? 'never' : paintExpiry(one.time_expires),
          one.time_created,
          one.id,
        ]),
      ),
    );
  });
  sub('revoke <token>', 'refuse a token from now on, by its name or id').action(
    async (named: string, options: ApiOptions) => {
      const context = contextOf(options);
      await context.client.revokeToken(named);
      context.print({ revoked: named }, () => `revoked ${named}`);
    },
  );

  program
    .command('login [url]')
    .description(SUMMARIES.login)
    .option('--insecure', 'send it without TLS to another machine')
    .option('--json', 'print JSON, for programs')
    .action(async (url: string | undefined, options: { insecure?: boolean; json?: boolean }) => {
      const apiUrl = (url ?? defaultApiUrl()).replace(/\/+$/, '');
      if (!URL.canParse(apiUrl))
        throw new Error(`"${apiUrl}" is no URL: give for example https://mooring.example:12220`);
      const { protocol, hostname } = new URL(apiUrl);
      if (protocol === 'http:' && !isLoopback(hostname) && !options.insecure)
        throw new Error(`${apiUrl} has no TLS: the token could be read on its way; use https, or say --insecure`);
      const secret = await askForToken(apiUrl);
      if (secret === '') throw new Error('no token was given: "mooring token create" makes one');
      const me = await new MooringClient({ url: apiUrl, token: secret }).whoAmI();
      await saveLogin(apiUrl, secret);
      if (options.json) printJson({ api_url: apiUrl, ...me });
      else console.log(`logged in to ${apiUrl} as "${me.display_name}", ${me.role}; kept in ${credentialsFile()}`);
    });
  program
    .command('logout [url]')
    .description(SUMMARIES.logout)
    .action(async (url: string | undefined) => {
      const apiUrl = url ?? defaultApiUrl();
      console.log((await forgetLogin(apiUrl)) ? `forgot the token for ${apiUrl}` : `there is no token for ${apiUrl}`);
    });
  withApiOptions(program.command('whoami'))
    .description(SUMMARIES.whoami)
    .action(async (options: ApiOptions) => {
      const context = contextOf(options);
      const me = await context.client.whoAmI();
      context.print(
        me,
        () =>
          `${me.display_name}: ${me.role} on ${me.project_id === null ? 'the fleet' : `project ${me.project_id}`}${me.time_expires === null ? '' : `, until ${me.time_expires}`}`,
      );
    });
}

function paintExpiry(time: string): string {
  return Date.parse(time) <= Date.now() ? colours.red(time) : time;
}

/** Reads a token from a terminal, without showing it, or from what is piped in. Never from the arguments, which `ps` shows. */
async function askForToken(apiUrl: string): Promise<string> {
  if (process.stdin.isTTY !== true) return (await readAll(process.stdin)).trim();
  process.stderr.write(`token for ${apiUrl}: `);
  process.stdin.setRawMode(true);
  let typed = '';
  try {
    for await (const chunk of process.stdin.setEncoding('utf8')) {
      for (const key of String(chunk)) {
        if (key === '\r' || key === '\n') return typed.trim();
        if (key === '\u0003') throw new Error('interrupted');
        typed = key === '\u007f' ? typed.slice(0, -1) : typed + key;
      }
    }
    return typed.trim();
  } finally {
    process.stdin.setRawMode(false);
    process.stderr.write('\n');
  }
}
