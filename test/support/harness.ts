/** A real stack for tests, and the few words that they need to speak of it. */
import { randomUUID } from 'node:crypto';
import type { Client } from '@temporalio/client';
import { sql } from 'drizzle-orm';
import { pino } from 'pino';
import { SledClient } from '../../activities/sled-client.ts';
import { SledDirectory } from '../../activities/sled-directory.ts';
import { MooringApiError, MooringClient } from '../../client/mooring-client.ts';
import { type OpenDatabase, openDatabase } from '../../db/connect.ts';
import { installJournal } from '../../db/journal.ts';
import { type InstanceRecord, readInstance } from '../../db/queries/read-instance.ts';
import { readSnapshot } from '../../db/queries/read-snapshot.ts';
import { type Examination, examine } from '../../doctor/examine.ts';
import { findingLines } from '../../doctor/finding.ts';
import type { ExternalState } from '../../model/states.ts';
import { needsAction } from '../../model/update-decision.ts';
import { TASK_QUEUE } from '../../model/workflow-names.ts';
import { becomeControlPlane } from '../../platform/identity/control-plane.ts';
import { FAULT_CALLS } from '../../sled-agent/faults.ts';
import { type RunningStack, startStack } from '../../stack/stack.ts';
import type { StackOptions } from '../../stack/stack-options.ts';
import type { StackSled } from '../../stack/stack-sleds.ts';
import { connectTemporalClient } from '../../temporal/client.ts';
import { WorkflowStarter } from '../../temporal/workflow-starter.ts';
import type { InstanceCreate } from '../../wire/operator-api/instances.ts';
import { testBundle } from './bundle.ts';
import { copyPostgresTemplate } from './postgres-template.ts';
import { eventually } from './wait.ts';

export interface Harness {
  readonly stack: RunningStack;
  readonly client: MooringClient;
  readonly temporal: Client;
  readonly database: OpenDatabase;
  /** The id of the installation. */
  readonly installation: string;
  /** Creates a stopped instance, which is not restarted by itself unless asked for; returns its id. */
  create(name?: string, values?: Partial<InstanceCreate>): Promise<string>;
  /** Creates and starts an instance, and waits until it runs; returns its id. */
  running(values?: Partial<InstanceCreate>): Promise<string>;
  record(id: string): Promise<InstanceRecord>;
  shows(id: string, externalState: ExternalState): Promise<InstanceRecord>;
  /** Waits until nothing is left to do for an instance. */
  rests(id: string): Promise<void>;
  /** What an instance holds. */
  holds(id: string): Promise<{ reservations: string[]; charge: boolean }>;
  /** The sled that an instance's active VMM is on, and another one. */
  placed(id: string): Promise<{ here: StackSled; there: StackSled }>;
  /**
   * Runs the doctor and throws its lines. With `atRest` it first waits until what only holds at rest holds, as long as
   * nothing is wrong that must never be; without, it looks once.
   */
  examined(atRest: boolean): Promise<Examination>;
  /** One pass of the watcher, then one of the updater scan: for stacks whose schedules are off. */
  reconcile(): Promise<void>;
  /** The sled of the stack with this id. */
  sled(id: string | null | undefined): StackSled;
  /** Signals an instance's update saga, as the control plane does. */
  signalUpdate(id: string): Promise<void>;
  /** Plants the same fault on every sled. */
  everywhere(plant: (sled: StackSled) => void): void;
  close(): Promise<void>;
}

let named = 0;

/** The bundle that was made for all test files; none for a worker that needs another. */
async function sharedBundle({ testInterceptors, env }: Partial<StackOptions>): Promise<Pick<StackOptions, 'bundle'>> {
  if (process.env.OTEL_EXPORTER_OTLP_ENDPOINT || testInterceptors !== undefined || env?.TEMPORAL_ADDRESS) return {};
  return { bundle: await testBundle() };
}

/** Brings up a stack for a test file. */
export async function startHarness(
  options: Partial<StackOptions> & { readonly connections?: number } = {},
): Promise<Harness> {
  const stack = await startStack({
    sleds: 3,
    transitionMs: 10,
    // Five loops: every three seconds they would keep a seventh of a core busy, beside each file that runs. Files that wait
    // for a pass ask for more.
    reconcileEveryMs: 10_000,
    ...(await sharedBundle(options)),
    preparePostgres: copyPostgresTemplate,
    ...options,
    env: { ...process.env, DATABASE_URL: '', TEMPORAL_ADDRESS: '', ...options.env },
  });
  const database = openDatabase(stack.databaseUrl, {
    maxConnections: options.connections ?? 4,
    applicationName: 'mooring-test',
  });
  const {
    client: temporal,
    close: closeTemporal,
    installation,
  } = await connectTemporalClient(stack.temporal, database.db, pino({ level: 'silent' }));
  const client = new MooringClient({
    url: stack.apiUrl,
    ...(options.requireTokens ? { token: stack.adminToken.secret } : {}),
  });
  const directory =
    stack.authority === null ? null : await SledDirectory.open(database.db, await becomeControlPlane(stack.authority));
  const sledClient = new SledClient(undefined, directory);
  await installJournal(database.db);
  await client.createProject({ name: 'default', description: '' });
  const harness: Harness = {
    stack,
    client,
    temporal,
    database,
    installation: (await installation()).id,
    async create(name, values) {
      named += 1;
      const unique = name ?? `vm-${named}`;
      const made = await client.createInstance(
        {
          name: unique,
          hostname: unique,
          description: '',
          ncpus: 2,
          memory: 1024 ** 3,
          auto_restart_policy: 'never',
          ...values,
          start: false,
        },
        { project: 'default' },
      );
      return made.id;
    },
    async running(values) {
      const id = await harness.create(undefined, values);
      await client.startInstance(id);
      await harness.shows(id, 'running');
      return id;
    },
    async record(id) {
      const found = await readInstance(database.db, id);
      if (found === null) throw new Error(`no instance ${id}`);
      return found;
    },
    async shows(id, externalState) {
      let last: InstanceRecord | null = null;
      await eventually(async () => {
        last = await harness.record(id);
        return last.externalState === externalState;
      }, `instance ${id} never showed ${externalState}`).catch((error) => {
        throw new Error(`${error.message}; it shows ${last?.externalState}`);
      });
      return harness.record(id);
    },
    async rests(id) {
      await eventually(async () => {
        const snapshot = await readSnapshot(database.db, id);
        return snapshot !== null && !needsAction(snapshot) && snapshot.unlinked.length === 0;
      }, `instance ${id} never came to rest`);
    },
    async holds(id) {
      const reservations = await database.db.execute(
        sql`SELECT kind FROM sled_reservation WHERE instance_id = ${id} ORDER BY kind`,
      );
      const charge = await database.db.execute(sql`SELECT 1 FROM provisioning_charge WHERE instance_id = ${id}`);
      return { reservations: reservations.rows.map((row) => String(row.kind)), charge: charge.rows.length > 0 };
    },
    async placed(id) {
      const { active } = await harness.record(id);
      const here = stack.sleds.find((sled) => sled.id === active?.sledId);
      const there = stack.sleds.find((sled) => sled.id !== active?.sledId);
      if (here === undefined || there === undefined) throw new Error(`instance ${id} is on no sled of this stack`);
      return { here, there };
    },
    examined: (atRest) =>
      examineUntilQuiet(atRest, () =>
        examine({
          db: database.db,
          temporal,
          sleds: sledClient,
          atRest,
          journal: 'required',
          guestLog: stack.sleds.flatMap(({ agent }) => agent.faults.guestLog()),
        }),
      ),
    async reconcile() {
      for (const type of ['watcher', 'updaterScan']) {
        await temporal.workflow.execute(type, {
          taskQueue: TASK_QUEUE,
          workflowId: `test-${type}-${randomUUID()}`,
          args: [],
        });
      }
    },
    sled(id) {
      const found = stack.sleds.find((one) => one.id === id);
      if (found === undefined) throw new Error(`there is no sled ${id} in this stack`);
      return found;
    },
    signalUpdate: (id) => new WorkflowStarter(temporal).signalUpdate(id),
    everywhere: (plant) => stack.sleds.forEach(plant),
    async close() {
      directory?.close();
      await Promise.allSettled([database.close(), closeTemporal(), sledClient.close()]);
      await stack.stop();
    },
  };
  return harness;
}

/** Looks until nothing is found that rest may still mend, or it never comes; throws what is found then. */
async function examineUntilQuiet(atRest: boolean, look: () => Promise<Examination>): Promise<Examination> {
  let last = await look();
  const mayPass = () => last.findings.length > 0 && last.findings.every((finding) => finding.holds === 'at rest');
  if (mayPass())
    await eventually(async () => {
      last = await look();
      return !mayPass();
    }, 'it never came to rest').catch(() => {});
  if (last.findings.length > 0)
    throw new Error(
      `the doctor, ${atRest ? 'at rest' : 'at any moment'}, has ${last.findings.length} finding(s):\n${findingLines(last.findings).join('\n')}`,
    );
  return last;
}

/** Makes a sled silent, as one without power is: it answers no call and reports nothing. Its guests go on. */
export function silence({ agent }: StackSled): void {
  for (const call of FAULT_CALLS) agent.faults.plant({ call, act: { type: 'drop_before' } });
  agent.faults.holdReports(true);
}

/** Lets a silent sled speak again. */
export function wake({ agent }: StackSled): void {
  agent.faults.clear();
}

/** The API's error of a call that must fail. */
export async function refused(call: Promise<unknown>): Promise<MooringApiError> {
  const outcome = await call.then(
    () => null,
    (error: unknown) => error,
  );
  if (outcome instanceof MooringApiError) return outcome;
  throw outcome ?? new Error('the call succeeded');
}
