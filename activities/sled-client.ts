import { Agent, type Dispatcher, request } from 'undici';
import type { z } from 'zod';
import { classifySledAnswer, type SledCommand } from '../model/sled-answer.ts';
import { expectPeer } from '../platform/identity/peer.ts';
import { RenewableAgent } from '../platform/identity/renewable-agent.ts';
import { inCallSpan } from '../platform/telemetry/tracing.ts';
import { describeAnswer, parseJson, readSledError } from '../wire/answer-mark.ts';
import {
  type MigrationProgress,
  type RegisterRequest,
  type SerialConsoleData,
  type SledInventory,
  type SledVmmState,
  serialConsoleData,
  sledInventory,
  sledVmmState,
  type UpdatedRuntime,
  updatedRuntime,
  type VmmCommand,
  vmmStateAnswer,
} from '../wire/sled-protocol.ts';
import type { SledDirectory } from './sled-directory.ts';

/** Where a sled agent is, and what to call it in messages. */
export interface SledAddress {
  readonly name: string;
  /** `ip:port`. */
  readonly address: string;
}

/** How an answer, or the lack of one, is to be taken: see `classifySledAnswer`. */
export type SledErrorKind = 'gone' | 'refused' | 'unavailable';

/** A sled agent did not do what it was asked; the message names the sled, the call and the reason. */
export class SledError extends Error {
  override readonly name = 'SledError';
  readonly kind: SledErrorKind;

  constructor(kind: SledErrorKind, message: string, options?: ErrorOptions) {
    super(message, options);
    this.kind = kind;
  }
}

/** More than any answer of the protocol needs, in bytes; an inventory of some thousand VMMs fits. */
const MAX_ANSWER_BYTES = 16 * 1024 * 1024;

/** Hears of every call to a sled agent: what the answer meant, and how long it took. */
export type SledCallObserver = (
  sled: SledAddress,
  command: SledCommand,
  answer: 'accepted' | SledErrorKind,
  seconds: number,
) => void;

const CONNECTIONS = { connections: 16, keepAliveTimeoutMs: 10_000, connectTimeoutMs: 2_000 };

/** How a call reaches a sled. */
interface Route {
  readonly origin: string;
  readonly dispatcher: Dispatcher;
  /** The agent shows by its certificate that it is this sled. */
  readonly identified: boolean;
}

/**
 * The control plane's side of the sled agent protocol. Sleds without an identity share one pool of connections; one that
 * has joined has its own, over TLS, where the agent must show that it is this sled.
 */
export class SledClient {
  readonly #plain = new Agent({
    connections: CONNECTIONS.connections,
    keepAliveTimeout: CONNECTIONS.keepAliveTimeoutMs,
    connect: { timeout: CONNECTIONS.connectTimeoutMs },
  });
  readonly #identified = new Map<string, RenewableAgent>();
  readonly #observe: SledCallObserver;
  readonly #directory: SledDirectory | null;

  /** `directory` says which sleds have an identity; without one every sled is spoken to in plain HTTP. */
  constructor(observe: SledCallObserver = () => {}, directory: SledDirectory | null = null) {
    this.#observe = observe;
    this.#directory = directory;
    directory?.onChange(() => this.#dropRevoked());
  }

  /** Registers a VMM. Throws a {@link SledError}; `timeoutMs` bounds the call. */
  register(sled: SledAddress, vmmId: string, body: RegisterRequest, timeoutMs: number): Promise<SledVmmState> {
    return this.#call(sled, 'register', 'PUT', `/vmms/${vmmId}`, body, sledVmmState, timeoutMs);
  }

  /** Unregisters a VMM: a known one is killed, and its id stays dead. Only success and `gone` are definitive. */
  unregister(sled: SledAddress, vmmId: string, timeoutMs: number): Promise<UpdatedRuntime> {
    return this.#call(sled, 'unregister', 'DELETE', `/vmms/${vmmId}`, undefined, updatedRuntime, timeoutMs);
  }

  /** Tells a VMM what to do. */
  setState(sled: SledAddress, vmmId: string, state: VmmCommand, timeoutMs: number): Promise<UpdatedRuntime> {
    return this.#call(sled, 'state', 'PUT', `/vmms/${vmmId}/state`, { state }, updatedRuntime, timeoutMs);
  }

  /** Asks for a VMM's state. */
  readState(sled: SledAddress, vmmId: string, timeoutMs: number): Promise<SledVmmState> {
    return this.#call(sled, 'read', 'GET', `/vmms/${vmmId}/state`, undefined, sledVmmState, timeoutMs);
  }

  /** Asks how far a VMM's migration is, or how it ended; `null` where its agent doesn't say. */
  async readProgress(sled: SledAddress, vmmId: string, timeoutMs: number): Promise<MigrationProgress | null> {
    const path = `/vmms/${vmmId}/state`;
    return (
      (await this.#call(sled, 'read', 'GET', path, undefined, vmmStateAnswer, timeoutMs)).migration_progress ?? null
    );
  }

  /** Asks for a piece of a VMM's serial console; a negative offset counts from the end. */
  readConsole(
    sled: SledAddress,
    vmmId: string,
    { fromOffset, maxBytes }: { fromOffset: number; maxBytes: number },
    timeoutMs: number,
  ): Promise<SerialConsoleData> {
    const path = `/vmms/${vmmId}/serial-console?from_start=${fromOffset}&max_bytes=${maxBytes}`;
    return this.#call(sled, 'read', 'GET', path, undefined, serialConsoleData, timeoutMs);
  }

  /** Asks for all that a sled has. */
  readInventory(sled: SledAddress, timeoutMs: number): Promise<SledInventory> {
    return this.#call(sled, 'read', 'GET', '/vmms', undefined, sledInventory, timeoutMs);
  }

  /**
   * Whether an agent answers at a sled's address, whatever it says: then the sled is powered on. A connection that is
   * refused is no agent's answer: it says nothing of the guests. Nor is one by somebody else, such as a proxy that says that
   * nobody is there; but whoever shows the sled's own certificate is the sled. Never throws.
   */
  async answers(sled: SledAddress, timeoutMs: number): Promise<boolean> {
    try {
      const { origin, dispatcher, identified } = await this.#routeTo(sled);
      const { statusCode, body } = await request(`${origin}/vmms`, {
        dispatcher,
        signal: AbortSignal.timeout(timeoutMs),
      });
      if (identified) {
        await body.dump().catch(() => {});
        return true;
      }
      const text = await readLimited(body);
      return statusCode >= 200 && statusCode < 300
        ? sledInventory.safeParse(parseJson(text)).success
        : statusCode >= 400 && readSledError(text) !== null;
    } catch {
      return false;
    }
  }

  /** Cuts every connection. */
  async close(): Promise<void> {
    await Promise.all([this.#plain.destroy(), ...[...this.#identified.values()].map((agent) => agent.destroy())]);
    this.#identified.clear();
  }

  async #routeTo(sled: SledAddress): Promise<Route> {
    const sledId = (await this.#directory?.identityAt(sled.address)) ?? null;
    if (this.#directory === null || sledId === null)
      return { origin: `http://${sled.address}`, dispatcher: this.#plain, identified: false };
    // By the sled, not only by its address: another one may come to live there.
    const key = `${sledId} ${sled.address}`;
    let agent = this.#identified.get(key);
    if (agent === undefined) {
      const directory = this.#directory;
      agent = new RenewableAgent(directory.holder, {
        ...CONNECTIONS,
        checkServerIdentity: expectPeer(
          `sled "${sled.name}"`,
          (identity, serial) => identity.kind === 'sled' && identity.sledId === sledId && !directory.isRevoked(serial),
        ),
      });
      this.#identified.set(key, agent);
    }
    return { origin: `https://${sled.address}`, dispatcher: agent.dispatcher, identified: true };
  }

  /** After a change in the directory every connection is made anew: each shows again that it is good. */
  #dropRevoked(): void {
    for (const agent of this.#identified.values()) agent.retire();
    this.#identified.clear();
  }

  async #call<Answer>(
    sled: SledAddress,
    command: SledCommand,
    method: 'GET' | 'PUT' | 'DELETE',
    path: string,
    body: unknown,
    schema: z.ZodType<Answer>,
    timeoutMs: number,
  ): Promise<Answer> {
    const begun = performance.now();
    let answer: 'accepted' | SledErrorKind = 'unavailable';
    try {
      const value = await inCallSpan(
        `sled ${method} ${path.replace(/[0-9a-f-]{36}/, '{vmm_id}')}`,
        { 'mooring.sled': sled.name, 'server.address': sled.address, 'url.path': path },
        (headers) => this.#send(sled, command, method, path, body, schema, timeoutMs, headers),
      );
      answer = 'accepted';
      return value;
    } catch (error) {
      if (error instanceof SledError) answer = error.kind;
      throw error;
    } finally {
      this.#observe(sled, command, answer, (performance.now() - begun) / 1000);
    }
  }

  async #send<Answer>(
    sled: SledAddress,
    command: SledCommand,
    method: 'GET' | 'PUT' | 'DELETE',
    path: string,
    body: unknown,
    schema: z.ZodType<Answer>,
    timeoutMs: number,
    traceHeaders: Record<string, string>,
  ): Promise<Answer> {
    const what = `sled "${sled.name}" (${sled.address}): ${method} ${path}`;
    let status: number;
    let text: string;
    try {
      const { origin, dispatcher } = await this.#routeTo(sled);
      const response = await request(`${origin}${path}`, {
        method,
        dispatcher,
        headers: { ...traceHeaders, ...(body === undefined ? {} : { 'content-type': 'application/json' }) },
        ...(body === undefined ? {} : { body: JSON.stringify(body) }),
        headersTimeout: timeoutMs,
        bodyTimeout: timeoutMs,
        signal: AbortSignal.timeout(timeoutMs),
      });
      status = response.statusCode;
      text = await readLimited(response.body);
    } catch (error) {
      throw new SledError('unavailable', `${what}: no answer (${reasonOf(error)})`, { cause: error });
    }
    const error = readSledError(text);
    const { error_code, message } = error ?? {};
    switch (classifySledAnswer(command, status, error_code)) {
      case 'accepted': {
        const answer = schema.safeParse(parseJson(text));
        if (answer.success) return answer.data;
        throw new SledError('unavailable', `${what}: answered ${status} with what the protocol does not know`);
      }
      case 'gone':
        throw new SledError('gone', `${what}: the sled does not know this VMM (${status} ${error_code})`);
      case 'refused':
        throw new SledError('refused', `${what}: refused with ${describe(status, error_code, message)}`);
      case 'retry':
        if (error !== null)
          throw new SledError('unavailable', `${what}: answered ${describe(status, error_code, message)}`);
        throw new SledError(
          'unavailable',
          `${what}: what answers there is no sled agent (${describeAnswer({ status, text })})`,
        );
    }
  }
}

async function readLimited(body: AsyncIterable<Buffer>): Promise<string> {
  const chunks: Buffer[] = [];
  let length = 0;
  for await (const chunk of body) {
    length += chunk.length;
    if (length > MAX_ANSWER_BYTES) throw new Error(`the answer is longer than ${MAX_ANSWER_BYTES} bytes`);
    chunks.push(chunk);
  }
  return Buffer.concat(chunks).toString('utf8');
}

function describe(status: number, errorCode: string | undefined, message: string | undefined): string {
  return [status, errorCode, message === undefined ? undefined : JSON.stringify(message.slice(0, 300))]
    .filter((part) => part !== undefined)
    .join(' ');
}

function reasonOf(error: unknown): string {
  if (!(error instanceof Error)) return String(error);
  if (error.name === 'TimeoutError') return 'it took too long';
  const { code } = error as { code?: unknown };
  return typeof code === 'string' ? code : error.message;
}
