import { setTimeout as pause } from 'node:timers/promises';
import { request } from 'undici';
import { processDescriptors } from '../platform/host/descriptor-reserve.ts';
import { withLimit } from '../platform/host/with-limit.ts';
import { readControlPlaneAnswer } from '../wire/answer-mark.ts';
import { type NetworkEntry, networkPage } from '../wire/network-protocol.ts';
import { type ControlPlaneConnections, plainConnections, saysExpunged } from './control-plane-connections.ts';

const CALL_MS = 5_000;
/** The longest pause after a failure, in milliseconds, where polling itself is not slower. */
const MAX_PAUSE_MS = 10_000;

/** Whom the table speaks for, and who hears that it was expunged. */
export interface NetworkSubscriber {
  /** The sleds whose VMMs live here. */
  readonly sledIds: () => readonly string[];
  /** The control plane has said that this sled was expunged; `null`: the one that the connection shows. */
  readonly onExpunged: (sledId: string | null) => void;
}

const NOBODY: NetworkSubscriber = { sledIds: () => [], onExpunged: () => {} };

/**
 * What a sled knows of where instances live, kept by polling the control plane. While it can't be reached the table stays
 * as it is, and everything else on the sled goes on.
 */
export class NetworkTable {
  readonly #url: string;
  readonly #everyMs: number;
  readonly #connections: ControlPlaneConnections;
  readonly #stopped = new AbortController();
  readonly #running: Promise<void>;
  readonly #subscriber: NetworkSubscriber;
  /** Counts the polls: each names one of its sleds, in turn. */
  #polls = 0;
  #entries = new Map<string, NetworkEntry>();
  #passes = 0;

  /**
   * Polls `controlPlaneUrl` every `everyMs` milliseconds until stopped; 0 never does. `connections` are the table's from
   * then on; in plain HTTP by default.
   */
  constructor(
    controlPlaneUrl: string,
    everyMs: number,
    connections: ControlPlaneConnections | null = null,
    subscriber: NetworkSubscriber = NOBODY,
  ) {
    this.#subscriber = subscriber;
    this.#url = controlPlaneUrl;
    this.#connections = connections ?? plainConnections(1);
    this.#everyMs = everyMs;
    this.#running = everyMs === 0 ? Promise.resolve() : this.#run();
  }

  /** Where each instance lives, by its id; an instance that lives nowhere is not in it. */
  get entries(): ReadonlyMap<string, NetworkEntry> {
    return this.#entries;
  }

  /** How many times the table has been brought up to date. */
  get passes(): number {
    return this.#passes;
  }

  /** Ends at once. */
  async stop(): Promise<void> {
    this.#stopped.abort();
    await this.#connections.destroy();
    await this.#running;
  }

  async #run(): Promise<void> {
    const { signal } = this.#stopped;
    let after: string | null = null;
    let failures = 0;
    /** What a list from nothing has given so far: it replaces the table when it is whole. */
    let fresh: Map<string, NetworkEntry> | null = null;
    while (!signal.aborted) {
      try {
        const page = await this.#poll(after);
        if (page.reset) fresh = new Map();
        for (const entry of page.items) apply(fresh ?? this.#entries, entry);
        after = page.next;
        failures = 0;
        if (page.more) continue;
        if (fresh !== null) this.#entries = fresh;
        fresh = null;
        this.#passes += 1;
      } catch (error) {
        // A cursor that the control plane does not take is given up; anything else is tried again from the same place.
        if (error instanceof CursorRefused) after = null;
        failures += 1;
      }
      const waitMs =
        failures === 0 ? this.#everyMs : Math.max(this.#everyMs, Math.min(MAX_PAUSE_MS, 100 * 2 ** failures));
      // Spread, so that the sleds of a rack don't all come at once.
      await pause(waitMs * (0.75 + Math.random() / 2), undefined, { signal, ref: false }).catch(() => {});
    }
  }

  async #poll(after: string | null) {
    const sledIds = this.#subscriber.sledIds();
    const sledId = sledIds[this.#polls++ % Math.max(1, sledIds.length)] ?? null;
    const query = new URLSearchParams({
      ...(after === null ? {} : { after }),
      ...(sledId === null ? {} : { sled_id: sledId }),
    });
    const send = async (signal: AbortSignal) => {
      const { statusCode: status, body } = await request(`${this.#url}/network/instances?${query}`, {
        dispatcher: this.#connections.dispatcher,
        signal,
      });
      return { status, text: await body.text() };
    };
    const received = await processDescriptors.use(() => withLimit(CALL_MS, this.#stopped.signal, send));
    const read = readControlPlaneAnswer(received, networkPage);
    if (read.kind === 'done') return read.value;
    if (read.kind === 'none') throw new Error(`what answers there is not the control plane: ${read.why}`);
    if (saysExpunged(read)) this.#subscriber.onExpunged(sledId);
    if (read.status === 400 && after !== null) throw new CursorRefused();
    throw new Error(`the control plane answered ${read.status}: ${read.error.message}`);
  }
}

class CursorRefused extends Error {
  override readonly name = 'CursorRefused';
}

function apply(entries: Map<string, NetworkEntry>, entry: NetworkEntry): void {
  const known = entries.get(entry.instance_id);
  if (known !== undefined && known.generation >= entry.generation) return;
  if (entry.vmm_id === null) entries.delete(entry.instance_id);
  else entries.set(entry.instance_id, entry);
}
