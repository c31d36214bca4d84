/**
 * `npm run bench:events`: what the stream of changes costs an API at 1,000 changes a second, by how many read it, and at rest. One
 * process holds the feed and its readers, and has a database of its own changed; what that takes without readers is shown too.
 */
import { chmod, mkdtemp, rm } from 'node:fs/promises';
import { join } from 'node:path';
import { Writable } from 'node:stream';
import { setTimeout as pause } from 'node:timers/promises';
import { sql } from 'drizzle-orm';
import { pino } from 'pino';
import { ChangeFeed } from '../api/events/change-feed.ts';
import { EventStream } from '../api/events/event-stream.ts';
import { table } from '../cli/output.ts';
import { type Database, openDatabase } from '../db/connect.ts';
import { migrateDatabase } from '../db/migrate.ts';
import { OperationOutcomes } from '../db/operation-outcomes.ts';
import { createInstance } from '../db/transactions/create-instance.ts';
import { createProject } from '../db/transactions/create-project.ts';
import { startEmbeddedPostgres } from '../stack/embedded-postgres.ts';
import { EVENT_KINDS } from '../wire/operator-api/events.ts';

const INSTANCES = 1_000;
const CHANGES_PER_SECOND = 1_000;
/** So many changes are one transaction. */
const TOGETHER = 10;
const SECONDS = 15;
const READERS = [0, 1, 10, 100];
const LOG = pino({ level: 'silent' });

/** A reader that takes everything, and counts it. */
class Sink extends Writable {
  bytes = 0;
  events = 0;

  constructor() {
    super({ decodeStrings: false });
  }
  override _write(piece: string, _: string, done: () => void): void {
    this.bytes += Buffer.byteLength(piece);
    this.events += piece.split('event: instance').length - 1;
    done();
  }
}

async function change(db: Database, ids: readonly string[], perSecond: number): Promise<number> {
  const began = performance.now();
  let made = 0;
  while (performance.now() - began < SECONDS * 1_000) {
    const due = Math.floor(((performance.now() - began) / 1_000) * perSecond);
    while (made < due) {
      const some = Array.from({ length: TOGETHER }, (_, at) => ids[(made + at) % ids.length] ?? '');
      await db.execute(
        sql`UPDATE instance SET description = ${String(made)} WHERE id = ANY(${`{${some.join(',')}}`}::uuid[])`,
      );
      made += TOGETHER;
    }
    await pause(5);
  }
  return made;
}

async function measure(
  db: Database,
  outcomes: OperationOutcomes,
  ids: readonly string[],
  readers: number,
  perSecond: number,
) {
  let statements = 0;
  const counted = new Proxy(db, {
    get(target, property) {
      if (property === 'execute' || property === 'select') statements += 1;
      const value: unknown = Reflect.get(target, property, target);
      return typeof value === 'function' ? value.bind(target) : value;
    },
  });
  const feed = new ChangeFeed({ source: { db: counted, webUiLink: () => null }, listener: outcomes, log: LOG });
  const sinks = Array.from({ length: readers }, () => new Sink());
  const filter = { kinds: new Set(EVENT_KINDS), projectId: null, instanceId: null };
  await Promise.all(sinks.map((sink) => feed.join(new EventStream(sink, filter, null), null)));
  statements = 0;
  const before = process.cpuUsage();
  const made = await change(db, ids, perSecond);
  const { user, system } = process.cpuUsage(before);
  await feed.close();
  const [first] = sinks;
  return {
    readers,
    changes: made / SECONDS,
    events: (first?.events ?? 0) / SECONDS,
    statements: statements / SECONDS,
    cpuPercent: (user + system) / 10_000 / SECONDS,
    megabytes: sinks.reduce((sum, { bytes }) => sum + bytes, 0) / 1024 ** 2 / SECONDS,
  };
}

const directory = await mkdtemp('/var/tmp/mooring-bench-events-');
await chmod(directory, 0o711);
const postgres = await startEmbeddedPostgres({ dataDir: join(directory, 'postgres'), durable: false });
try {
  await migrateDatabase(postgres.url);
  const { db, close } = openDatabase(postgres.url);
  const outcomes = new OperationOutcomes({ url: postgres.url, db, log: LOG, applicationName: 'bench' });
  outcomes.start();
  const { id: projectId } = await createProject(db, { name: 'bench', description: '' });
  const ids: string[] = [];
  for (let made = 0; made < INSTANCES; made++)
    ids.push(
      await createInstance(db, {
        ...{ projectId, name: `vm-${made}`, description: '', hostname: 'vm', ncpus: 1 },
        ...{ memoryBytes: 2 ** 30, autoRestartPolicy: null },
      }),
    );
  const rows = [];
  for (const readers of READERS) rows.push(await measure(db, outcomes, ids, readers, CHANGES_PER_SECOND));
  rows.push(await measure(db, outcomes, ids, 100, 0));
  console.log(
    table(
      ['READERS', 'CHANGES/S', 'EVENTS/S EACH', 'STATEMENTS/S', 'CPU, % OF A CORE', 'MIB/S SENT'],
      rows.map((row) =>
        Object.values(row).map((value) => (Number.isInteger(value) ? String(value) : value.toFixed(1))),
      ),
    ),
  );
  await outcomes.close();
  await close();
} finally {
  await postgres.stop();
  await rm(directory, { recursive: true, force: true });
}
