/**
 * Every wait on the network, against every peer that keeps who waits: one that never answers, that answers half, that trickles,
 * that does not even read. Each must end by a limit of this side's own. No cell has a limit of the test's but "stuck".
 */
import { randomUUID } from 'node:crypto';
import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { trace } from '@opentelemetry/api';
import { sql } from 'drizzle-orm';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { SledClient } from '../../activities/sled-client.ts';
import { describeError } from '../../api/errors.ts';
import { MooringClient, MooringConnectionError } from '../../client/mooring-client.ts';
import { checkSessions } from '../../db/check-sessions.ts';
import { acceptsConnections, type OpenDatabase, openDatabase, pingDatabase } from '../../db/connect.ts';
import { migrateDatabase, readSchemaState, requireCurrentSchema } from '../../db/migrate.ts';
import { OperationOutcomes } from '../../db/operation-outcomes.ts';
import { createLog } from '../../platform/telemetry/log.ts';
import { installTracing } from '../../platform/telemetry/tracing.ts';
import { joinSled } from '../../sled-agent/join.ts';
import { NetworkTable } from '../../sled-agent/network-table.ts';
import { PLAIN_TRANSPORT } from '../../sled-agent/peer-transport.ts';
import { askSource, HandOverPeer } from '../../sled-agent/qemu/hand-over.ts';
import { Reporter } from '../../sled-agent/reporter.ts';
import { connectClient } from '../../temporal/connection.ts';
import { connectNative } from '../../temporal/native-connection.ts';
import { writeInviteToken } from '../../wire/invite-token.ts';
import {
  type Beginning,
  BlackHole,
  GRPC,
  HTTP,
  POSTGRES_OPEN,
  POSTGRES_OPENING,
  POSTGRES_TLS,
  SILENCES,
  type Silence,
  TLS,
} from '../support/black-hole.ts';
import { eventually, STUCK_MS } from '../support/wait.ts';

/** The limits of the waits that take one, in milliseconds. */
const LIMIT_MS = 300;
const LIMITS = { answerLimitMs: LIMIT_MS, connectLimitMs: LIMIT_MS };

/** The same of a hand-over, whose first word comes after a second. */
const HAND_OVER_MS = 2_500;

/** What is to be ended when a cell is over, by its peer: cells run beside each other. */
const cleanups = new WeakMap<BlackHole, (() => Promise<unknown>)[]>();
function later(hole: BlackHole, clean: () => Promise<unknown>): void {
  cleanups.set(hole, [...(cleanups.get(hole) ?? []), clean]);
}
/** Opens a peer for one cell, and ends all of the cell with it. */
async function withHole(silence: Silence, to: Beginning, work: (hole: BlackHole) => Promise<void>): Promise<void> {
  const hole = await BlackHole.open(silence, to);
  try {
    await work(hole);
  } finally {
    await Promise.all((cleanups.get(hole) ?? []).map((clean) => clean()));
    await hole.close();
  }
}

let folder: string;
beforeAll(async () => {
  folder = await mkdtemp(join(tmpdir(), 'mooring-holes-'));
});
afterAll(() => rm(folder, { recursive: true, force: true }));

/** How a wait is to end: it throws, or with what. */
type Wait = (hole: BlackHole) => Promise<unknown>;
const THROWS = Symbol('it throws');
interface Row {
  readonly to: Beginning;
  readonly wait: Wait;
  readonly ends: unknown;
}

const postgres = (hole: BlackHole, query = '') => `postgres://somebody:secret@${hole.address}/mooring${query}`;
const opened = (hole: BlackHole, query = ''): OpenDatabase => {
  const database = openDatabase(postgres(hole, query), { maxConnections: 1, ...LIMITS });
  later(hole, () => database.close().catch(() => {}));
  return database;
};
const sledClient = (hole: BlackHole) => {
  const sleds = new SledClient();
  later(hole, () => sleds.close());
  return sleds;
};
const sledAt = (hole: BlackHole) => ({ name: 'sled-1', address: hole.address, keptAgentId: null });
const ID = randomUUID();
const register = {
  propolis_id: ID,
  instance_id: ID,
  generation: 1,
  ncpus: 1,
  memory: 1024 ** 3,
} as unknown as Parameters<SledClient['register']>[2];
const client = (hole: BlackHole) => new MooringClient({ url: `http://${hole.address}`, timeoutMs: LIMIT_MS });
/** Something that tries for ever: it must have given up a first try, and come again. */
const comesAgain = async (hole: BlackHole, stop: () => Promise<unknown>) => {
  later(hole, stop);
  await eventually(() => hole.connections > 1, 'it waits for the first answer for ever');
  await stop();
};

const WAITS: Readonly<Record<string, Row>> = {
  'PostgreSQL: a connection that is opened': {
    to: POSTGRES_OPENING,
    wait: (hole) => opened(hole).db.execute(sql`SELECT 1`),
    ends: THROWS,
  },
  'PostgreSQL: a handshake of TLS': {
    to: POSTGRES_TLS,
    wait: (hole) => opened(hole, '?sslmode=no-verify').db.execute(sql`SELECT 1`),
    ends: THROWS,
  },
  'PostgreSQL: a statement': {
    to: POSTGRES_OPEN,
    wait: (hole) => opened(hole).db.execute(sql`SELECT 1`),
    ends: THROWS,
  },
  'PostgreSQL: a statement with parameters': {
    to: POSTGRES_OPEN,
    wait: (hole) => opened(hole).db.execute(sql`SELECT ${1}::int`),
    ends: THROWS,
  },
  'PostgreSQL: a transaction': {
    to: POSTGRES_OPEN,
    wait: (hole) => opened(hole).db.transaction((open) => open.execute(sql`SELECT 1`)),
    ends: THROWS,
  },
  'PostgreSQL: many transactions, none of which begins, take no connection with them': {
    to: POSTGRES_OPEN,
    async wait(hole) {
      const { db, pool } = opened(hole);
      const transactions = Array.from({ length: 3 }, () => db.transaction((open) => open.execute(sql`SELECT 1`)));
      await Promise.allSettled(transactions);
      await eventually(() => pool.totalCount === 0, 'a connection stays with a transaction that never began');
    },
    ends: undefined,
  },
  'PostgreSQL: a free connection of the pool': {
    to: POSTGRES_OPEN,
    async wait(hole) {
      const { db } = opened(hole);
      const first = db.execute(sql`SELECT 1`).catch(() => {});
      await Promise.all([db.execute(sql`SELECT 2`), first]);
    },
    ends: THROWS,
  },
  'PostgreSQL: the end of a pool': {
    to: POSTGRES_OPEN,
    async wait(hole) {
      const database = openDatabase(postgres(hole), { maxConnections: 1 });
      database.db.execute(sql`SELECT 1`).catch(() => {});
      database.db.execute(sql`SELECT 2`).catch(() => {});
      await eventually(() => hole.connections > 0, 'it never connected');
      await database.close();
    },
    ends: undefined,
  },
  'PostgreSQL: a ping': { to: POSTGRES_OPEN, wait: (hole) => pingDatabase(opened(hole).db), ends: THROWS },
  'PostgreSQL: the check of its settings': {
    to: POSTGRES_OPEN,
    wait: (hole) => checkSessions(opened(hole), postgres(hole), () => {}),
    ends: undefined,
  },
  'PostgreSQL: whether it takes connections': {
    to: POSTGRES_OPENING,
    wait: (hole) => acceptsConnections(postgres(hole)),
    ends: false,
  },
  'PostgreSQL: whether it answers': {
    to: POSTGRES_OPEN,
    wait: (hole) => acceptsConnections(postgres(hole)),
    ends: false,
  },
  'PostgreSQL: a migration, opening': {
    to: POSTGRES_OPENING,
    wait: (hole) => migrateDatabase(postgres(hole), { limitMs: 2_000 }),
    ends: THROWS,
  },
  'PostgreSQL: a migration': {
    to: POSTGRES_OPEN,
    wait: (hole) => migrateDatabase(postgres(hole), { limitMs: 2_000 }),
    ends: THROWS,
  },
  'PostgreSQL: the schema’s version': {
    to: POSTGRES_OPEN,
    wait: (hole) => Promise.any([readSchemaState(postgres(hole)), requireCurrentSchema(postgres(hole))]),
    ends: THROWS,
  },
  'PostgreSQL: to listen, opening': { to: POSTGRES_OPENING, wait: listening, ends: undefined },
  'PostgreSQL: to listen': { to: POSTGRES_OPEN, wait: listening, ends: undefined },
  'Temporal: a client’s connection': {
    to: GRPC,
    wait: (hole) => connectClient({ address: hole.address }),
    ends: THROWS,
  },
  'Temporal: a worker’s connection': {
    to: GRPC,
    wait: (hole) => connectNative({ address: hole.address }, LIMIT_MS),
    ends: THROWS,
  },
  'sled: register': {
    to: HTTP,
    wait: (hole) => sledClient(hole).register(sledAt(hole), ID, register, LIMIT_MS),
    ends: THROWS,
  },
  'sled: unregister': {
    to: HTTP,
    wait: (hole) => sledClient(hole).unregister(sledAt(hole), ID, LIMIT_MS),
    ends: THROWS,
  },
  'sled: a command': {
    to: HTTP,
    wait: (hole) => sledClient(hole).setState(sledAt(hole), ID, { type: 'run' } as never, LIMIT_MS),
    ends: THROWS,
  },
  'sled: a state': { to: HTTP, wait: (hole) => sledClient(hole).readState(sledAt(hole), ID, LIMIT_MS), ends: THROWS },
  'sled: a migration’s progress': {
    to: HTTP,
    wait: (hole) => sledClient(hole).readProgress(sledAt(hole), ID, LIMIT_MS),
    ends: THROWS,
  },
  'sled: a console': {
    to: HTTP,
    wait: (hole) => sledClient(hole).readConsole(sledAt(hole), ID, { fromOffset: 0, maxBytes: 1 }, LIMIT_MS),
    ends: THROWS,
  },
  'sled: an inventory': {
    to: HTTP,
    wait: (hole) => sledClient(hole).readInventory(sledAt(hole), LIMIT_MS),
    ends: THROWS,
  },
  // What begins to answer is there: whether it ends doesn't matter.
  'sled: whether it answers': {
    to: HTTP,
    wait: async (hole) => typeof (await sledClient(hole).answers(sledAt(hole), LIMIT_MS)),
    ends: 'boolean',
  },
  'sled: whether one that has joined answers': {
    to: HTTP,
    wait: async (hole) => typeof (await sledClient(hole).answers({ ...sledAt(hole), identified: true }, LIMIT_MS)),
    ends: 'boolean',
  },
  'sled agent: a report': {
    to: HTTP,
    wait(hole) {
      const reporter = new Reporter(`http://${hole.address}`, () => {});
      reporter.report(ID, {} as never);
      return comesAgain(hole, () => reporter.stop());
    },
    ends: undefined,
  },
  'sled agent: the network table': {
    to: HTTP,
    wait(hole) {
      const table = new NetworkTable(`http://${hole.address}`, 10);
      return comesAgain(hole, () => table.stop());
    },
    ends: undefined,
  },
  'sled agent: to join': {
    to: TLS,
    wait: (hole) =>
      joinSled({
        token: writeInviteToken({ url: `https://${hole.address}`, secret: 's'.repeat(43), authority: 'a'.repeat(64) }),
        folder,
        address: '127.0.0.1:1',
        threads: 1,
        memoryBytes: 1,
        callTimeoutMs: LIMIT_MS,
      }),
    ends: THROWS,
  },
  'sled agent: another sled’s word': {
    to: HTTP,
    wait: (hole) => askSource(PLAIN_TRANSPORT, { vmmId: ID, agent: hole.address, agentId: null }, ID),
    ends: 'unreachable',
  },
  'sled agent: a hand-over': {
    to: { words: Buffer.from('{"al'), crumb: Buffer.from('i') },
    wait: (hole) =>
      new Promise<void>((resolve) => {
        const peer = HandOverPeer.dial(
          PLAIN_TRANSPORT,
          hole.address,
          HAND_OVER_MS,
          () => {},
          () => resolve(),
        );
        peer.send({ alive: true });
      }),
    ends: undefined,
  },
  'client: what changes': {
    to: HTTP,
    wait(hole) {
      const stop = new AbortController();
      const reading = client(hole).events({ signal: stop.signal }).next();
      reading.catch(() => {});
      return comesAgain(hole, async () => stop.abort());
    },
    ends: undefined,
  },
  'client: a list': {
    to: HTTP,
    wait: async (hole) => {
      for await (const _ of client(hole).listProjects());
    },
    ends: THROWS,
  },
  'client: a call that waits for an operation': {
    to: HTTP,
    wait: (hole) => client(hole).startInstance('web', { project: 'default', waitSeconds: 0 }),
    ends: THROWS,
  },
};

/** It is deaf, and ends when it is told to. */
async function listening(hole: BlackHole): Promise<void> {
  const { db } = opened(hole);
  const log = createLog('test', 'silent');
  const outcomes = new OperationOutcomes({ url: postgres(hole), db, log, applicationName: 'test' });
  outcomes.start();
  await comesAgain(hole, () => outcomes.close());
  expect(outcomes.hears).toBe(false);
}

describe.concurrent.each(SILENCES)('a peer that is %s', (silence) => {
  for (const [name, { to, wait, ends }] of Object.entries(WAITS))
    test(name, { timeout: STUCK_MS }, () =>
      withHole(silence, to, async (hole) => {
        const ended: unknown = await wait(hole).then(
          (value) => value,
          (error: unknown) => {
            expect(error).toBeInstanceOf(Error);
            return THROWS;
          },
        );
        expect(ended).toEqual(ends);
      }),
    );
});

test('what waits for PostgreSQL in vain is told that PostgreSQL does not answer', () =>
  withHole('silent', POSTGRES_OPEN, async (hole) => {
    const error: unknown = await opened(hole)
      .db.execute(sql`SELECT 1`)
      .catch((reason: unknown) => reason);
    expect(describeError(error)).toMatchObject({ status: 503, message: expect.stringMatching(/^PostgreSQL does not/) });
  }));

test('a call of the client that may have been done says so, and is not sent again', () =>
  withHole('silent', HTTP, async (hole) => {
    const error: unknown = await client(hole)
      .startInstance('web', { project: 'default', waitSeconds: 0 })
      .catch((reason: unknown) => reason);
    expect(error).toBeInstanceOf(MooringConnectionError);
    expect((error as MooringConnectionError).neverSent).toBe(false);
    expect(hole.connections).toBe(1);
  }));

test('a collector of traces that never answers keeps no process from ending', { timeout: STUCK_MS }, () =>
  withHole('silent', HTTP, async (hole) => {
    const tracing = await installTracing('test', { OTEL_EXPORTER_OTLP_ENDPOINT: `http://${hole.address}` });
    trace.getTracer('test').startSpan('a span').end();
    await tracing?.flush();
    expect(tracing).not.toBeNull();
  }),
);
