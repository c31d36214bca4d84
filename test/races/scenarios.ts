/** Where a race begins, and who may race from there. */
import { randomUUID } from 'node:crypto';
import { sql } from 'drizzle-orm';
import type { Database } from '../../db/connect.ts';
import { sled } from '../../db/schema.ts';
import { createInstance } from '../../db/transactions/create-instance.ts';
import { createProject } from '../../db/transactions/create-project.ts';
import { recordStop } from '../../db/transactions/record-stop.ts';
import { renewLease } from '../../db/transactions/renew-lease.ts';
import { newAttempt } from '../support/saga-steps.ts';
import {
  type Actor,
  DELETE,
  expunge,
  fencingPass,
  guestEnds,
  handOver,
  lateAttemptsOf,
  leaseLapses,
  migrate,
  type SagaFault,
  STOP,
  sledHears,
  sledIsHeard,
  start,
  UPDATE,
  WAIT,
  watcher,
  word,
} from './actors.ts';
import { command, LEASE_MS, type World } from './world.ts';

export interface Scenario {
  readonly name: string;
  /** Brings a stopped instance to where the race begins. */
  readonly prepare: (db: Database, world: World) => Promise<void>;
  readonly actors: readonly Actor[];
  /** Actors that have begun when the race begins: they take part in every one. */
  readonly inProgress?: readonly string[];
  /** A run of a saga is in progress whose ids an earlier run of it has as well: each other actor alone is enough beside it. */
  readonly doneAgain?: true;
}

const GIB = 1024 ** 3;

/** A world with one stopped instance and three sleds; placement prefers `here`, which is by far the largest. */
export async function newWorld(db: Database): Promise<World> {
  const mark = randomUUID().slice(0, 8);
  const { id: projectId } = await createProject(db, { name: `project-${mark}`, description: '' });
  const addSled = async (name: string, threads: number) => {
    const id = randomUUID();
    const address = `${name}.${mark}:8099`;
    await db.insert(sled).values({ id, name: `${name}-${mark}`, address, threads, memoryBytes: threads * 4 * GIB });
    return id;
  };
  const [here, there, spare] = [await addSled('here', 4096), await addSled('there', 16), await addSled('spare', 8)];
  const instanceId = await createInstance(db, {
    projectId,
    name: `vm-${mark}`,
    description: '',
    hostname: 'vm',
    ncpus: 2,
    memoryBytes: GIB,
    autoRestartPolicy: null,
  });
  return {
    instanceId,
    here,
    there,
    spare,
    attempts: {
      'first start': newAttempt('start', instanceId),
      start: newAttempt('start', instanceId),
      'another start': newAttempt('start', instanceId),
      'first migration': newAttempt('migrate', instanceId),
      migrate: newAttempt('migrate', instanceId),
      'another migration': newAttempt('migrate', instanceId),
    },
    vmms: {},
    dead: [],
    lostSleds: [],
    silentSleds: [],
    at: {},
    notes: {},
    wrongs: [],
  };
}

/** Plays an actor's script to its end, or to the step before `until`. */
export async function play(db: Database, world: World, actor: Actor, until?: string): Promise<void> {
  for (let at: string | null = actor.first; at !== null && at !== until; ) {
    const next: Awaited<ReturnType<NonNullable<Actor['steps'][string]>>> | undefined = await actor.steps[at]?.(
      db,
      world,
    );
    if (next === undefined || next === WAIT) throw new Error(`${actor.name} can't do ${at}`);
    at = next;
  }
}

async function running(db: Database, world: World): Promise<void> {
  await play(db, world, start('first start'));
}

async function migrating(db: Database, world: World): Promise<void> {
  await running(db, world);
  await play(db, world, migrate('first migration'));
  await play(db, world, handOver('completes'), 'end');
}

/** The sled `here` holds a lease, and nothing gets through to it. */
async function cutOff(db: Database, world: World): Promise<void> {
  await db.execute(sql`UPDATE lease_service SET last_beat_at = clock_timestamp()`);
  await renewLease(db, { sledId: world.here, leaseMs: LEASE_MS, held: true, epoch: null, livingVmmIds: [] });
  world.silentSleds.push(world.here);
}

const startsWith = (...faults: SagaFault[]) => faults.map((fault) => start('start', fault));
const migrationsWith = (...faults: SagaFault[]) => faults.map((fault) => migrate('migrate', fault));
const FAULTS: SagaFault[] = [
  'cancelled before its claim',
  'register lost',
  'register lost, sled silent',
  'told, no answer',
  'told refused',
];

/** A run that ends in the middle, since its workflow task was lost. */
const LOST: SagaFault[] = ['lost after claim', 'lost after register', 'lost after begin'];
const REDONE = { redone: true } as const;

export const SCENARIOS: readonly Scenario[] = [
  {
    name: 'stopped',
    prepare: async () => {},
    actors: [
      ...startsWith('none', ...FAULTS),
      lateAttemptsOf('start'),
      start('another start'),
      STOP,
      DELETE,
      UPDATE,
      watcher('active'),
      guestEnds('crashes'),
      guestEnds('halts'),
      expunge('here'),
    ],
  },
  {
    name: 'failed',
    prepare: async (db, world) => {
      await running(db, world);
      await play(db, world, guestEnds('crashes'));
      await play(db, world, UPDATE);
    },
    actors: [...startsWith('none', 'told refused'), STOP, DELETE, UPDATE],
  },
  {
    name: 'an unwound start left over',
    prepare: async (db, world) => {
      await play(db, world, start('first start', 'told refused'));
    },
    actors: [...startsWith('none', ...FAULTS), lateAttemptsOf('first start'), STOP, DELETE, UPDATE, expunge('here')],
  },
  {
    name: 'an unwound start left over, its sled silent',
    prepare: async (db, world) => {
      await play(db, world, start('first start', 'register lost, sled silent'));
    },
    actors: [...startsWith('none', 'register lost, sled silent'), STOP, DELETE, UPDATE, expunge('here')],
  },
  {
    name: 'running',
    prepare: running,
    actors: [
      ...migrationsWith('none', ...FAULTS),
      migrate('another migration'),
      handOver('completes'),
      handOver('fails'),
      start('start'),
      STOP,
      DELETE,
      UPDATE,
      watcher('active'),
      watcher('target'),
      guestEnds('crashes'),
      guestEnds('halts'),
      expunge('here'),
      expunge('there'),
    ],
  },
  {
    name: 'running, an unwound migration left over',
    prepare: async (db, world) => {
      await running(db, world);
      await play(db, world, migrate('first migration', 'told refused'));
    },
    actors: [
      ...migrationsWith('none', 'told refused', 'register lost, sled silent'),
      handOver('completes'),
      STOP,
      UPDATE,
      watcher('active'),
      guestEnds('halts'),
      expunge('there'),
    ],
  },
  {
    name: 'migrating',
    prepare: migrating,
    actors: [
      handOver('completes'),
      handOver('fails'),
      migrate('another migration'),
      start('start'),
      STOP,
      DELETE,
      UPDATE,
      watcher('active'),
      watcher('target'),
      guestEnds('crashes'),
      expunge('here'),
      expunge('there'),
    ],
  },
  {
    // Commanded without an answer; then the user asked for stop, so that it is not commanded again.
    name: 'a migration that was told, about to unwind',
    prepare: async (db, world) => {
      await running(db, world);
      await play(db, world, migrate('first migration'), 'migrate in');
      const { vmmId } = world.attempts['first migration'] ?? {};
      command(world, vmmId ?? '', world.there);
      await recordStop(db, world.instanceId);
    },
    inProgress: ['unwind'],
    actors: [
      { ...migrate('first migration'), name: 'unwind', first: 'begin' },
      handOver('completes'),
      handOver('fails'),
      STOP,
      UPDATE,
      watcher('target'),
      guestEnds('crashes'),
      expunge('there'),
    ],
  },
  {
    name: 'migrating, the guest has just left',
    prepare: async (db, world) => {
      await migrating(db, world);
      await play(db, world, { ...handOver('completes'), first: 'end' }, 'target says');
    },
    actors: [
      handOver('completes'),
      STOP,
      DELETE,
      UPDATE,
      watcher('active'),
      watcher('target'),
      guestEnds('crashes'),
      guestEnds('halts'),
      expunge('here'),
      expunge('there'),
    ],
  },
  {
    name: 'running on a sled that answers, and an operator says that it is off',
    prepare: running,
    doneAgain: true,
    inProgress: ["operator's word: expunge", 'update'],
    actors: [
      word('expunge'),
      word('declare-dead'),
      word('force-stop'),
      sledHears('here'),
      fencingPass('here'),
      start('start'),
      migrate('migrate'),
      handOver('completes'),
      STOP,
      UPDATE,
    ],
  },
  {
    name: 'running on a sled that is cut off and holds a lease, and an operator says that it is off',
    prepare: async (db, world) => {
      await running(db, world);
      await cutOff(db, world);
    },
    doneAgain: true,
    inProgress: ["operator's word: expunge", 'lease lapses', 'update'],
    actors: [
      word('expunge'),
      word('declare-dead'),
      word('force-stop'),
      leaseLapses('here'),
      sledIsHeard('here'),
      fencingPass('here'),
      start('start'),
      STOP,
      UPDATE,
    ],
  },
  {
    name: 'the same, and the sled comes back',
    prepare: async (db, world) => {
      await running(db, world);
      await cutOff(db, world);
    },
    doneAgain: true,
    inProgress: ['sled is heard again', 'update'],
    actors: [
      sledIsHeard('here'),
      word('expunge'),
      word('declare-dead'),
      word('force-stop'),
      fencingPass('here'),
      start('start'),
      UPDATE,
    ],
  },
  {
    name: 'a start whose task is done again',
    prepare: async () => {},
    inProgress: ['redone start'],
    doneAgain: true,
    // Without a sled that forgets its VMM: told to register and run it once more, it would begin the guest anew, and the
    // verdict that it was lost ends that one.
    actors: [start('start', 'none', REDONE), ...startsWith('none', ...FAULTS, ...LOST), STOP, UPDATE],
  },
  {
    name: 'a start whose task is done again, and fails',
    prepare: async () => {},
    inProgress: ['redone start (told refused)'],
    doneAgain: true,
    actors: [start('start', 'told refused', REDONE), ...startsWith('none', ...FAULTS, ...LOST), STOP, UPDATE],
  },
  {
    name: 'a migration whose task is done again, and fails',
    prepare: running,
    inProgress: ['redone migrate (told refused)'],
    doneAgain: true,
    actors: [
      migrate('migrate', 'told refused', REDONE),
      ...migrationsWith('none', ...FAULTS, ...LOST),
      handOver('completes'),
      STOP,
      UPDATE,
    ],
  },
  {
    name: 'a migration whose task is done again',
    prepare: running,
    inProgress: ['redone migrate'],
    doneAgain: true,
    actors: [
      migrate('migrate', 'none', REDONE),
      ...migrationsWith('none', ...FAULTS, ...LOST),
      handOver('completes'),
      handOver('fails'),
      STOP,
      UPDATE,
      watcher('target'),
    ],
  },
];

/** In a scenario in which a hand-over is under way, its actor goes on from there. */
export function firstStep(scenario: Scenario, actor: Actor): string {
  if (!actor.name.startsWith('hand-over')) return actor.first;
  if (scenario.name === 'migrating') return 'end';
  return scenario.name === 'migrating, the guest has just left' ? 'target says' : actor.first;
}

const TABLES = [
  'operation',
  'provisioning_charge',
  'sled_reservation',
  'migration',
  'vmm',
  'instance',
  'sled',
  'project',
  'doctor.journal',
];

/** Removes every row, so that the tables stay small: in one message, since that is what takes the time. */
export async function forgetRows(db: Database): Promise<void> {
  await db.execute(
    sql.raw(
      `BEGIN; SET LOCAL session_replication_role = replica; ${TABLES.map((table) => `DELETE FROM ${table};`).join(' ')} COMMIT`,
    ),
  );
}
