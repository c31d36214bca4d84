/**
 * A client of QMP, the QEMU Machine Protocol, over a unix socket: lines of JSON, a greeting, capabilities, commands with
 * ids (in and out of band), and events. QEMU serves one client a socket; a second one connects and gets no greeting.
 * Source: docs/interop/qmp-spec of QEMU.
 */
import { connect, type Socket } from 'node:net';
import { z } from 'zod';

/** QEMU refused a command. */
export class QmpError extends Error {
  override readonly name = 'QmpError';
  readonly errorClass: string;

  constructor(command: string, errorClass: string, description: string) {
    super(`QMP ${command}: ${description}`);
    this.errorClass = errorClass;
  }
}

/** QEMU didn't answer in time. The command may have been carried out, or still be. */
export class QmpTimeout extends Error {
  override readonly name = 'QmpTimeout';
}

/** The connection is broken, or was never made. A command under way may have been carried out. */
export class QmpDisconnected extends Error {
  override readonly name = 'QmpDisconnected';
}

const event = z.object({
  event: z.string(),
  data: z.record(z.string(), z.unknown()).default({}),
  timestamp: z.object({ seconds: z.number(), microseconds: z.number() }),
});
export type QmpEvent = z.infer<typeof event>;

const greeting = z.object({
  QMP: z.object({
    version: z.object({ qemu: z.object({ major: z.number(), minor: z.number(), micro: z.number() }) }),
    capabilities: z.array(z.string()),
  }),
});
const answer = z.object({
  id: z.number(),
  return: z.unknown().optional(),
  error: z.object({ class: z.string(), desc: z.string() }).optional(),
});

export interface QmpOptions {
  readonly path: string;
  readonly onEvent: (event: QmpEvent) => void;
  /** The connection is gone. Called once, and not when {@link QmpClient.close} was called before. */
  readonly onClose: () => void;
  /** How long the greeting may take, and each command unless it says otherwise, in milliseconds. */
  readonly timeoutMs?: number;
}

const TIMEOUT_MS = 5_000;
/** More than any answer of QEMU to what is asked here, in characters. */
const MAX_LINE_LENGTH = 4 * 1024 * 1024;

interface Pending {
  readonly command: string;
  readonly resolve: (value: unknown) => void;
  readonly reject: (error: Error) => void;
  readonly timer: NodeJS.Timeout;
}

export class QmpClient {
  /** QEMU's version, for example `7.2.22`. */
  readonly version: string;
  /** Whether commands can be sent out of band, past one that hangs. */
  readonly outOfBand: boolean;
  readonly #line: QmpLine;

  private constructor(line: QmpLine, version: string, outOfBand: boolean) {
    this.#line = line;
    this.version = version;
    this.outOfBand = outOfBand;
  }

  /**
   * Connects, reads the greeting and enables what QEMU offers. Throws {@link QmpDisconnected} or {@link QmpTimeout}, the
   * latter also where QEMU serves another client at the moment.
   */
  static async connect(options: QmpOptions): Promise<QmpClient> {
    const line = new QmpLine(options);
    try {
      const { QMP } = greeting.parse(await line.greeting());
      const outOfBand = QMP.capabilities.includes('oob');
      await line.send('qmp_capabilities', outOfBand ? { enable: ['oob'] } : {}, false);
      const { major, minor, micro } = QMP.version.qemu;
      return new QmpClient(line, `${major}.${minor}.${micro}`, outOfBand);
    } catch (error) {
      line.close();
      throw error instanceof z.ZodError ? new QmpDisconnected(`${options.path} doesn't speak QMP`) : error;
    }
  }

  /** Runs a command. Throws {@link QmpError}, {@link QmpTimeout} or {@link QmpDisconnected}. */
  execute(command: string, args: Record<string, unknown> = {}, timeoutMs?: number): Promise<unknown> {
    return this.#line.send(command, args, false, timeoutMs);
  }

  /** Runs a command past any that hangs; only few commands allow it, for example `yank`. Throws as {@link execute} does. */
  executeOutOfBand(command: string, args: Record<string, unknown> = {}, timeoutMs?: number): Promise<unknown> {
    if (!this.outOfBand)
      return Promise.reject(new QmpError(command, 'GenericError', 'this QEMU offers no out of band'));
    return this.#line.send(command, args, true, timeoutMs);
  }

  /** Breaks the connection; commands under way end with {@link QmpDisconnected}. */
  close(): void {
    this.#line.close();
  }
}

/** The connection below the client: splits it in lines, and matches answers with what was asked. */
class QmpLine {
  readonly #socket: Socket;
  readonly #options: QmpOptions;
  readonly #pending = new Map<number, Pending>();
  #lastId = 0;
  #rest = '';
  #open = true;
  #closedByUs = false;
  #greeted: ((value: unknown) => void) | null = null;
  readonly #greeting: Promise<unknown>;
  #failGreeting: (error: Error) => void = () => {};
  #ready = false;

  constructor(options: QmpOptions) {
    this.#options = options;
    this.#greeting = new Promise((resolve, reject) => {
      this.#greeted = resolve;
      this.#failGreeting = reject;
    });
    this.#greeting.catch(() => {});
    this.#socket = connect(options.path);
    this.#socket.setEncoding('utf8');
    this.#socket.on('data', (chunk: string) => this.#onData(chunk));
    this.#socket.on('error', () => {});
    this.#socket.on('close', () => this.#ended());
  }

  /** Waits for the greeting. Throws {@link QmpTimeout} or {@link QmpDisconnected}. */
  async greeting(): Promise<unknown> {
    const timer = setTimeout(
      () => this.#failGreeting(new QmpTimeout(`${this.#options.path}: no greeting from QEMU`)),
      this.#options.timeoutMs ?? TIMEOUT_MS,
    );
    try {
      return await this.#greeting;
    } finally {
      clearTimeout(timer);
    }
  }

  async send(command: string, args: Record<string, unknown>, outOfBand: boolean, timeoutMs?: number): Promise<unknown> {
    if (!this.#open) throw new QmpDisconnected(`QMP ${command}: ${this.#options.path} is disconnected`);
    this.#lastId += 1;
    const id = this.#lastId;
    const ms = timeoutMs ?? this.#options.timeoutMs ?? TIMEOUT_MS;
    const answered = new Promise<unknown>((resolve, reject) => {
      const timer = setTimeout(() => {
        this.#pending.delete(id);
        reject(new QmpTimeout(`QMP ${command}: no answer in ${ms} ms`));
      }, ms);
      this.#pending.set(id, { command, resolve, reject, timer });
    });
    this.#socket.write(`${JSON.stringify({ [outOfBand ? 'exec-oob' : 'execute']: command, arguments: args, id })}\n`);
    const value = await answered;
    if (command === 'qmp_capabilities') this.#ready = true;
    return value;
  }

  close(): void {
    this.#closedByUs = true;
    this.#socket.destroy();
    this.#ended();
  }

  #onData(chunk: string): void {
    const lines = (this.#rest + chunk).split('\n');
    this.#rest = lines.pop() ?? '';
    for (const text of lines) if (text.trim() !== '') this.#onLine(text);
    if (this.#rest.length > MAX_LINE_LENGTH) this.#socket.destroy();
  }

  #onLine(text: string): void {
    let received: unknown;
    try {
      received = JSON.parse(text);
    } catch {
      this.#socket.destroy();
      return;
    }
    if (this.#greeted !== null) {
      this.#greeted(received);
      this.#greeted = null;
      return;
    }
    const happened = event.safeParse(received);
    if (happened.success) {
      this.#options.onEvent(happened.data);
      return;
    }
    // An answer without a command that waits for it came too late.
    const answered = answer.safeParse(received);
    const pending = answered.success ? this.#pending.get(answered.data.id) : undefined;
    if (!answered.success || pending === undefined) return;
    this.#pending.delete(answered.data.id);
    clearTimeout(pending.timer);
    const { error } = answered.data;
    if (error === undefined) pending.resolve(answered.data.return);
    else pending.reject(new QmpError(pending.command, error.class, error.desc));
  }

  #ended(): void {
    if (!this.#open) return;
    this.#open = false;
    this.#failGreeting(new QmpDisconnected(`${this.#options.path}: the connection broke before QEMU's greeting`));
    for (const { command, reject, timer } of this.#pending.values()) {
      clearTimeout(timer);
      reject(new QmpDisconnected(`QMP ${command}: the connection broke before the answer`));
    }
    this.#pending.clear();
    if (this.#ready && !this.#closedByUs) this.#options.onClose();
  }
}
