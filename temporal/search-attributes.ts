/**
 * The workflows' search attributes on a Temporal namespace: optional, so that they may vanish at any moment. They are looked at
 * again and again, registered where they are missing, and used where they are there; nothing may fail for want of them.
 */
import { setTimeout as pause } from 'node:timers/promises';
import type { Connection } from '@temporalio/client';
import type { Logger } from 'pino';
import { OUTCOME_RUNNING, SEARCH_ATTRIBUTES } from '../model/search-attributes.ts';
import { isNamespaceMissing, isTemporalUnavailable, oneLine } from './errors.ts';

/** `INDEXED_VALUE_TYPE_KEYWORD` of temporal.api.enums.v1. */
const KEYWORD = 2;
const WANTED = Object.values(SEARCH_ATTRIBUTES);
/** A server's front end reads a namespace again every ten seconds; some more, in milliseconds. */
const SETTLE_MS = 30_000;
/** How often it is asked meanwhile, in milliseconds: a namespace is allowed ten such calls a second, from all its processes. */
const SETTLE_LOOK_MS = 500;
/**
 * For how long, in milliseconds, they are not used once a call was refused for them, even if they seem to be there: parts of a
 * cluster learn of a change one after the other.
 */
const DISTRUST_MS = 10_000;

/** What a look found: `settling` are registered, and not known to the whole server yet. */
type Found = { readonly state: 'usable' } | { readonly state: 'settling' | 'missing'; readonly problem: string };

/** What a process knows of a namespace's search attributes. */
export class SearchAttributes {
  readonly #connection: Connection;
  readonly #namespace: string;
  readonly #log: Logger;
  readonly #distrustMs: number;
  readonly #onRefused: Set<() => void> = new Set();
  #found: Found = { state: 'missing', problem: 'the search attributes have not been looked for yet' };
  #distrustedUntil = 0;
  #looking: Promise<void> | null = null;

  constructor(connection: Connection, namespace: string, log: Logger, distrustMs = DISTRUST_MS) {
    this.#connection = connection;
    this.#namespace = namespace;
    this.#log = log;
    this.#distrustMs = distrustMs;
  }

  /** Whether a workflow may be started with them, and may write them. */
  get usable(): boolean {
    return this.#found.state === 'usable';
  }

  /** What keeps them from being used, for people; `null` when nothing does. */
  get problem(): string | null {
    return this.#found.state === 'usable' ? null : this.#found.problem;
  }

  /** Has `listener` called when a call was refused for them; returns what ends that. */
  onRefused(listener: () => void): () => void {
    this.#onRefused.add(listener);
    return () => this.#onRefused.delete(listener);
  }

  /** A call was refused for them: they are not used until a later look has found them again. */
  refused(): void {
    this.#distrust('a call was refused for the sake of a search attribute: they are looked for again');
    for (const listener of this.#onRefused) listener();
  }

  /**
   * Looks once, and registers what is missing; several processes may do so at once. Who comes while a look is under way waits
   * for that one. Where this client may not register, or an attribute of the name has another type, it says so in the log, with
   * what to do. Throws when Temporal can't be asked; what was known stays known then.
   */
  look(): Promise<void> {
    this.#looking ??= this.#look().finally(() => {
      this.#looking = null;
    });
    return this.#looking;
  }

  /** Looks until they can be used, or it is clear that they can't: at most thirty seconds. Throws as {@link look} does. */
  async settle(): Promise<void> {
    const until = performance.now() + SETTLE_MS;
    for (;;) {
      await this.look();
      if (this.#found.state !== 'settling' || performance.now() > until) return;
      await pause(SETTLE_LOOK_MS);
    }
  }

  #distrust(problem: string): void {
    this.#distrustedUntil = performance.now() + this.#distrustMs;
    this.#found = { state: 'settling', problem };
  }

  async #look(): Promise<void> {
    const before = this.#found;
    const found = await this.#find().catch((error: unknown): Found => {
      if (isTemporalUnavailable(error) && !isNamespaceMissing(error) && !isForbidden(error)) throw error;
      return { state: 'missing', problem: `the search attributes can't be registered (${oneLine(error)}): ${HOW}` };
    });
    // Found missing, they are not trusted for a while even where they were made again at once: who holds an older view refuses.
    if (before.state === 'usable' && found.state !== 'usable') this.#distrust(problemOf(found));
    else if (found.state === 'usable' && performance.now() < this.#distrustedUntil)
      this.#found = {
        state: 'settling',
        problem: 'the search attributes are there again, and are used in some seconds',
      };
    else this.#found = found;
    this.#tell(before);
  }

  /** A line in the log, when what is known has changed. */
  #tell(before: Found): void {
    const { state } = this.#found;
    if (state === before.state && problemOf(this.#found) === problemOf(before)) return;
    const fields = { namespace: this.#namespace };
    if (state === 'usable') this.#log.info(fields, 'the search attributes can be used');
    else this.#log.warn(fields, `workflows run without search attributes: ${problemOf(this.#found)}`);
  }

  async #find(): Promise<Found> {
    const known = await this.#read();
    const mistyped = WANTED.filter((name) => known[name] !== undefined && known[name] !== KEYWORD);
    if (mistyped.length > 0)
      return {
        state: 'missing',
        problem: `the search attributes ${mistyped.join(', ')} are no keywords there: ${HOW}`,
      };
    const missing = WANTED.filter((name) => known[name] === undefined);
    const wereUsable = this.usable;
    if (missing.length > 0) await this.#register(missing);
    if (wereUsable)
      return missing.length === 0
        ? { state: 'usable' }
        : { state: 'settling', problem: `${missing.join(', ')} had vanished, and were registered again` };
    return (await this.#canQuery())
      ? { state: 'usable' }
      : {
          state: 'settling',
          problem: 'the search attributes were registered, and the server has not taken them into use yet',
        };
  }

  async #register(missing: readonly string[]): Promise<void> {
    await this.#connection.operatorService
      .addSearchAttributes({
        namespace: this.#namespace,
        searchAttributes: Object.fromEntries(missing.map((name) => [name, KEYWORD])),
      })
      .catch(async (error: unknown) => {
        // Another process may have been quicker.
        const now = await this.#read();
        if (WANTED.some((name) => now[name] === undefined)) throw error;
      });
    this.#log.info({ namespace: this.#namespace, added: missing }, 'search attributes registered');
  }

  #read(): Promise<Record<string, number>> {
    return readSearchAttributes(this.#connection, this.#namespace);
  }

  async #canQuery(): Promise<boolean> {
    const query = WANTED.map((name) => `${name} = "${OUTCOME_RUNNING}"`).join(' AND ');
    return this.#connection.workflowService.countWorkflowExecutions({ namespace: this.#namespace, query }).then(
      () => true,
      () => false,
    );
  }
}

/** The search attributes that a namespace lacks, or has with another type. Changes nothing. Throws when Temporal can't be asked. */
export async function missingSearchAttributes(connection: Connection, namespace: string): Promise<string[]> {
  const known = await readSearchAttributes(connection, namespace);
  return WANTED.filter((name) => known[name] !== KEYWORD);
}

async function readSearchAttributes(connection: Connection, namespace: string): Promise<Record<string, number>> {
  const { customAttributes } = await connection.operatorService.listSearchAttributes({ namespace });
  return { ...customAttributes };
}

const HOW = `register ${WANTED.join(', ')} as Keyword on the namespace (docs/web-ui.md); they are used within seconds, without a restart`;

function problemOf(found: Found): string {
  return found.state === 'usable' ? '' : found.problem;
}

/** PERMISSION_DENIED or UNAUTHENTICATED: this client may not look, or not register. */
function isForbidden(error: unknown): boolean {
  for (let cause: unknown = error; cause instanceof Error; cause = cause.cause) {
    const { code } = cause as { code?: unknown };
    if (code === 7 || code === 16) return true;
  }
  return false;
}
