/**
 * The chaos soak: carries out a plan on a real system, then lets it come to rest, and checks what is left and what its
 * callers saw (section 8 of docs/design.md).
 */
import { rm } from 'node:fs/promises';
import { setTimeout as pause } from 'node:timers/promises';
import { Client, Connection } from '@temporalio/client';
import { sql } from 'drizzle-orm';
import { z } from 'zod';
import { SledClient } from '../../activities/sled-client.ts';
import { type OpenDatabase, openDatabase } from '../../db/connect.ts';
import { installJournal } from '../../db/journal.ts';
import { type ExamineOptions, examine } from '../../doctor/examine.ts';
import type { Finding } from '../../doctor/finding.ts';
import { SEARCH_ATTRIBUTES } from '../../model/search-attributes.ts';
import { isTerminalVmmState } from '../../model/states.ts';
import { monotonicMs } from '../../sled-agent/lease-file.ts';
import { errorResponse } from '../../wire/operator-api/error-response.ts';
import { instanceView } from '../../wire/operator-api/instances.ts';
import { operationView } from '../../wire/operator-api/operations.ts';
import { sledView } from '../../wire/operator-api/sleds.ts';
import { sledInventory } from '../../wire/sled-protocol.ts';
import { Adversary, faultName } from './adversary.ts';
import { type Answer, Caller } from './caller.ts';
import type { StartSoakTemporal } from './embedded-temporal.ts';
import {
  type CallKind,
  checkHistory,
  type FinalInstance,
  type FinalOperation,
  type GuestEvent,
  type HistoryEntry,
} from './history.ts';
import type { LinkCounts } from './network.ts';
import type { PlannedFault, PlannedOperation, SoakPlan } from './plan.ts';
import { SoakSystem } from './system.ts';
import { findDoubleRuns, findHalts } from './witness.ts';

export interface SoakRun {
  readonly plan: SoakPlan;
  /** Keeps the data and logs of a run without violations, too. */
  readonly keep?: boolean;
  /** How long the system may take to come to rest, in milliseconds. */
  readonly restTimeoutMs?: number;
  /** What it runs on; the embedded server by default. */
  readonly startTemporal?: StartSoakTemporal;
  readonly print: (message: string) => void;
}

export interface Violation {
  readonly rule: string;
  readonly instanceId: string | null;
  readonly detail: string;
}

export interface SoakReport {
  readonly seed: number;
  readonly durationMs: number;
  readonly instances: number;
  /** Calls by kind and outcome: a status, or `no answer`. */
  readonly operations: Readonly<Record<string, Readonly<Record<string, number>>>>;
  /** Sagas by kind and outcome, of the operations that were followed. */
  readonly sagas: Readonly<Record<string, number>>;
  /** How often each fault came, where there was anything for it to befall. */
  readonly faults: Readonly<Record<string, number>>;
  /** What came of them, by the name of the fault. */
  readonly consequences: Readonly<Record<string, Readonly<Record<string, number>>>>;
  /** What became of leases and of instances that were started again by themselves. */
  readonly happenings: Readonly<Record<string, number>>;
  readonly messages: LinkCounts;
  /** How long it took to come to rest, in milliseconds; `null`: it never did. */
  readonly restMs: number | null;
  readonly violations: readonly Violation[];
  /** Where data and logs were kept; `null` when they were thrown away. */
  readonly kept: string | null;
}

const PROJECT = 'soak';
const DEFAULT_REST_TIMEOUT_MS = 300_000;
/** A call that takes this much longer than it asked to wait is never answered, in milliseconds. */
const ANSWER_GRACE_MS = 60_000;
const EXAMINE_EVERY_MS = 3_000;
const PRINT_EVERY_MS = 30_000;
const LOOK_LIMIT_MS = 60_000;
const CLOSE_LIMIT_MS = 10_000;
/** Why a VMM failed where no verdict on its sled was the reason: what must have a cause of its own. */
const FAILED_BY_REPORT = /reported it failed|does not know/;

interface Slot {
  readonly name: string;
  id: string | null;
  /** The instance that had the slot before. */
  lastId: string | null;
}

/** Carries out a plan. Throws when the system doesn't come up or go down; what it does wrong is in the report. */
export async function runSoak(run: SoakRun): Promise<SoakReport> {
  const { options } = run.plan;
  const system = await SoakSystem.start({ ...options, print: run.print, startTemporal: run.startTemporal });
  let stopped = false;
  try {
    const soak = new Soak(system, run);
    const report = await soak
      .carryOut()
      .catch((error: unknown) => {
        run.print(`the soak can't go on: ${error instanceof Error ? error.stack : error}`);
        throw error;
      })
      .finally(() => soak.close());
    const killed = await system.stop();
    stopped = true;
    const violations = [
      ...report.violations,
      ...killed.map((name) => ({
        rule: 'a process ends in order when it is told to',
        instanceId: null,
        detail: `${name} had to be killed`,
      })),
    ];
    const keep = (run.keep ?? false) || violations.length > 0;
    if (!keep) await rm(system.dataDir, { recursive: true, force: true });
    return { ...report, violations, kept: keep ? system.dataDir : null };
  } finally {
    if (!stopped) await system.stop();
  }
}

class Soak {
  readonly #system: SoakSystem;
  readonly #run: SoakRun;
  readonly #slots: Slot[];
  readonly #calls: HistoryEntry[] = [];
  readonly #outcomes: Record<string, Record<string, number>> = {};
  readonly #faults: Record<string, number> = {};
  readonly #consequences: Record<string, Record<string, number>> = {};
  /** Instances that are started again when they fail. */
  readonly #restarting = new Set<string>();
  readonly #disturbed: GuestEvent[] = [];
  readonly #violations: Violation[] = [];
  readonly #caller = new Caller();
  readonly #adversary: Adversary;
  readonly #sledClient = new SledClient();
  readonly #database: OpenDatabase;
  #beganAtMs = 0;
  #beganMonotonicMs = 0;

  constructor(system: SoakSystem, run: SoakRun) {
    this.#system = system;
    this.#run = run;
    this.#database = openDatabase(system.databaseUrl, { maxConnections: 2, applicationName: 'mooring-soak' });
    this.#slots = Array.from({ length: run.plan.options.instances }, (_, index) => ({
      name: `vm-${index + 1}`,
      id: null,
      lastId: null,
    }));
    this.#adversary = new Adversary({
      system,
      caller: this.#caller,
      db: this.#database.db,
      instanceIn: (slot) => this.#slots[slot]?.id ?? null,
      leftMs: () => run.plan.options.durationMs - this.#now(),
      now: () => this.#now(),
      disturbed: (event) => this.#disturbed.push(event),
      violate: (rule, instanceId, detail) => this.#violate(rule, instanceId, detail),
      forceStop: (instanceId) => this.#forceStop(instanceId),
    });
  }

  async carryOut(): Promise<Omit<SoakReport, 'kept'>> {
    const { plan, print } = this.#run;
    await installJournal(this.#database.db);
    await this.#makeProject();
    this.#beganAtMs = Date.now();
    this.#beganMonotonicMs = monotonicMs();
    print(
      `${plan.operations.length} operations and ${plan.faults.length} faults in ${plan.options.durationMs / 1000} s`,
    );
    await Promise.all([this.#play(), this.#examineNowAndThen()]);
    print('quiet: faults are over, everything comes up');
    await this.#system.calm();
    const stuck = await this.#system.endOldBuilds();
    for (const build of stuck)
      this.#violate('a build that is replaced ends what it began', null, `there is still work of ${build}`);
    await this.#makeRoom();
    const quietSince = performance.now();
    const unrest = await this.#comeToRest();
    const restMs = unrest.length === 0 ? Math.round(performance.now() - quietSince) : null;
    for (const { rule, instanceId, detail } of unrest) this.#violate(rule, instanceId, detail);
    await this.#disturbByVerdictsAndEnds();
    const lives = await this.#system.agentLives();
    for (const { instanceId, detail } of findDoubleRuns(lives))
      this.#violate('no guest ever runs twice at a time', instanceId, detail);
    const halted = findHalts(lives).map(({ instanceId, atMs }) => ({
      instanceId,
      atMs: atMs - this.#beganMonotonicMs,
    }));
    const operations = await this.#readOperations();
    const instances = await this.#readInstances();
    const history = { calls: this.#calls, operations, instances, disturbed: [...this.#disturbed, ...halted], halted };
    this.#violations.push(...checkHistory(history));
    for (const [name, times] of await this.#system.endedByThemselves())
      this.#violate('a process runs until it is told to end', null, `${name} ended by itself, ${times} times`);
    const sagas: Record<string, number> = {};
    for (const { outcome } of operations) sagas[outcome ?? 'open'] = (sagas[outcome ?? 'open'] ?? 0) + 1;
    return {
      seed: plan.options.seed,
      durationMs: plan.options.durationMs,
      instances: plan.options.instances,
      operations: this.#outcomes,
      sagas,
      faults: this.#faults,
      consequences: this.#consequences,
      happenings: await this.#readHappenings(),
      messages: this.#system.messages,
      restMs,
      violations: this.#violations,
    };
  }

  /** Closes what the soak itself holds open, for a few seconds at most: a connection to what was killed may never end. */
  async close(): Promise<void> {
    const closed = Promise.allSettled([this.#caller.close(), this.#sledClient.close(), this.#database.close()]);
    await Promise.race([closed, pause(CLOSE_LIMIT_MS)]);
  }

  #violate(rule: string, instanceId: string | null, detail: string): void {
    this.#violations.push({ rule, instanceId, detail });
  }

  #now(): number {
    return Date.now() - this.#beganAtMs;
  }

  async #makeProject(): Promise<void> {
    const { options } = this.#run.plan;
    await this.#system.persist(async (url) => {
      const made = await this.#send(url, 'POST', '/v1/projects', { name: PROJECT, description: '' }, 20_000);
      if (made.status !== 201 && made.status !== 400) throw new Error(`the project could not be made: ${made.status}`);
      // Tight enough that some starts find none left, so that what leaks is missed.
      const cpus = Math.ceil(options.instances * 1.6);
      const path = `/v1/system/projects/${PROJECT}/quota`;
      const quota = await this.#send(url, 'PUT', path, { cpus, memory: null }, 20_000);
      if (quota.status !== 200) throw new Error(`the quota could not be set: ${quota.status}`);
    });
  }

  /** Lets every operation and fault happen at its time, and waits until all have been answered. */
  async #play(): Promise<void> {
    const { operations, faults, options } = this.#run.plan;
    const events = [
      ...operations.map((operation) => ({ atMs: operation.atMs, run: () => this.#operate(operation) })),
      ...faults.map((fault) => ({ atMs: fault.atMs, run: () => this.#inject(fault) })),
    ].sort((one, other) => one.atMs - other.atMs);
    const running = new Set<Promise<void>>();
    const errors: unknown[] = [];
    let nextPrintMs = PRINT_EVERY_MS;
    for (const event of events) {
      await pause(Math.max(0, event.atMs - this.#now()));
      const work: Promise<void> = event
        .run()
        .catch((error: unknown) => void errors.push(error))
        .finally(() => running.delete(work));
      running.add(work);
      if (this.#now() > nextPrintMs) {
        this.#run.print(
          `${Math.round(nextPrintMs / 1000)} s: ${this.#calls.length} calls, ${running.size} on their way`,
        );
        nextPrintMs += PRINT_EVERY_MS;
      }
    }
    await pause(Math.max(0, options.durationMs - this.#now()));
    for (const { commands, reports } of this.#system.sleds) {
      commands.heal();
      reports.heal();
    }
    await Promise.all(running);
    if (errors.length > 0) throw errors[0];
  }

  // --- Operations ---

  async #operate(operation: PlannedOperation): Promise<void> {
    const slot = this.#slots[operation.slot];
    const { apis } = this.#system;
    const planned = apis[operation.api];
    // A caller that finds nobody there asks the next one; one that is cut off while it waits doesn't know.
    const api = planned?.process.ready ? planned : (apis.find((one) => one.process.ready) ?? planned);
    if (slot === undefined || api === undefined) return;
    if (operation.kind === 'set-policy') return this.#setPolicy(operation, api.url);
    if (operation.kind === 'create') return this.#create(operation, slot, api.url);
    const id = slot.id ?? slot.lastId;
    if (id === null) return;
    const path = `/v1/instances/${id}`;
    const size = { ncpus: operation.ncpus, memory: operation.memoryBytes };
    const [method, suffix, body] = (
      {
        start: ['POST', '/start', undefined],
        stop: ['POST', '/stop', undefined],
        reboot: ['POST', '/reboot', undefined],
        migrate: ['POST', '/migrate', { dst_sled_id: this.#system.sleds[operation.sled]?.id }],
        delete: ['DELETE', '', undefined],
        resize: ['PUT', '', size],
        read: ['GET', '', undefined],
      } as const
    )[operation.kind];
    const { status } = await this.#call(operation.kind, api.url, method, path + suffix, body, {
      instanceId: id,
      waitSeconds: operation.waitSeconds,
      ...(operation.kind === 'resize' ? { size: { ncpus: size.ncpus, memoryBytes: size.memory } } : {}),
    });
    if (slot.id === id && (status === 404 || (operation.kind === 'delete' && status === 204)))
      if (operation.kind !== 'migrate')
        // A migration may be refused with 404 for its destination.
        this.#vacate(slot);
  }

  #vacate(slot: Slot): void {
    slot.lastId = slot.id;
    slot.id = null;
  }

  async #create(operation: PlannedOperation, slot: Slot, url: string): Promise<void> {
    const restarts = operation.restartsAfterSeconds;
    const { status, body } = await this.#call(
      'create',
      url,
      'POST',
      `/v1/instances?project=${PROJECT}`,
      {
        name: slot.name,
        hostname: slot.name,
        description: '',
        ncpus: operation.ncpus,
        memory: operation.memoryBytes,
        start: operation.on,
        // One that fails and stays so: what is shown in the end is what was asked for.
        auto_restart_policy: restarts === null ? 'never' : 'best_effort',
      },
      { instanceId: null, waitSeconds: operation.waitSeconds, restarts: restarts !== null },
    );
    if (status === 201) {
      slot.id = instanceView.parse(body).id;
      if (restarts !== null) await this.#setCooldown(slot.id, restarts, url);
    } else if (slot.id === null) {
      // It may have been made by a call that was never answered.
      const found = await this.#send(url, 'GET', `/v1/instances/${slot.name}?project=${PROJECT}`, undefined, 20_000);
      if (found.status === 200) slot.id ??= instanceView.parse(found.body).id;
    }
  }

  async #setCooldown(instanceId: string, seconds: number, url: string): Promise<void> {
    this.#restarting.add(instanceId);
    const body = { auto_restart_cooldown_seconds: seconds };
    const { status } = await this.#send(url, 'PUT', `/v1/instances/${instanceId}`, body, 20_000);
    this.#count('set-cooldown', status);
  }

  /** With an operator's word that its sled is off. */
  async #forceStop(instanceId: string): Promise<number | null> {
    const api = this.#system.anyApi();
    if (api === null) return null;
    const path = `/v1/instances/${instanceId}/force-stop`;
    const about = { instanceId, waitSeconds: 0 };
    return (await this.#call('force-stop', api.url, 'POST', path, { sled_powered_off: true }, about)).status;
  }

  async #setPolicy(operation: PlannedOperation, url: string): Promise<void> {
    const sled = this.#system.sleds[operation.sled];
    const path = `/v1/system/hardware/sleds/${sled?.id}/provision-policy`;
    const state = operation.on ? 'provisionable' : 'non_provisionable';
    const { status, body } = await this.#send(url, 'PUT', path, { state }, 20_000);
    this.#count('set-policy', status);
    if (status !== null && ![200, 404, 409, 503].includes(status))
      this.#violate('a call has one of its statuses', null, `set-policy: ${status} ${JSON.stringify(body)}`);
  }

  #count(kind: string, status: number | null): void {
    const outcomes = this.#outcomes[kind] ?? {};
    this.#outcomes[kind] = outcomes;
    const outcome = status === null ? 'no answer' : String(status);
    outcomes[outcome] = (outcomes[outcome] ?? 0) + 1;
  }

  /** Makes a call and records it in the history. */
  async #call(
    kind: CallKind,
    url: string,
    method: 'GET' | 'POST' | 'PUT' | 'DELETE',
    path: string,
    body: unknown,
    about: Pick<HistoryEntry, 'instanceId' | 'size' | 'restarts'> & { waitSeconds: number },
  ): Promise<{ status: number | null; body: unknown }> {
    const sentMs = this.#now();
    const limitMs = about.waitSeconds * 1000 + ANSWER_GRACE_MS;
    const answer = await this.#send(url, method, path, body, limitMs, { prefer: `wait=${about.waitSeconds}` });
    const error = errorResponse.safeParse(answer.body).data;
    const made = kind === 'create' && answer.status === 201 ? instanceView.parse(answer.body) : null;
    this.#calls.push({
      kind,
      instanceId: made?.id ?? about.instanceId,
      sentMs,
      endedMs: this.#now(),
      status: answer.status,
      errorCode: error?.error_code,
      message: error?.message,
      operationId: answer.location?.split('/').at(-1),
      size: about.size,
      restarts: about.restarts,
    });
    this.#count(kind, answer.status);
    if (answer.tooLate)
      this.#violate('every call is answered', about.instanceId, `${kind} sent at ${sentMs} ms: none in ${limitMs} ms`);
    return answer;
  }

  #send(...call: Parameters<Caller['send']>): Promise<Answer> {
    return this.#caller.send(...call);
  }

  async #inject(fault: PlannedFault): Promise<void> {
    const name = faultName(fault);
    const came = await this.#adversary.befall(fault);
    const consequences = this.#consequences[name] ?? {};
    this.#consequences[name] = consequences;
    consequences[came] = (consequences[came] ?? 0) + 1;
    if (came !== 'nobody there') this.#faults[name] = (this.#faults[name] ?? 0) + 1;
  }

  // --- Afterwards ---

  /** Has the doctor look while everything happens: what must hold in every committed state. */
  async #examineNowAndThen(): Promise<void> {
    const { durationMs } = this.#run.plan.options;
    while (this.#now() < durationMs) {
      await pause(Math.min(EXAMINE_EVERY_MS, Math.max(0, durationMs - this.#now())));
      // PostgreSQL may be down at the moment: the next look will tell.
      const look = this.#examine({ atRest: false }).catch(() => []);
      const findings = await Promise.race([look, pause(LOOK_LIMIT_MS).then(() => [])]);
      for (const violation of findings.map(asViolation))
        if (!this.#violations.some((known) => known.detail === violation.detail)) this.#violations.push(violation);
    }
  }

  async #examine(options: Pick<ExamineOptions, 'atRest' | 'temporal'>): Promise<Finding[]> {
    const { findings, checked } = await examine({
      db: this.#database.db,
      sleds: this.#sledClient,
      journal: 'required',
      ...options,
    });
    // Of those that were expunged, only some are there to answer.
    const silent = checked.silentSleds.filter((name) => this.#system.sleds.some((sled) => sled.name === name));
    if (!options.atRest || silent.length === 0) return findings;
    throw new Error(`no answer from ${silent.join(', ')}`);
  }

  /** Waits until the doctor finds nothing and no operation is open. Returns what is left when that takes too long. */
  async #comeToRest(): Promise<Violation[]> {
    const end = performance.now() + (this.#run.restTimeoutMs ?? DEFAULT_REST_TIMEOUT_MS);
    let nextPrintMs = performance.now() + PRINT_EVERY_MS;
    const connection = await Connection.connect(this.#system.temporal.connection);
    try {
      const temporal = new Client({ connection, namespace: this.#system.temporal.namespace });
      for (;;) {
        const look = this.#findUnrest(temporal).catch((error: unknown) => [unrestOf(String(error))]);
        // Whoever looks may hang too, on a connection that was killed.
        const late = pause(LOOK_LIMIT_MS).then(() => [unrestOf(`nobody could say within ${LOOK_LIMIT_MS / 1000} s`)]);
        const unrest = await Promise.race([look, late]);
        if (unrest.length === 0 || performance.now() > end) return unrest;
        if (performance.now() > nextPrintMs) {
          const [first] = unrest;
          this.#run.print(`no rest yet: ${first?.rule}: ${first?.detail} (${unrest.length} in all)`);
          nextPrintMs += PRINT_EVERY_MS;
        }
        await pause(1_000);
      }
    } finally {
      await connection.close();
    }
  }

  async #findUnrest(temporal: Client): Promise<Violation[]> {
    const rule = 'everything comes to rest';
    const unrest: Violation[] = [];
    for (const { instanceId, view } of await this.#readInstances()) {
      if (view !== null && !['running', 'stopped', 'failed'].includes(view.runState))
        unrest.push({ rule, instanceId, detail: `it shows ${view.runState}` });
    }
    for (const { operationId, instanceId, state } of await this.#readOperations())
      if (state === 'running') unrest.push({ rule, instanceId, detail: `operation ${operationId} is still open` });
    for (const { name, id, kind } of this.#system.sleds) {
      const sled = sledView.parse(await this.#read(`/v1/system/hardware/sleds/${id}`));
      const away = sled.declared_dead !== null ? 'is declared dead' : sled.provision_state;
      if (away !== 'in_service') unrest.push({ rule, instanceId: null, detail: `${name} ${away}` });
      if (kind === 'fenced' && sled.lease?.standing !== 'held')
        unrest.push({ rule, instanceId: null, detail: `${name} holds no lease` });
    }
    for (const { name, id } of this.#system.retired) {
      const { provision_state: policy } = sledView.parse(await this.#read(`/v1/system/hardware/sleds/${id}`));
      if (policy !== 'expunged') unrest.push({ rule, instanceId: null, detail: `${name} is not expunged yet` });
    }
    unrest.push(...(await this.#findMissingAttributes(temporal)), ...(await this.#findUnrestarted()));
    unrest.push(...(await this.#findGuestsOfTheExpunged()));
    const findings = await this.#examine({ atRest: true, temporal });
    return [...unrest, ...findings.map(asViolation)];
  }

  /** Search attributes that vanished are made again, by whoever needs them. */
  async #findMissingAttributes({ connection, options }: Client): Promise<Violation[]> {
    const { namespace } = options;
    const { customAttributes } = await (connection as Connection).operatorService.listSearchAttributes({ namespace });
    return Object.values(SEARCH_ATTRIBUTES)
      .filter((name) => customAttributes?.[name] === undefined)
      .map((name) => ({ rule: 'search attributes come back', instanceId: null, detail: `${name} is missing` }));
  }

  /** Instances that are to run and to be started again by themselves, are down, and would have room. */
  async #findUnrestarted(): Promise<Violation[]> {
    const found = await this.#database.db.execute(sql`
      SELECT instance.id, instance.state FROM instance LEFT JOIN vmm ON vmm.id = instance.active_vmm_id
      WHERE instance.time_deleted IS NULL AND instance.intended_state = 'running'
        AND coalesce(instance.auto_restart_policy, 'best_effort') <> 'never'
        AND (instance.state = 'failed' OR (instance.last_start_reason = 'auto_restart'
          AND (instance.state = 'no_vmm' OR vmm.state = 'saga_unwound')))
        AND EXISTS (SELECT 1 FROM sled WHERE policy = 'in_service' AND time_declared_dead IS NULL
          AND threads - reserved_threads >= instance.ncpus AND memory_bytes - reserved_memory_bytes >= instance.memory_bytes)`);
    return z
      .array(z.object({ id: z.string(), state: z.string() }))
      .parse(found.rows)
      .map(({ id, state }) => ({
        rule: 'what is to be started again by itself is',
        instanceId: id,
        detail: `it is ${state}`,
      }));
  }

  /** Guests on servers that were expunged and are on all the same. */
  async #findGuestsOfTheExpunged(): Promise<Violation[]> {
    const found: Violation[] = [];
    for (const { name, agentAddress, agent } of this.#system.retired) {
      if (!agent.runs) continue;
      const { status, body } = await this.#send(`http://${agentAddress}`, 'GET', '/vmms', undefined, 5_000);
      // One that gets no lease does not say what it has: it has nothing.
      if (status !== 200) continue;
      for (const vmm of sledInventory.parse(body).vmms)
        if (!isTerminalVmmState(vmm.vmm_state.state))
          found.push({
            rule: 'an expunged sled that is on runs nothing',
            instanceId: vmm.instance_id,
            detail: `VMM ${vmm.vmm_id} is ${vmm.vmm_state.state} on ${name}`,
          });
    }
    return found;
  }

  /** What operators do when the trouble is over: drains end, sleds take instances again, nothing waits for room. */
  async #makeRoom(): Promise<void> {
    const must = (method: 'PUT' | 'DELETE', path: string, body: unknown, statuses: readonly number[]) =>
      this.#system.persist(async (url) => {
        const { status } = await this.#send(url, method, path, body, 20_000);
        if (status === null || !statuses.includes(status)) throw new Error(`${method} ${path}: ${status}`);
      });
    for (const { id } of this.#system.sleds) {
      await must('DELETE', `/v1/system/hardware/sleds/${id}/drain`, undefined, [202, 404]);
      await must('PUT', `/v1/system/hardware/sleds/${id}/provision-policy`, { state: 'provisionable' }, [200]);
    }
    await must('PUT', `/v1/system/projects/${PROJECT}/quota`, { cpus: null, memory: null }, [200]);
    await inParallel([...this.#restarting], (id) =>
      must('PUT', `/v1/instances/${id}`, { auto_restart_cooldown_seconds: 0 }, [200, 404]),
    );
  }

  async #readHappenings(): Promise<Record<string, number>> {
    const { rows } = await this.#database.db.execute(sql`
      SELECT (SELECT coalesce(sum(lease_epoch), 0)::int FROM sled) AS "declared dead",
        (SELECT count(*)::int FROM sled WHERE policy = 'expunged') AS "expunged",
        (SELECT count(*)::int FROM instance WHERE time_last_auto_restarted IS NOT NULL) AS "instances restarted",
        (SELECT count(*)::int FROM sled WHERE lease_epoch > 0 AND time_declared_dead IS NULL) AS "sleds returned"`);
    return {
      ...z.record(z.string(), z.number()).parse(rows[0]),
      'killed by a watchdog': await this.#system.watchdogKills(),
    };
  }

  async #read(path: string): Promise<unknown> {
    return this.#system.persist(async (url) => {
      const { status, body } = await this.#send(url, 'GET', path, undefined, 20_000);
      if (status === 404) return null;
      if (status !== 200) throw new Error(`GET ${path}: ${status ?? 'no answer'}`);
      return body;
    });
  }

  async #readInstances(): Promise<FinalInstance[]> {
    const ids = new Set(this.#calls.map((call) => call.instanceId).filter((id) => id !== null));
    return inParallel([...ids], async (instanceId) => {
      const body = await this.#read(`/v1/instances/${instanceId}`);
      const view = body === null ? null : instanceView.parse(body);
      return {
        instanceId,
        view: view && { runState: view.run_state, ncpus: view.ncpus, memoryBytes: view.memory },
      };
    });
  }

  async #readOperations(): Promise<FinalOperation[]> {
    const followed = new Map<string, string>();
    for (const { operationId, instanceId } of this.#calls)
      if (operationId !== undefined && instanceId !== null) followed.set(operationId, instanceId);
    return inParallel([...followed], async ([operationId, instanceId]) => {
      const body = await this.#read(`/v1/operations/${operationId}`);
      const view = body === null ? null : operationView.parse(body);
      return {
        operationId,
        instanceId,
        state: view?.state ?? null,
        outcome: view?.outcome ?? null,
        endedMs: view?.time_ended == null ? null : Date.parse(view.time_ended) - this.#beganAtMs,
      };
    });
  }

  /**
   * Guests end with their sled agent, and when that powers them off: every instance that had a VMM there then. And they end
   * by a verdict: their sled was declared dead, expunged, or an operator said that it is off.
   */
  async #disturbByVerdictsAndEnds(): Promise<void> {
    const result = await this.#database.db.execute(sql`
      SELECT instance_id, sled_id, failure_reason,
        extract(epoch FROM time_created)::float8 * 1000 AS created_ms,
        extract(epoch FROM time_deleted)::float8 * 1000 AS deleted_ms,
        extract(epoch FROM time_state_updated)::float8 * 1000 AS state_ms
      FROM vmm WHERE sled_id IS NOT NULL`);
    const vmms = z
      .array(
        z.object({
          instance_id: z.string(),
          sled_id: z.string(),
          failure_reason: z.string().nullable(),
          created_ms: z.number(),
          deleted_ms: z.number().nullable(),
          state_ms: z.number(),
        }),
      )
      .parse(result.rows);
    const disturb = (instanceId: string, atMs: number) =>
      this.#disturbed.push({ instanceId, atMs: atMs - this.#beganAtMs });
    for (const vmm of vmms) {
      if (vmm.failure_reason !== null && !FAILED_BY_REPORT.test(vmm.failure_reason))
        disturb(vmm.instance_id, vmm.state_ms);
      for (const { sledId, fromMs, untilMs } of this.#system.ends)
        if (vmm.sled_id === sledId && vmm.created_ms <= untilMs && (vmm.deleted_ms ?? Infinity) >= fromMs)
          disturb(vmm.instance_id, untilMs);
    }
  }
}

function unrestOf(detail: string): Violation {
  return { rule: 'everything comes to rest', instanceId: null, detail };
}

function asViolation(finding: Finding): Violation {
  return {
    rule: `invariant ${finding.invariant}, ${finding.rule}`,
    instanceId: finding.instanceId,
    detail: finding.message,
  };
}

/** Runs work on items, a few at a time, in order of the results. */
async function inParallel<Item, Result>(items: Item[], work: (item: Item) => Promise<Result>): Promise<Result[]> {
  const results: Result[] = new Array(items.length);
  const queue = items.entries();
  const one = async () => {
    for (const [index, item] of queue) results[index] = await work(item);
  };
  await Promise.all(Array.from({ length: 16 }, one));
  return results;
}
