import type { LookupFunction } from 'node:net';
import { connect } from 'node:tls';
import { Agent, type Dispatcher, request } from 'undici';
import { z } from 'zod';
import { classifySledAnswer, type SledCommand } from '../model/sled-answer.ts';
import { nameLookups } from '../platform/host/name-lookups.ts';
import { expectPeer } from '../platform/identity/peer.ts';
import { RenewableAgent } from '../platform/identity/renewable-agent.ts';
import { inCallSpan } from '../platform/telemetry/tracing.ts';
import { describeAnswer, isAgentsError, parseJson, readSledError } from '../wire/answer-mark.ts';
import {
  type AgentDescription,
  ANOTHER_INSTALLATION,
  agentDescription,
  agentShownIn,
  INSTALLATION_HEADER,
  type MigrationProgress,
  type RegisterRequest,
  type SerialConsoleData,
  type SledInventory,
  type SledVmmState,
  serialConsoleData,
  sledInventory,
  sledVmmState,
  splitAddress,
  type UpdatedRuntime,
  updatedRuntime,
  type VmmCommand,
  vmmStateAnswer,
} from '../wire/sled-protocol.ts';
import { asking, isAnswer, isSilence, isTimeLimit } from './silence.ts';
import { type SledDirectory, UnknownAddress } from './sled-directory.ts';

/** Where a sled agent is, and what to call it in messages. */
export interface SledAddress {
  readonly name: string;
  /** `ip:port`. */
  readonly address: string;
  /** The id that its agent keeps with its data: nobody with another one speaks for it. `null`: none is known. */
  readonly keptAgentId: string | null;
}

/**
 * A sled that is spoken to although it was expunged: only to hear what it still has, and to end that. `identified`: its
 * agent must show that it is that sled, though its certificate is good for nothing else.
 */
export interface ExpungedSledAddress extends SledAddress {
  readonly id: string;
  readonly identified: boolean;
  readonly expunged: true;
}

/** A sled that is only asked for a sign of life. `identified`: it has joined, whether or not its certificate is good. */
export interface ProbedSled extends SledAddress {
  readonly identified?: boolean | undefined;
}

/** How an answer, or the lack of one, is to be taken: see `classifySledAnswer`. */
export type SledErrorKind = 'gone' | 'refused' | 'unavailable';

/** A sled agent did not do what it was asked; the message names the sled, the call and the reason. */
export class SledError extends Error {
  override readonly name = 'SledError';
  readonly kind: SledErrorKind;
  /**
   * Whether the sled's agent said anything at all. `null`: nobody can say, since the call was not made, or its time was too
   * short for one that is slow.
   */
  readonly answered: boolean | null;

  constructor(
    kind: SledErrorKind,
    message: string,
    { answered = kind !== 'unavailable', ...options }: ErrorOptions & { answered?: boolean | null } = {},
  ) {
    super(message, options);
    this.kind = kind;
    this.answered = answered;
  }
}

/** Somebody answers who is no sled agent. */
export class NoAgent extends SledError {}

/** This process could not ask: nothing is known of who would have answered. It can be tried again. */
export class CannotAsk extends SledError {
  constructor({ name, address }: SledAddress, cause: unknown) {
    super(
      'unavailable',
      `sled "${name}" (${address}) can't be asked at the moment, for a reason of this process, not of the sled (${reasonOf(cause)}): try again`,
      { cause, answered: null },
    );
  }
}

/** An agent answered that is not the sled's own: what it said is no word of that sled's. */
export class AnotherAgent extends SledError {}

/** The agent takes the orders of another installation: of this one's VMMs it has said nothing. */
export class AnotherInstallation extends SledError {}

/** A sled that has had so long, in milliseconds, and gave no answer is silent; one that had less may be slow. */
const SLOW_MS = 2_500;

/** More than any answer of the protocol needs, in bytes; an inventory of some thousand VMMs fits. */
const MAX_ANSWER_BYTES = 16 * 1024 * 1024;

/** Hears of every call to a sled agent: what the answer meant, and how long it took. */
export type SledCallObserver = (
  sled: SledAddress,
  command: SledCommand,
  answer: 'accepted' | SledErrorKind,
  seconds: number,
  /** See {@link SledError.answered}. */
  answered: boolean | null,
) => void;

/** Who an agent said it is, with an answer or when it was asked; `undefined`: it didn't. */
type ShownAgent = string | undefined;

const lookup = nameLookups();
const CONNECTIONS = { connections: 16, keepAliveTimeoutMs: 10_000, connectTimeoutMs: 2_000, lookup };

/** How a call reaches a sled. */
interface Route {
  readonly origin: string;
  readonly dispatcher: Dispatcher;
  /** Its certificate proves that it is the sled: more than its agent's id does. */
  readonly proved: boolean;
}

/**
 * The control plane's side of the sled agent protocol. Sleds without an identity share one pool of connections; one that
 * has joined has its own, over TLS, where the agent must show that it is this sled.
 */
export class SledClient {
  readonly #plain = new Agent({
    connections: CONNECTIONS.connections,
    keepAliveTimeout: CONNECTIONS.keepAliveTimeoutMs,
    connect: { timeout: CONNECTIONS.connectTimeoutMs, lookup },
  });
  readonly #identified = new Map<string, RenewableAgent>();
  readonly #observe: SledCallObserver;
  readonly #directory: SledDirectory | null;
  readonly #installation: (() => Promise<string>) | null;
  /** The names of sleds, by the ids that their agents keep. */
  #owners: ReadonlyMap<string, string> = new Map();

  /**
   * `directory` says which sleds have an identity; without one every sled is spoken to in plain HTTP. `installation`: asks for
   * the id of the one that calls, with each call; `null`: it isn't said, and every agent takes the calls.
   */
  constructor(
    observe: SledCallObserver = () => {},
    directory: SledDirectory | null = null,
    installation: (() => Promise<string>) | null = null,
  ) {
    this.#observe = observe;
    this.#directory = directory;
    this.#installation = installation;
    directory?.onChange(() => this.#dropRevoked());
  }

  /** Throws what keeps this process from knowing for which installation it calls. */
  async #headers(): Promise<Record<string, string>> {
    return this.#installation === null ? {} : { [INSTALLATION_HEADER]: await this.#installation() };
  }

  /** Hears which sleds' agents keep which ids, as the watcher has read it: no other sled is spoken for by these. */
  learnAgents(sleds: readonly Pick<SledAddress, 'name' | 'keptAgentId'>[]): void {
    this.#owners = new Map(
      sleds.flatMap(({ name, keptAgentId }) => (keptAgentId === null ? [] : [[keptAgentId, name]])),
    );
  }

  /** Registers a VMM. Throws a {@link SledError}; `timeoutMs` bounds the call. */
  register(sled: SledAddress, vmmId: string, body: RegisterRequest, timeoutMs: number): Promise<SledVmmState> {
    return this.#call(sled, 'register', 'PUT', `/vmms/${vmmId}`, body, sledVmmState, timeoutMs);
  }

  /** Unregisters a VMM: a known one is killed, and its id stays dead. Only success and `gone` are definitive. */
  unregister(sled: SledAddress | ExpungedSledAddress, vmmId: string, timeoutMs: number): Promise<UpdatedRuntime> {
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

  /** Asks for all that a sled has. `at` says how an address is spoken to that no sled has yet: in plain HTTP. */
  readInventory(
    sled: SledAddress | ExpungedSledAddress,
    timeoutMs: number,
    { at }: { at?: 'new address' } = {},
  ): Promise<SledInventory> {
    const route: Route | null = at === undefined ? null : this.#plainRoute(sled);
    return this.#call(sled, 'read', 'GET', '/vmms', undefined, sledInventory, timeoutMs, route);
  }

  /**
   * Asks an agent who it is. `null`: it answers, and doesn't know the question: its error has the mark of an agent's, or it has an
   * inventory, which is all that section 7 of docs/design.md asks of it. Throws a {@link SledError} where no agent
   * answers, a {@link NoAgent} where somebody else does. `at` says how an address is spoken to that no sled has yet: in plain HTTP.
   */
  async describe(
    sled: SledAddress,
    timeoutMs: number,
    { at }: { at?: 'new address' } = {},
  ): Promise<AgentDescription | null> {
    const what = `sled "${sled.name}" (${sled.address}): GET /agent`;
    const deadline = performance.now() + timeoutMs;
    const headers = await this.#headers().catch((error: unknown) => {
      throw new CannotAsk(sled, error);
    });
    const ask = async (path: string): Promise<{ status: number; text: string }> => {
      try {
        const { origin, dispatcher } = at === undefined ? await this.#routeTo(sled) : this.#plainRoute(sled);
        return await this.#asking(sled, Math.max(1, deadline - performance.now()), async (signal) => {
          const { statusCode, body } = await request(`${origin}${path}`, { dispatcher, headers, signal });
          return { status: statusCode, text: await readLimited(body) };
        });
      } catch (error) {
        if (error instanceof CannotAsk) throw error;
        throw new SledError('unavailable', `${what}: nobody answers (${reasonOf(error)})`, { cause: error });
      }
    };
    const answer = await ask('/agent');
    const { status, text } = answer;
    // An answer of this shape is one, whatever else another program may serve there.
    const described = isSuccess(answer) ? agentDescription.safeParse(parseJson(text)).data : undefined;
    if (described !== undefined) return described;
    if (status >= 500 && status !== 501)
      throw new SledError('unavailable', `${what}: answered ${status}: it doesn't know yet who it is`, {
        answered: readSledError(text) !== null,
      });
    if (status >= 400 && isAgentsError(text)) return null;
    // A portal, a proxy or our own API may say the same: only an agent has an inventory.
    const inventory = await ask('/vmms');
    if (isSuccess(inventory) && sledInventory.safeParse(parseJson(inventory.text)).success) return null;
    if (inventory.status >= 400 && isAgentsError(inventory.text)) return null;
    if (inventory.status >= 500 && readSledError(inventory.text) !== null)
      throw new SledError('unavailable', `${what}: GET /vmms answered ${inventory.status}`, { answered: true });
    throw new NoAgent('unavailable', `${what}: what answers there is no sled agent (${describeAnswer(answer)})`);
  }

  /**
   * Whether an agent answers at a sled's address, whatever it says: then the sled is powered on. A connection that is
   * refused is no agent's answer: it says nothing of the guests. Nor is one by somebody else, such as a proxy that says that
   * nobody is there, nor by an agent that says it is another one than the sled's own: a machine that has taken the address. But
   * whoever speaks TLS at the address of a sled that has joined is the sled. Throws a {@link CannotAsk} where this process
   * could not ask, for whatever it lacks.
   */
  async answers(sled: ProbedSled, timeoutMs: number): Promise<boolean> {
    try {
      // Nothing is told to one that has joined, and nothing believed: even with another's certificate it is powered on.
      return (await this.#hasJoined(sled))
        ? await this.#asking(sled, timeoutMs, (signal, find) => shakesHands(sled.address, signal, find))
        : await this.#answersPlainly(sled, timeoutMs);
    } catch (error) {
      if (error instanceof CannotAsk) throw error;
      if (isAnswer(error)) return true;
      if (isSilence(error)) return false;
      throw new CannotAsk(sled, error);
    }
  }

  /** Throws what keeps the database from saying it. */
  async #hasJoined({ address, identified }: ProbedSled): Promise<boolean> {
    try {
      return identified ?? (await this.#directory?.identityAt(address)) != null;
    } catch (error) {
      if (error instanceof UnknownAddress) return false;
      throw error;
    }
  }

  async #answersPlainly(sled: ProbedSled, timeoutMs: number): Promise<boolean> {
    const { address, keptAgentId } = sled;
    const own = await this.#headers();
    const { status, shown, text } = await this.#asking(sled, timeoutMs, async (signal, find) => {
      const dispatcher = new Agent({ connect: { timeout: timeoutMs, lookup: find } });
      try {
        const { statusCode, body, headers } = await request(`http://${address}/vmms`, {
          dispatcher,
          headers: own,
          signal,
        });
        const shown = agentShownIn(headers);
        // Whatever its own agent says, and whether that is understood: it is there.
        if (shown !== undefined) return { status: statusCode, shown, text: '' };
        return { status: statusCode, shown, text: await readLimited(body) };
      } finally {
        await dispatcher.destroy();
      }
    });
    if (shown !== undefined) return keptAgentId == null || shown === keptAgentId;
    // Who doesn't say who it is may be the sled's own: then its machine is powered on.
    const asked = keptAgentId == null ? undefined : await this.#whoIsAt(sled, timeoutMs);
    if (keptAgentId != null && asked !== undefined) return asked === keptAgentId;
    return isSuccess({ status })
      ? inventoryShape.safeParse(parseJson(text)).success
      : status >= 400 && readSledError(text) !== null;
  }

  /** The id of the agent at a plain address; `undefined` where it doesn't say. Throws a {@link CannotAsk}. */
  async #whoIsAt(sled: SledAddress, timeoutMs: number): Promise<ShownAgent> {
    try {
      return (await this.describe(sled, timeoutMs, { at: 'new address' }))?.agent_id;
    } catch (error) {
      if (error instanceof CannotAsk) throw error;
      return undefined;
    }
  }

  /** See {@link asking}. */
  #asking<Answer>(
    sled: SledAddress,
    timeoutMs: number,
    call: (signal: AbortSignal, lookup: LookupFunction) => Promise<Answer>,
  ): Promise<Answer> {
    return asking(timeoutMs, lookup, (cause) => new CannotAsk(sled, cause), call);
  }

  /** Cuts every connection. */
  async close(): Promise<void> {
    await Promise.all([this.#plain.destroy(), ...[...this.#identified.values()].map((agent) => agent.destroy())]);
    this.#identified.clear();
  }

  #plainRoute({ address }: SledAddress): Route {
    return { origin: `http://${address}`, dispatcher: this.#plain, proved: false };
  }

  async #routeTo(sled: SledAddress | ExpungedSledAddress): Promise<Route> {
    const directory = this.#directory;
    const expunged = 'expunged' in sled;
    const sledId = expunged
      ? sled.identified
        ? sled.id
        : null
      : ((await directory?.identityAt(sled.address)) ?? null);
    if (directory === null || sledId === null) return this.#plainRoute(sled);
    // By the sled, not only by its address: another one may come to live there.
    const key = `${sledId} ${sled.address}${expunged ? ' expunged' : ''}`;
    let agent = this.#identified.get(key);
    if (agent === undefined) {
      agent = new RenewableAgent(directory.holder, {
        ...CONNECTIONS,
        checkServerIdentity: expectPeer(
          `sled "${sled.name}"`,
          (identity, serial) =>
            identity.kind === 'sled' && identity.sledId === sledId && (expunged || !directory.isRevoked(serial)),
        ),
      });
      this.#identified.set(key, agent);
    }
    return { origin: `https://${sled.address}`, dispatcher: agent.dispatcher, proved: true };
  }

  /**
   * That a sled doesn't know a VMM is believed of its own agent alone: where that keeps an id, and the answer doesn't carry
   * it, whoever answers is asked for it. Throws a {@link SledError} where it isn't shown.
   */
  async #requireProof(sled: SledAddress, shown: ShownAgent, what: string, timeoutMs: number): Promise<void> {
    if (sled.keptAgentId == null || shown === sled.keptAgentId) return;
    const agent = await this.describe(sled, timeoutMs);
    requireOwnAgent(sled, agent?.agent_id, what);
    if (agent === null)
      throw new AnotherAgent(
        'unavailable',
        `${what}: what answers at ${sled.address} does not say that it is the agent of sled "${sled.name}" (${sled.keptAgentId})`,
        { answered: null },
      );
  }

  /** Throws an {@link AnotherAgent} where another sled's agent answers for one of which no id is known. */
  #requireNoOthersAgent({ name, address, keptAgentId }: SledAddress, shown: ShownAgent, what: string): void {
    const owner = keptAgentId == null && shown !== undefined ? this.#owners.get(shown) : undefined;
    if (owner === undefined || owner === name) return;
    const message = `${what}: the agent at ${address} is that of sled "${owner}": one host is one sled`;
    throw new AnotherAgent('unavailable', message, { answered: false });
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
    given: Route | null = null,
  ): Promise<Answer> {
    const begun = performance.now();
    let answer: 'accepted' | SledErrorKind = 'unavailable';
    let answered: boolean | null = null;
    try {
      const value = await inCallSpan(
        `sled ${method} ${path.replace(/[0-9a-f-]{36}/, '{vmm_id}')}`,
        { 'mooring.sled': sled.name, 'server.address': sled.address, 'url.path': path },
        (headers) => this.#send(sled, command, method, path, body, schema, timeoutMs, headers, given),
      );
      answer = 'accepted';
      answered = true;
      return value;
    } catch (error) {
      if (error instanceof SledError) {
        answer = error.kind;
        answered = error.answered;
      }
      throw error;
    } finally {
      this.#observe(sled, command, answer, (performance.now() - begun) / 1000, answered);
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
    given: Route | null,
  ): Promise<Answer> {
    const what = `sled "${sled.name}" (${sled.address}): ${method} ${path}`;
    let status: number;
    let text: string;
    let shown: ShownAgent;
    let proved: boolean;
    const own = await this.#headers();
    try {
      const route = given ?? (await this.#routeTo(sled));
      proved = route.proved;
      ({ status, shown, text } = await this.#asking(sled, timeoutMs, async (signal) => {
        const response = await request(`${route.origin}${path}`, {
          method,
          dispatcher: route.dispatcher,
          headers: {
            ...traceHeaders,
            ...own,
            ...(body === undefined ? {} : { 'content-type': 'application/json' }),
          },
          ...(body === undefined ? {} : { body: JSON.stringify(body) }),
          headersTimeout: timeoutMs,
          bodyTimeout: timeoutMs,
          signal,
        });
        return {
          status: response.statusCode,
          shown: agentShownIn(response.headers),
          text: await readLimited(response.body),
        };
      }));
    } catch (error) {
      if (error instanceof CannotAsk) throw error;
      const short = isTimeLimit(error) && timeoutMs < SLOW_MS;
      throw new SledError('unavailable', `${what}: no answer (${reasonOf(error)})`, {
        cause: error,
        answered: short ? null : false,
      });
    }
    if (!proved) {
      requireOwnAgent(sled, shown, what);
      this.#requireNoOthersAgent(sled, shown, what);
    }
    const error = readSledError(text);
    const { error_code, message } = error ?? {};
    if (error_code === ANOTHER_INSTALLATION)
      throw new AnotherInstallation('unavailable', `${what}: ${message}`, { answered: false });
    switch (classifySledAnswer(command, status, error_code)) {
      case 'accepted': {
        const answer = schema.safeParse(parseJson(text));
        // It knows nothing of the VMM: as definitive as the 404.
        if (command === 'unregister' && !proved && updatedRuntime.safeParse(answer.data).data?.updated_runtime === null)
          await this.#requireProof(sled, shown, what, timeoutMs);
        if (answer.success) return answer.data;
        throw new SledError('unavailable', `${what}: answered ${status} with what the protocol does not know`);
      }
      case 'gone':
        if (!proved) await this.#requireProof(sled, shown, what, timeoutMs);
        throw new SledError('gone', `${what}: the sled does not know this VMM (${status} ${error_code})`);
      case 'refused':
        throw new SledError('refused', `${what}: refused with ${describe(status, error_code, message)}`);
      case 'retry':
        // Without a code of the protocol it is a proxy's answer for an agent that isn't there.
        if (error !== null)
          throw new SledError('unavailable', `${what}: answered ${describe(status, error_code, message)}`, {
            answered: true,
          });
        throw new SledError(
          'unavailable',
          `${what}: what answers there is no sled agent (${describeAnswer({ status, text })})`,
        );
    }
  }
}

/** What an agent of any version answers, whether or not its VMMs are understood. */
const inventoryShape = z.object({ vmms: z.array(z.unknown()) });

const isSuccess = ({ status }: { readonly status: number }): boolean => status >= 200 && status < 300;

/** Throws an {@link AnotherAgent} where an agent has said that it is another one than the sled's own. */
function requireOwnAgent({ name, address, keptAgentId }: SledAddress, shown: ShownAgent, what: string): void {
  if (keptAgentId === null || keptAgentId === undefined || shown === undefined || shown === keptAgentId) return;
  throw new AnotherAgent(
    'unavailable',
    `${what}: the agent ${shown} answers at ${address}, which is not that of sled "${name}" (${keptAgentId})`,
    { answered: false },
  );
}

/** Whether a process at an address speaks TLS, whatever it shows. Throws what keeps a connection from being made. */
function shakesHands(address: string, signal: AbortSignal, find: LookupFunction): Promise<boolean> {
  return new Promise((resolve, reject) => {
    const socket = connect({ ...splitAddress(address), rejectUnauthorized: false, lookup: find });
    const end = (settle: () => void) => {
      signal.removeEventListener('abort', late);
      settle();
      socket.destroy();
    };
    const late = () => end(() => reject(signal.reason));
    signal.addEventListener('abort', late, { once: true });
    socket.once('secureConnect', () => end(() => resolve(true)));
    socket.on('error', (error) => end(() => reject(error)));
    socket.once('close', () => end(() => resolve(false)));
  });
}

async function readLimited(body: AsyncIterable<Buffer>): Promise<string> {
  const chunks: Buffer[] = [];
  let length = 0;
  for await (const chunk of body) {
    length += chunk.length;
    if (length > MAX_ANSWER_BYTES)
      throw Object.assign(new Error(`the answer is longer than ${MAX_ANSWER_BYTES} bytes`), {
        code: 'ANSWER_TOO_LONG',
      });
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
