/**
 * What befalls the system: carries out the faults of a plan, and the words and drains of its operators, each of which says
 * what came of it.
 */
import { setTimeout as pause } from 'node:timers/promises';
import { Connection } from '@temporalio/client';
import { sql } from 'drizzle-orm';
import pg from 'pg';
import { z } from 'zod';
import type { Database } from '../../db/connect.ts';
import { SEARCH_ATTRIBUTES } from '../../model/search-attributes.ts';
import { drainView } from '../../wire/operator-api/drains.ts';
import { sledView } from '../../wire/operator-api/sleds.ts';
import { sledInventory } from '../../wire/sled-protocol.ts';
import type { Answer, Caller } from './caller.ts';
import type { GuestEvent } from './history.ts';
import { LEASE_MS, type PlannedFault } from './plan.ts';
import type { SoakSled, SoakSystem } from './system.ts';

/** What a fault needs to know of the run that it comes in. */
export interface Scene {
  readonly system: SoakSystem;
  readonly caller: Caller;
  readonly db: Database;
  /** The instance that has a slot of the plan now. */
  instanceIn(slot: number): string | null;
  /** How long faults may still last, in milliseconds. */
  leftMs(): number;
  now(): number;
  disturbed(event: GuestEvent): void;
  violate(rule: string, instanceId: string | null, detail: string): void;
  /** Stops an instance by force, with the word that its sled is off, and puts the call on record. */
  forceStop(instanceId: string): Promise<number | null>;
}

type Fault<Kind extends PlannedFault['kind']> = Extract<PlannedFault, { kind: Kind }>;

const NOBODY = 'nobody there';
const DONE = 'done';
const SLEDS = '/v1/system/hardware/sleds';
const CALL_MS = 30_000;
/**
 * How long a word about a sled that is off may be refused, in milliseconds: for as long as it holds a lease, with the
 * margin, and then some for a machine that is busy.
 */
const WORD_TIMEOUT_MS = LEASE_MS * 1.5 + 60_000;
/** So often a new connection to PostgreSQL must have been served, a second apart, before an API has to be served too. */
const SERVED_OFTEN_ENOUGH = 45;
/** How many instances are stopped by force at most, when their sled is off. */
const FORCE_STOPPED = 5;

/** The name that a fault is counted by. */
export function faultName(fault: PlannedFault): string {
  switch (fault.kind) {
    case 'kill':
      return `kill ${fault.target}`;
    case 'guest':
      return `guest ${fault.what}`;
    case 'freeze':
      return `freeze ${fault.target}`;
    case 'freeze-postgres':
      return `freeze postgres ${fault.what}`;
    case 'silent-sled':
      return `silent sled, ${fault.how}`;
    case 'word':
      return `${fault.word}, sled ${fault.state}`;
    case 'slip':
      return `${fault.word} without the word`;
    case 'impostor':
      return `impostor ${fault.impostor.status}`;
    default:
      return fault.kind;
  }
}

export class Adversary {
  readonly #scene: Scene;

  constructor(scene: Scene) {
    this.#scene = scene;
  }

  /** Lets a fault happen, and resolves when it is over, with what came of it in a few words. */
  async befall(fault: PlannedFault): Promise<string> {
    const { system } = this.#scene;
    switch (fault.kind) {
      case 'kill':
        return (await system.kill(fault.target, fault.index, fault.downMs)) ? DONE : NOBODY;
      case 'weather': {
        const link = system.sleds[fault.sled]?.[fault.direction];
        link?.setWeather(fault.weather);
        await this.#pass(fault.durationMs);
        link?.setWeather(null);
        return DONE;
      }
      case 'impostor': {
        const link = system.sleds[fault.sled]?.[fault.direction];
        link?.setImpostor(fault.impostor);
        await this.#pass(fault.durationMs);
        link?.setImpostor(null);
        return DONE;
      }
      case 'guest':
        return this.#disturbGuest(fault.what, this.#scene.instanceIn(fault.slot));
      case 'refusal':
        return this.#plant(fault.sled, { call: fault.call, times: 1, act: { type: 'refuse', status: fault.status } });
      case 'migration':
        return this.#plant(fault.sled, { migration: { side: fault.side, point: fault.point } });
      case 'freeze': {
        const { target, index, durationMs } = fault;
        return (await system.freeze(target, index, () => this.#pass(durationMs))) ? DONE : NOBODY;
      }
      case 'freeze-postgres':
        return this.#freezePostgres(fault);
      case 'full-disk':
        return this.#fillDisk(fault);
      case 'attributes':
        return this.#removeAttributes(fault);
      case 'deploy':
        return this.#deploy(fault);
      case 'silent-sled':
        return this.#silence(fault);
      case 'clock':
        return this.#setClock(fault);
      case 'word':
        return this.#giveWord(fault);
      case 'slip':
        return this.#slip(fault);
      case 'drain':
        return this.#drain(fault);
    }
  }

  /** Lets time pass, but none after the end of the faults. */
  #pass(ms: number): Promise<void> {
    return pause(Math.max(0, Math.min(ms, this.#scene.leftMs())));
  }

  #ask(method: 'GET' | 'POST' | 'PUT' | 'DELETE', path: string, body?: unknown): Promise<Answer> {
    const { system, caller } = this.#scene;
    const api = system.anyApi();
    if (api === null) return Promise.resolve({ status: null, body: null, tooLate: false });
    return caller.send(api.url, method, path, body, CALL_MS);
  }

  async #plant(sled: number, planted: unknown): Promise<string> {
    const { system, caller } = this.#scene;
    const at = system.sleds[sled]?.agentAddress;
    const { status } = await caller.send(`http://${at}`, 'POST', '/test/faults', planted, 5_000);
    return status === 204 ? DONE : NOBODY;
  }

  async #disturbGuest(what: Fault<'guest'>['what'], instanceId: string | null): Promise<string> {
    const { system, caller } = this.#scene;
    if (instanceId === null) return NOBODY;
    for (const { agentAddress } of system.sleds) {
      const { status, body } = await caller.send(`http://${agentAddress}`, 'GET', '/vmms', undefined, 5_000);
      if (status !== 200) continue;
      const vmm = sledInventory.parse(body).vmms.find((one) => one.instance_id === instanceId);
      if (vmm === undefined) continue;
      const path = `/test/vmms/${vmm.vmm_id}/${what}`;
      const done = await caller.send(`http://${agentAddress}`, 'POST', path, undefined, 5_000);
      // A guest that halts says so in its log.
      if (what !== 'halt') this.#scene.disturbed({ instanceId, atMs: this.#scene.now() });
      return done.status === 204 ? DONE : NOBODY;
    }
    return NOBODY;
  }

  // --- PostgreSQL ---

  async #freezePostgres({ what, durationMs }: Fault<'freeze-postgres'>): Promise<string> {
    const { system } = this.#scene;
    const pids = what === 'connections' ? await this.#connections() : [];
    if (what === 'connections' && pids.length === 0) return NOBODY;
    let came = DONE;
    const there = await system.freezePostgres(what, pids, async () => {
      if (what !== 'connections') return this.#pass(durationMs);
      const over = new AbortController();
      const watching = this.#watchRecovery(over.signal);
      await this.#pass(durationMs);
      over.abort();
      came = await watching;
    });
    return there ? came : NOBODY;
  }

  /** The processes of the connections that the APIs and workers hold. */
  async #connections(): Promise<number[]> {
    const found = await this.#scene.db
      .execute(
        sql`SELECT pid FROM pg_stat_activity WHERE application_name LIKE 'mooring-%' AND application_name <> 'mooring-soak'`,
      )
      .catch(() => ({ rows: [] }));
    return z
      .array(z.object({ pid: z.number() }))
      .parse(found.rows)
      .map(({ pid }) => pid);
  }

  /**
   * While the connections are frozen that were there, new ones are served, as after a fail-over: so must the API be, once it
   * has given those up. What a frozen process holds may keep new ones waiting too; then nothing is to be learned.
   */
  async #watchRecovery(over: AbortSignal): Promise<string> {
    let servedOtherwise = 0;
    while (!over.aborted) {
      const { status } = await this.#ask('GET', `${SLEDS}?limit=1`);
      if (status === 200 && servedOtherwise > 2) return 'served meanwhile';
      if (await this.#servesNewConnection()) servedOtherwise += 1;
      if (servedOtherwise === SERVED_OFTEN_ENOUGH) {
        this.#scene.violate(
          'connections that hang are given up',
          null,
          `no API had answered when PostgreSQL had served ${SERVED_OFTEN_ENOUGH} new connections beside those that hung`,
        );
        return 'never served';
      }
      await pause(1_000, undefined, { signal: over }).catch(() => {});
    }
    return 'too short to tell';
  }

  async #servesNewConnection(): Promise<boolean> {
    const client = new pg.Client({
      connectionString: this.#scene.system.databaseUrl,
      connectionTimeoutMillis: 2_000,
      query_timeout: 2_000,
    });
    client.on('error', () => {});
    try {
      await client.connect();
      await client.query('SELECT count(*) FROM sled');
      return true;
    } catch {
      return false;
    } finally {
      await Promise.race([client.end().catch(() => {}), pause(1_000)]);
    }
  }

  // --- Temporal ---

  async #removeAttributes({ which, draw }: Fault<'attributes'>): Promise<string> {
    const { temporal } = this.#scene.system;
    const names = Object.values(SEARCH_ATTRIBUTES);
    const searchAttributes = which === 'all' ? names : names.slice(draw % names.length).slice(0, 1);
    const connection = await Connection.connect({ ...temporal.connection, connectTimeout: 2_000 }).catch(() => null);
    if (connection === null) return NOBODY;
    try {
      const call = { namespace: temporal.namespace, searchAttributes };
      await connection.withDeadline(Date.now() + 5_000, () => connection.operatorService.removeSearchAttributes(call));
      return DONE;
    } catch {
      return NOBODY;
    } finally {
      await connection.close();
    }
  }

  async #deploy({ promoteAfterMs }: Fault<'deploy'>): Promise<string> {
    const { system, violate } = this.#scene;
    await system.deploy();
    await this.#pass(promoteAfterMs);
    // While Temporal is killed again and again, its own message to its queues may not arrive: in fair weather it must.
    const late = await system.promote().then(
      () => false,
      () => true,
    );
    if (late) return 'not promoted in time';
    const stuck = await system.endOldBuilds();
    for (const build of stuck)
      violate('a build that is replaced ends what it began', null, `there is still work of ${build}`);
    return 'promoted';
  }

  // --- Sleds ---

  async #fillDisk({ sled: place, durationMs }: Fault<'full-disk'>): Promise<string> {
    const disk = this.#scene.system.sleds[place]?.disk;
    if (disk == null) return NOBODY;
    disk.fill();
    await this.#pass(durationMs);
    await disk.free();
    return DONE;
  }

  async #setClock({ sled: place, shiftMs, durationMs }: Fault<'clock'>): Promise<string> {
    const { system } = this.#scene;
    const sled = system.sleds[place];
    if (sled === undefined) return NOBODY;
    await system.setClock(sled, shiftMs);
    await this.#pass(durationMs);
    await system.setClock(sled, 0);
    return DONE;
  }

  async #silence({ sled: place, how, durationMs }: Fault<'silent-sled'>): Promise<string> {
    const { system } = this.#scene;
    const sled = system.sleds[place];
    if (sled?.agent.ready !== true) return NOBODY;
    const begun = performance.now();
    await system.silence(sled, how);
    await this.#pass(durationMs);
    const view = await this.#viewSled(sled);
    system.restore(sled, how, performance.now() - begun);
    if (view === null) return DONE;
    return view.declared_dead === null ? 'waited for' : `declared dead by ${view.declared_dead.by}`;
  }

  async #viewSled(sled: SoakSled) {
    const { status, body } = await this.#ask('GET', `${SLEDS}/${sled.id}`);
    return status === 200 ? sledView.parse(body) : null;
  }

  /**
   * An operator states that a sled is powered off. That is true where it has no lease; where it has one, the sled may be on:
   * then no guest of it may be started elsewhere before the lease is over, whatever was said. The guests' log judges.
   */
  async #giveWord({ word, state, sled: place, afterMs, returns }: Fault<'word'>): Promise<string> {
    const { system } = this.#scene;
    const sled = system.sleds[place];
    if (sled?.agent.ready !== true) return NOBODY;
    const begun = performance.now();
    if (state !== 'live') await system.silence(sled, state);
    const came = word === 'force-stop' ? await this.#forceStop(sled, state) : await this.#speak(sled, word, state);
    const isGone = word === 'expunge' && came === 'taken';
    // Its place is taken at once, while the old one may be on still.
    if (isGone) await system.replaceSled(sled);
    await this.#pass(afterMs);
    // What was expunged may be switched on again, by mistake: it must hear that it is, and run nothing.
    if (state !== 'live' && (!isGone || returns || state !== 'off'))
      system.restore(sled, state, performance.now() - begun);
    return isGone && returns && state === 'off' ? `${came}, came back` : came;
  }

  async #speak(sled: SoakSled, word: 'declare-dead' | 'expunge', state: string): Promise<string> {
    const end = performance.now() + WORD_TIMEOUT_MS;
    for (;;) {
      const { status, body } = await this.#ask('POST', `${SLEDS}/${sled.id}/${word}`, { sled_powered_off: true });
      if (status === 200) return 'taken';
      // A sled that answers need not be believed to be off; one that is off must be, at the latest when its lease is over.
      if (status === 409 && state === 'live') return 'refused';
      if (status !== null && ![409, 503].includes(status))
        this.#scene.violate('a call has one of its statuses', null, `${word}: ${status} ${JSON.stringify(body)}`);
      if (performance.now() > end) {
        if (status === 409 && state === 'off')
          this.#scene.violate(
            'the word about a sled that is off is taken',
            null,
            `${word} of ${sled.name}: ${status} ${JSON.stringify(body)}`,
          );
        return status === null ? 'no answer' : `refused: ${status}`;
      }
      await pause(1_000);
    }
  }

  async #forceStop(sled: SoakSled, state: string): Promise<string> {
    const found = await this.#scene.db
      .execute(sql`SELECT DISTINCT instance.id FROM instance JOIN vmm ON vmm.id = instance.active_vmm_id
        WHERE vmm.sled_id = ${sled.id} AND vmm.time_deleted IS NULL LIMIT ${FORCE_STOPPED}`)
      .catch(() => ({ rows: [] }));
    const ids = z.array(z.object({ id: z.string() })).parse(found.rows);
    if (ids.length === 0) return NOBODY;
    const answers = await Promise.all(ids.map(({ id }) => this.#scene.forceStop(id)));
    const taken = answers.filter((status) => status === 202).length;
    return taken > 0 ? 'taken' : state === 'live' ? 'refused' : `not taken: ${answers.join(' ')}`;
  }

  /**
   * An operator is mistaken in the sled, and does not state that it is powered off: a sled that answers is never expunged or
   * declared dead so. Its network is fair for as long as that takes.
   */
  async #slip({ word, sled: place }: Fault<'slip'>): Promise<string> {
    const { system, caller } = this.#scene;
    const sled = system.sleds[place];
    if (sled?.agent.ready !== true) return NOBODY;
    sled.commands.heal();
    const probe = () => caller.send(`http://${sled.commands.address}`, 'GET', '/vmms', undefined, 1_000);
    if ((await probe()).status !== 200) return NOBODY;
    const { status, body } = await this.#ask('POST', `${SLEDS}/${sled.id}/${word}`);
    if (status !== 200) return status === null ? 'no answer' : `refused: ${status}`;
    // Had it died, or been busy, at just that moment?
    if ((await probe()).status === 200)
      this.#scene.violate(
        'the word about a sled that answers is not taken',
        null,
        `${word} of ${sled.name}: ${status} ${JSON.stringify(body)}`,
      );
    if (word === 'expunge') {
      await system.silence(sled, 'off');
      await system.replaceSled(sled);
    }
    return 'taken';
  }

  async #drain({ sled: place, parallel, stopAfterMs }: Fault<'drain'>): Promise<string> {
    const sled = this.#scene.system.sleds[place];
    if (sled === undefined) return NOBODY;
    const path = `${SLEDS}/${sled.id}/drain`;
    const begun = await this.#ask('POST', path, { parallel });
    this.#mustBe('drain', begun, [202, 404, 409, 503]);
    const end = performance.now() + Math.min(stopAfterMs ?? Number.POSITIVE_INFINITY, this.#scene.leftMs());
    let state = 'unknown';
    for (;;) {
      const { status, body } = await this.#ask('GET', path);
      state = status === 200 ? drainView.parse(body).state : status === 404 ? NOBODY : 'unknown';
      if ((state !== 'running' && state !== 'unknown') || performance.now() > end) break;
      await pause(500);
    }
    if (state === 'running' || state === 'unknown') {
      this.#mustBe('stop of a drain', await this.#ask('DELETE', path), [202, 404, 503]);
      state = 'stopped by its operator';
    }
    if (state === 'drained') await this.#checkDrained(sled);
    const policy = await this.#ask('PUT', `${SLEDS}/${sled.id}/provision-policy`, { state: 'provisionable' });
    this.#mustBe('set-policy', policy, [200, 404, 409, 503]);
    return state;
  }

  /** A drain that says it is done has left nothing there, as long as nobody put the sled back into service. */
  async #checkDrained(sled: SoakSled): Promise<void> {
    const found = await this.#scene.db
      .execute(sql`SELECT instance.id, vmm.state FROM sled JOIN vmm ON vmm.sled_id = sled.id
        JOIN instance ON vmm.id IN (instance.active_vmm_id, instance.target_vmm_id)
        WHERE sled.id = ${sled.id} AND sled.policy = 'no_provision' AND vmm.state IN ('running', 'rebooting', 'migrating')
          AND vmm.unwinding_since IS NULL AND instance.migration_id IS NULL`)
      .catch(() => ({ rows: [] }));
    for (const { id, state } of z.array(z.object({ id: z.string(), state: z.string() })).parse(found.rows))
      this.#scene.violate('a drained sled runs nothing', id, `its VMM is ${state} on ${sled.name}`);
  }

  #mustBe(call: string, { status, body }: Answer, statuses: readonly number[]): void {
    if (status === null || statuses.includes(status)) return;
    this.#scene.violate('a call has one of its statuses', null, `${call}: ${status} ${JSON.stringify(body)}`);
  }
}
