/**
 * The sled agent's side of its lease (section 10 of docs/design.md): renews it, and powers every guest off when it has lapsed.
 * A lease lasts from the moment at which the renewal was sent, by the monotonic clock. It is renewed only while a watchdog
 * watches, which does the same if this process can't.
 *
 * The watchdog hears each lease twice: from the file, and from this process, so that a disk that fails costs no guest its
 * life. That there is a lease must be on disk before it counts, for the agent that is started after this one; that it was
 * extended need not: that agent would count an earlier end.
 */
import { type ChildProcess, spawn } from 'node:child_process';
import { join } from 'node:path';
import { setTimeout as pause } from 'node:timers/promises';
import { request } from 'undici';
import type { z } from 'zod';
import { RENEWALS_PER_LEASE } from '../model/lease.ts';
import { processDescriptors } from '../platform/host/descriptor-reserve.ts';
import { ownModule } from '../platform/host/own-module.ts';
import { withLimit } from '../platform/host/with-limit.ts';
import { type ControlPlaneAnswer, readControlPlaneAnswer } from '../wire/answer-mark.ts';
import {
  type LeaseRenewal,
  leaseGranted,
  leaseRefused,
  SLED_DECLARED_DEAD,
  sledIdentity,
} from '../wire/lease-protocol.ts';
import { AGENT_ID_HEADER, SLED_EXPUNGED } from '../wire/sled-protocol.ts';
import { type ControlPlaneConnections, plainConnections } from './control-plane-connections.ts';
import type { Disk } from './disk.ts';
import { bootId, type LeaseFile, LeaseWriter, monotonicMs, readLease } from './lease-file.ts';

export interface LeaseKeeperOptions {
  readonly controlPlaneUrl: string;
  readonly sledName: string;
  /** Asked for by its name where it is not given, and remembered. */
  readonly sledId?: string | undefined;
  readonly leaseMs: number;
  /** To the control plane, the keeper's from then on; in plain HTTP by default. */
  readonly connections?: ControlPlaneConnections | undefined;
  /** Where the lease is written down; made where it isn't there. */
  readonly directory: string;
  readonly disk: Disk;
  /** The folder below which the VMs' processes work (a real path); `null` where they are a part of this process. */
  readonly vmsFolder: string | null;
  readonly guestLogFile?: string | undefined;
  /** The agent's id, which renewals carry; by default they carry none. */
  readonly agentId?: (() => string | null) | undefined;
  /** The VMMs that live here now. */
  readonly living: () => string[];
  /** Powers off every guest; resolves when none executes any more. */
  readonly powerOff: () => Promise<void>;
  /** The control plane has said that this sled was expunged. Resolves when its guests are off. */
  readonly onExpunged: (sledId: string) => Promise<void>;
  readonly onTrouble: (message: string) => void;
}

const LEASE_FILE = 'lease.json';
/** How long a watchdog may take to come up before another one is tried, in milliseconds. */
const WATCHDOG_UP_MS = 30_000;
const WATCHDOG = ownModule(import.meta.url, './watchdog');

/** Where a sled agent with this data keeps its lease. */
export function leasePath(directory: string): string {
  return join(directory, LEASE_FILE);
}

export class LeaseKeeper {
  readonly #options: LeaseKeeperOptions;
  readonly #path: string;
  readonly #writer: LeaseWriter;
  readonly #bootId = bootId();
  /** Whether the file says that there is a lease of this boot, which ends sooner or later. */
  #endIsOnDisk: boolean;
  readonly #connections: ControlPlaneConnections;
  readonly #stopped = new AbortController();
  #sledId: string | null;
  #epoch: number | null;
  /** When this agent's lease ends, by the monotonic clock. */
  #endsAtMs = Number.NEGATIVE_INFINITY;
  /** When every guest is powered off: at the end of the lease, at first of the one that an earlier agent left. */
  #powerOffAtMs: number | null = null;
  #lapse: NodeJS.Timeout | undefined;
  #poweringOff: Promise<void> | null = null;
  #watchdog: { readonly child: ChildProcess; readonly ready: Promise<boolean> } | null = null;
  #renewing: Promise<void> | null = null;
  #trouble: string | null = null;
  #firstHeld: () => void = () => {};
  /** Resolves when a lease is held for the first time. */
  readonly firstHeld = new Promise<void>((resolve) => {
    this.#firstHeld = resolve;
  });

  /** Throws when the directory can't be made, or a lease in it can't be read; a `DiskError` where that may pass. */
  constructor(options: LeaseKeeperOptions) {
    this.#options = options;
    this.#connections = options.connections ?? plainConnections(2);
    options.disk.makeFolder(options.directory);
    this.#path = leasePath(options.directory);
    const earlier = readLease(this.#path);
    this.#writer = new LeaseWriter(options.disk, this.#path, earlier);
    // Where there is one already it need not be written before the first renewal.
    if (earlier === null) this.#writer.open();
    this.#endIsOnDisk = earlier !== null && earlier.bootId === this.#bootId && earlier.endsAtMs !== null;
    this.#sledId = options.sledId ?? earlier?.sledId ?? null;
    this.#epoch = earlier?.epoch ?? null;
    if (earlier !== null && earlier.bootId === this.#bootId) this.#powerOffAtMs = earlier.endsAtMs;
  }

  /** Whether the lease lasts at this moment, and nothing is being powered off. */
  get held(): boolean {
    return this.#poweringOff === null && monotonicMs() < this.#endsAtMs;
  }

  /**
   * Begins to renew, for ever. The lease that an earlier agent left counts for its guests until a renewal succeeds: where it
   * lapsed meanwhile, everything is powered off before a watchdog comes that would have to kill this agent for it.
   */
  start(): void {
    if (this.#powerOffAtMs !== null) this.#watchForLapse();
    this.#renewing = this.#renewForEver();
  }

  /** Ends. The lease still counts for guests that live on, unless `nothingLives`. */
  async stop(nothingLives: boolean): Promise<void> {
    this.#stopped.abort();
    clearTimeout(this.#lapse);
    await this.#connections.destroy();
    await this.#renewing;
    await this.#poweringOff;
    if (nothingLives) this.#settle(null);
    this.#options.disk.forget('the lease');
    this.#writer.close();
    // The watchdog's standard input ends: it ends too where nothing is left to watch, and else when the lease does.
    this.#watchdog?.child.stdin?.destroy();
  }

  async #renewForEver(): Promise<void> {
    const { leaseMs } = this.#options;
    while (!this.#stopped.signal.aborted) {
      const sentAtMs = monotonicMs();
      const outcome = await this.#renewOnce().catch((error: unknown) => {
        this.#logTrouble(`the lease was not renewed: ${error instanceof Error ? error.message : error}`);
        return 'failed' as const;
      });
      const waitMs =
        outcome === 'renewed'
          ? leaseMs / RENEWALS_PER_LEASE - (monotonicMs() - sentAtMs)
          : outcome === 'begun' || outcome === 'powered-off'
            ? 0
            : (leaseMs / 12) * (0.75 + Math.random() / 2);
      await pause(Math.max(0, waitMs), undefined, { signal: this.#stopped.signal }).catch(() => {});
    }
  }

  /**
   * Sends one renewal. `begun`: the first of a lease, to be confirmed by another, so that the control plane knows of it.
   * Throws when the lease was not renewed.
   */
  async #renewOnce(): Promise<'begun' | 'renewed' | 'powered-off'> {
    const { leaseMs } = this.#options;
    // Where an earlier agent's lease has lapsed, its guests are off before a watchdog comes that reads that lease.
    await this.#poweringOff;
    await processDescriptors.use(() => this.#requireWatchdog());
    // Guests that are being powered off must not be reported to live, nor a lease be held meanwhile.
    await this.#poweringOff;
    const sledId = await this.#findSledId();
    const { held } = this;
    const renewal: LeaseRenewal = { lease_ms: leaseMs, held, epoch: this.#epoch, vmms: this.#options.living() };
    const sentAtMs = monotonicMs();
    const answer = await this.#call('PUT', `/sleds/${sledId}/lease`, leaseGranted, renewal);
    if (answer.kind === 'done') {
      this.#epoch = answer.value.epoch;
      await this.#extend(sentAtMs + leaseMs);
      return held ? 'renewed' : 'begun';
    }
    const { status: statusCode } = answer;
    const {
      error_code: code,
      message,
      epoch,
    } = leaseRefused.safeParse(answer.error).data ?? { ...answer.error, epoch: null };
    if (statusCode === 409 && code === SLED_DECLARED_DEAD && typeof epoch === 'number') {
      this.#options.onTrouble(`this sled was declared dead: its guests are powered off`);
      this.#epoch = epoch;
      await this.#powerOff();
      return 'powered-off';
    }
    if (code === SLED_EXPUNGED && statusCode < 500) {
      await this.#options.onExpunged(sledId);
      // Its lease ends with it, and whatever else runs on it.
      if (this.#powerOffAtMs !== null || this.#options.living().length > 0) await this.#powerOff();
      throw new Error(message);
    }
    throw new Error(`the control plane answered ${statusCode}: ${message}`);
  }

  /** Extends the lease: the watchdog can read the new end before this agent counts on it. */
  async #extend(endsAtMs: number): Promise<void> {
    // The lease lapsed while the renewal was on its way: the guests are off before a new lease begins.
    await this.#poweringOff;
    if (endsAtMs <= monotonicMs()) throw new Error('the answer came after the lease that it grants was over');
    const end = Math.max(endsAtMs, this.#endsAtMs);
    const lease = this.#makeLease(end);
    if (!this.#write(lease) && !this.#endIsOnDisk)
      throw new Error("the lease can't be written down, and the disk knows of none before it");
    this.#tell(lease);
    this.#endsAtMs = end;
    this.#powerOffAtMs = end;
    this.#trouble = null;
    this.#firstHeld();
    this.#watchForLapse();
  }

  #watchForLapse(): void {
    clearTimeout(this.#lapse);
    if (this.#stopped.signal.aborted || this.#powerOffAtMs === null) return;
    const leftMs = this.#powerOffAtMs - monotonicMs();
    if (leftMs > 0) {
      this.#lapse = setTimeout(() => this.#watchForLapse(), Math.ceil(leftMs));
      return;
    }
    this.#options.onTrouble('the lease has lapsed: every guest is powered off');
    void this.#powerOff();
  }

  #powerOff(): Promise<void> {
    this.#endsAtMs = Number.NEGATIVE_INFINITY;
    this.#poweringOff ??= this.#options
      .powerOff()
      .then(() => {
        this.#powerOffAtMs = null;
        this.#settle(null);
      })
      .catch((error: unknown) => {
        // The watchdog sees that nobody wrote that all is off, and kills this process.
        this.#options.onTrouble(
          `not every guest could be powered off: ${error instanceof Error ? error.message : error}`,
        );
      })
      .finally(() => {
        this.#poweringOff = null;
      });
    return this.#poweringOff;
  }

  /** A lease at whose end everything is powered off; `null` where nothing is left that could be. */
  #makeLease(endsAtMs: number | null): LeaseFile {
    return this.#writer.number({
      bootId: this.#bootId,
      endsAtMs,
      leaseMs: this.#options.leaseMs,
      sledId: this.#sledId,
      epoch: this.#epoch,
      agentPid: process.pid,
    });
  }

  /** Writes a lease down. Returns whether it is on disk: what keeps it from being there is the disk's trouble. */
  #write(lease: LeaseFile): boolean {
    try {
      this.#writer.write(lease);
      this.#endIsOnDisk = lease.endsAtMs !== null;
      return true;
    } catch {
      return false;
    }
  }

  #tell(lease: LeaseFile): void {
    this.#watchdog?.child.stdin?.write(`${JSON.stringify(lease)}\n`);
  }

  /** Tells and writes down what is so in any case: when it can be written, unless there is something newer then. */
  #settle(endsAtMs: number | null): void {
    const lease = this.#makeLease(endsAtMs);
    this.#tell(lease);
    this.#options.disk.eventually('the lease', () => {
      if (this.#writer.sequence === lease.sequence && !this.#write(lease)) throw new Error('it is not written down');
    });
  }

  async #findSledId(): Promise<string> {
    if (this.#sledId !== null) return this.#sledId;
    const { sledName } = this.#options;
    const answer = await this.#call('GET', `/sleds/by-name/${encodeURIComponent(sledName)}`, sledIdentity);
    if (answer.kind === 'refused') {
      const { status, error } = answer;
      if (status === 404) throw new Error(`there is no sled "${sledName}" yet: add it with "mooring sled add"`);
      throw new Error(`the control plane answered ${status}: ${error.message}`);
    }
    this.#sledId = answer.value.sled_id;
    return this.#sledId;
  }

  /** Calls the control plane. Throws where it gave no answer, or somebody else did. */
  async #call<Value>(
    method: 'GET' | 'PUT',
    path: string,
    schema: z.ZodType<Value>,
    sent?: unknown,
  ): Promise<Exclude<ControlPlaneAnswer<Value>, { kind: 'none' }>> {
    // Short enough that another attempt, and one more, can succeed within the lease.
    const limitMs = Math.min(5_000, this.#options.leaseMs / 4);
    const agentId = this.#options.agentId?.() ?? null;
    const shown: Record<string, string> = agentId === null ? {} : { [AGENT_ID_HEADER]: agentId };
    const send = async (signal: AbortSignal) => {
      const answer = await request(`${this.#options.controlPlaneUrl}${path}`, {
        method,
        dispatcher: this.#connections.dispatcher,
        signal,
        ...(sent === undefined
          ? { headers: shown }
          : { headers: { ...shown, 'content-type': 'application/json' }, body: JSON.stringify(sent) }),
      });
      return { status: answer.statusCode, text: await answer.body.text() };
    };
    // Within one limit both tries, where there was no descriptor for the first.
    const received = await withLimit(limitMs, this.#stopped.signal, (signal) =>
      processDescriptors.use(() => send(signal)),
    );
    const read = readControlPlaneAnswer(received, schema);
    if (read.kind === 'none') throw new Error(`what answers there is not the control plane: ${read.why}`);
    return read;
  }

  async #requireWatchdog(): Promise<void> {
    if (!(await this.#watched())) throw new Error('no watchdog comes up');
  }

  /** Whether a watchdog watches; starts one where none does. */
  async #watched(): Promise<boolean> {
    this.#watchdog ??= this.#startWatchdog();
    const { child, ready } = this.#watchdog;
    if (await ready) return true;
    if (this.#watchdog?.child === child) this.#watchdog = null;
    child.kill('SIGKILL');
    return false;
  }

  #startWatchdog() {
    const { directory, vmsFolder, guestLogFile } = this.#options;
    const log = this.#openLog(join(directory, 'watchdog.log'));
    const child = spawn(
      process.execPath,
      [
        ...WATCHDOG,
        ...['--lease', this.#path, '--agent-pid', String(process.pid), '--sequence', String(this.#writer.sequence)],
        ...(vmsFolder === null ? [] : ['--vms', vmsFolder]),
        ...(guestLogFile === undefined ? [] : ['--guest-log', guestLogFile]),
      ],
      { detached: true, stdio: ['pipe', 'pipe', log ?? 'ignore'] },
    );
    if (log !== null) this.#options.disk.close(log);
    child.unref();
    child.stdin?.on('error', () => {});
    // There are none where the process could not be made for want of file descriptors.
    for (const stream of [child.stdin, child.stdout]) (stream as unknown as { unref?: () => void } | null)?.unref?.();
    let wasUp = false;
    const ready = new Promise<boolean>((resolve) => {
      child.stdout?.once('data', () => {
        wasUp = true;
        resolve(true);
      });
      child.once('error', () => resolve(false));
      child.once('exit', () => {
        resolve(false);
        if (this.#watchdog?.child !== child) return;
        this.#watchdog = null;
        if (this.#stopped.signal.aborted) return;
        this.#options.onTrouble('the watchdog has ended: another one is started');
        if (wasUp) this.#watchdog = this.#startWatchdog();
      });
      setTimeout(() => resolve(false), WATCHDOG_UP_MS).unref();
    });
    // With this agent's id in the lease, the watchdog of an earlier agent ends: this one is up.
    void ready
      .then((up) => {
        if (up && this.#poweringOff === null) this.#settle(this.#powerOffAtMs);
      })
      .catch((error: unknown) => this.#logTrouble(`the lease can't be written down: ${error}`));
    return { child, ready };
  }

  /** A watchdog watches with or without a log. */
  #openLog(path: string): number | null {
    try {
      return this.#options.disk.openToAppend(path, false);
    } catch {
      return null;
    }
  }

  /** Passes on what is in the way, once for as long as it is the same. */
  #logTrouble(message: string): void {
    if (this.#stopped.signal.aborted || message === this.#trouble) return;
    this.#trouble = message;
    this.#options.onTrouble(message);
  }
}
