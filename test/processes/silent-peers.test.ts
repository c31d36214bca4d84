/**
 * What a command says where PostgreSQL or Temporal takes its connection and says nothing, refuses it, or is none: which of them
 * it is, where, and what names it; no statement of ours, and no transport's words alone.
 */
import { DrizzleQueryError } from 'drizzle-orm';
import pg from 'pg';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { explainTrouble } from '../../cli/explain-trouble.ts';
import { raisedByDriver } from '../../db/errors.ts';
import { plainTemporal } from '../../temporal/connection.ts';
import { BlackHole, GRPC, POSTGRES_OPEN, type Silence } from '../support/black-hole.ts';
import { runCommand } from '../support/command.ts';
import { startTestDatabase, type TestDatabase } from '../support/database.ts';

let database: TestDatabase;
const holes: BlackHole[] = [];
beforeAll(async () => {
  database = await startTestDatabase();
});
afterAll(async () => {
  for (const hole of holes) await hole.close();
  await database?.stop();
});

async function run(args: readonly string[], env: NodeJS.ProcessEnv) {
  const { code, stdout, stderr } = await runCommand(args, { env });
  return { code, said: stdout + stderr };
}

/** Every command that opens the database itself, and those that open Temporal, with a database that serves. */
const DATABASE_COMMANDS = [
  ['deployment', 'list'],
  ['migrate'],
  ['doctor'],
  ['token', 'create', 'first', '--role', 'admin', '--in-database'],
  ['worker', '--no-migrate'],
  ['api', '--no-migrate', '--port', '0'],
];
const TEMPORAL_COMMANDS = [
  ['deployment', 'list'],
  ['doctor'],
  ['worker', '--no-migrate'],
  ['api', '--no-migrate', '--port', '0'],
];

const RAW = /Failed query|params:|DEADLINE_EXCEEDED|UNAVAILABLE|metadata filters|no namespace|SELECT |\n\s+at /;

async function placeOf(silence: Silence, beginning: typeof GRPC): Promise<string> {
  const hole = await BlackHole.open(silence, beginning);
  holes.push(hole);
  return hole.address;
}

// One that says nothing at all, and one that lets everybody in and hangs at the first question.
test.each(['silent', 'half'] as const)(
  'a PostgreSQL that is %s: every command says that it is that, and where',
  async (silence) => {
    const place = await placeOf(silence, POSTGRES_OPEN);
    const env = { DATABASE_URL: `postgres://me:secret@${place}/mooring`, TEMPORAL_ADDRESS: '127.0.0.1:1' };
    await Promise.all(
      DATABASE_COMMANDS.map(async (args) => {
        const { code, said } = await run(args, env);
        expect([args, code, said]).toEqual([args, 1, expect.stringContaining(`PostgreSQL at ${place}/mooring`)]);
        expect([args, said]).toEqual([args, expect.stringContaining('DATABASE_URL')]);
        expect([args, RAW.test(said), said]).toEqual([args, false, said]);
        expect(said).not.toContain('secret');
      }),
    );
  },
);

test('a silent Temporal: every command says that it is that, and where', async () => {
  const place = await placeOf('silent', GRPC);
  const env = { DATABASE_URL: database.url, TEMPORAL_ADDRESS: place };
  await Promise.all(
    TEMPORAL_COMMANDS.map(async (args) => {
      const { code, said } = await run(args, env);
      expect([args, code, said]).toEqual([args, 1, expect.stringContaining(`Temporal at ${place} can't be used`)]);
      expect([args, said]).toEqual([args, expect.stringContaining('TEMPORAL_ADDRESS')]);
      expect([args, /Failed query|no namespace|\n\s+at /.test(said), said]).toEqual([args, false, said]);
    }),
  );
});

describe('an error is told in words for people, once', () => {
  const worksOn = { databaseUrl: 'postgres://me:secret@db.example/m', temporal: plainTemporal('t.example:7233', 'n') };
  const query = (cause: Error) => new DrizzleQueryError('SELECT id FROM installation', [], cause);
  const refused = (code: string) => Object.assign(new pg.DatabaseError('its own words', 1, 'error'), { code });
  const grpc = (code: number, details: string) => Object.assign(new Error(`${code}: ${details}`), { code, details });

  test.each([
    [
      query(raisedByDriver(new Error('timeout expired'))),
      /^PostgreSQL at db\.example\/m \(DATABASE_URL\) can't be reached: timeout expired$/,
    ],
    [raisedByDriver(new Error('timeout expired')), /^PostgreSQL at .*can't be reached: timeout expired$/],
    [
      query(new Error('Connection terminated unexpectedly')),
      /^PostgreSQL at .*can't be reached: Connection terminated/,
    ],
    ...['53300', '57P03', '28P01', '53100', '25006', '57014'].map(
      (code) => [query(refused(code)), new RegExp(`^PostgreSQL at .*\\(${code}\\): its own words$`)] as const,
    ),
    [
      query(refused('42P01')),
      /^PostgreSQL at .*has not the schema of this build \(42P01\): its own words: run "mooring migrate"/,
    ],
    [query(refused('XX000')), /^PostgreSQL at .*can't be used: its own words$/],
    [
      grpc(4, 'Deadline exceeded after 10s,metadata filters: 0.001s'),
      /^Temporal at t\.example:7233 can't be used \(.*TEMPORAL_ADDRESS/,
    ],
    [
      new Error('Failed to list', { cause: grpc(14, 'no connection') }),
      /^Temporal at .*can't be used \(no connection\)/,
    ],
    [grpc(16, 'who are you'), /^Temporal at .*can't be used \(who are you\)/],
    [grpc(5, 'Namespace n is not found.'), /^Temporal at .*has no namespace "n": create it/],
    [new Error('there is no build "b"'), /^there is no build "b"$/],
    [new Error('migration x failed', { cause: refused('57014') }), /^migration x failed$/],
  ] as const)('%s', (error, words) => {
    const told = explainTrouble(error, worksOn);
    expect((told as Error).message).toMatch(words);
    expect((told as Error).message).not.toMatch(/secret|SELECT/);
    expect((explainTrouble(told, worksOn) as Error).message).toBe((told as Error).message);
  });
});
