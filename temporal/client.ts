/**
 * The Temporal client of every process that starts workflows: it starts each on a queue of its own installation, with the search
 * attributes that are known. A start that is refused for the sake of an attribute is made again without.
 */
import { Client, type Connection, type WorkflowClientInterceptor } from '@temporalio/client';
import { type SearchAttributePair, TypedSearchAttributes } from '@temporalio/common';
import { OpenTelemetryWorkflowClientInterceptor } from '@temporalio/interceptors-opentelemetry';
import type { Logger } from 'pino';
import { z } from 'zod';
import type { Database } from '../db/connect.ts';
import { type Installation, readInstallation } from '../db/queries/read-installation.ts';
import { readNames } from '../db/queries/read-names.ts';
import {
  ATTRIBUTES_MEMO,
  OUTCOME_RUNNING,
  SEARCH_ATTRIBUTES,
  type SearchAttribute,
} from '../model/search-attributes.ts';
import type { WorkflowTypes } from '../model/workflow-inputs.ts';
import { queueOf } from '../model/workflow-names.ts';
import { CALL_TIMEOUT_MS, connectClient, explainUnreachable, type TemporalSettings } from './connection.ts';
import { isNotFound, refusesSearchAttributes } from './errors.ts';
import { ForeignRuns, foreignRunInterceptor } from './foreign-runs.ts';
import { SearchAttributes } from './search-attributes.ts';
import { searchAttributePairs } from './subject-names.ts';

/** How long a name may be out of date in the search attributes of a signalled update, in milliseconds. */
const NAMES_KEPT_MS = 30_000;
const NAMES_KEPT = 10_000;
/** The type of workflow that is started and signalled time and again. */
const OFTEN = 'instanceUpdate' satisfies keyof WorkflowTypes;

/** The ids that a workflow's input may carry; more may be there. */
const subjectOf = z.looseObject({
  instanceId: z.guid().optional(),
  vmmId: z.guid().optional(),
  sledId: z.guid().optional(),
  destinationSledId: z.guid().optional(),
});
type Subject = z.infer<typeof subjectOf>;

export interface TemporalClient {
  readonly client: Client;
  readonly connection: Connection;
  /** What is known of the namespace's search attributes. */
  readonly searchAttributes: SearchAttributes;
  /** What it has met of another installation that shares its ids. */
  readonly foreignRuns: ForeignRuns;
  /** The installation that the database is: read once. Throws while the database does not answer. */
  installation(): Promise<Installation>;
  close(): Promise<void>;
}

export interface TemporalClientOptions {
  /** Whether traces go on into the workflows that it starts; by default not. */
  readonly tracing?: boolean;
  /** The deadline of every call that has none of its own, in milliseconds; default {@link CALL_TIMEOUT_MS}. */
  readonly callTimeoutMs?: number;
  /** For how long search attributes are not used after a call was refused for them, in milliseconds; default 10000. */
  readonly distrustMs?: number | undefined;
}

/**
 * Connects to Temporal. Throws when it can't be reached; a namespace without search attributes is no error, and neither is one that
 * doesn't exist (yet).
 */
export async function connectTemporalClient(
  settings: TemporalSettings,
  db: Database,
  log: Logger,
  { tracing = false, callTimeoutMs = CALL_TIMEOUT_MS, distrustMs }: TemporalClientOptions = {},
): Promise<TemporalClient> {
  const installation = once(() => readInstallation(db));
  const { connection, close } = await connectClient(settings.connection, callTimeoutMs).catch((error: unknown) => {
    throw explainUnreachable(error, settings);
  });
  const { namespace } = settings;
  const searchAttributes = new SearchAttributes(connection, namespace, log, distrustMs);
  await searchAttributes.settle().catch((error: unknown) => {
    log.warn({ err: error }, 'the search attributes could not be looked for yet: workflows run without them meanwhile');
  });
  const foreignRuns = new ForeignRuns(
    installation,
    (workflowId, runId) => readQueue(connection, namespace, workflowId, runId),
    log,
  );
  return {
    client: new Client({
      connection,
      namespace,
      interceptors: {
        workflow: [
          ...(tracing ? [new OpenTelemetryWorkflowClientInterceptor()] : []),
          new StartInterceptor(installation, searchAttributes, new SubjectLookup(db, log)),
          foreignRunInterceptor(foreignRuns),
        ],
      },
    }),
    connection,
    searchAttributes,
    foreignRuns,
    installation,
    close,
  };
}

/** The task queue of a workflow's run, by default its last; `null` where there is none. */
async function readQueue(
  connection: Connection,
  namespace: string,
  workflowId: string,
  runId: string | undefined,
): Promise<string | null> {
  try {
    const { executionConfig } = await connection.workflowService.describeWorkflowExecution({
      namespace,
      execution: { workflowId, ...(runId === undefined ? {} : { runId }) },
    });
    return executionConfig?.taskQueue?.name ?? null;
  } catch (error) {
    if (isNotFound(error)) return null;
    throw error;
  }
}

/** Does the work at the first call that succeeds, and returns what came of it from then on. */
function once<Result>(work: () => Promise<Result>): () => Promise<Result> {
  let done: Promise<Result> | null = null;
  return () => {
    done ??= work().catch((error: unknown) => {
      done = null;
      throw error;
    });
    return done;
  };
}

/** What of a start's options is about search attributes. */
interface NamedOptions {
  args: unknown[];
  typedSearchAttributes?: SearchAttributePair[] | TypedSearchAttributes;
  staticSummary?: string;
  memo?: Record<string, unknown>;
}

/** What every start goes through. */
class StartInterceptor implements WorkflowClientInterceptor {
  readonly #installation: () => Promise<Installation>;
  readonly #searchAttributes: SearchAttributes;
  readonly #subjects: SubjectLookup;

  constructor(installation: () => Promise<Installation>, searchAttributes: SearchAttributes, subjects: SubjectLookup) {
    this.#installation = installation;
    this.#searchAttributes = searchAttributes;
    this.#subjects = subjects;
  }

  startWithDetails: NonNullable<WorkflowClientInterceptor['startWithDetails']> = (input, next) =>
    this.#start(input, next);

  signalWithStart: NonNullable<WorkflowClientInterceptor['signalWithStart']> = (input, next) =>
    this.#start(input, next);

  async #start<Input extends { readonly workflowType: string; readonly options: StartOptions }, Result>(
    input: Input,
    next: (input: Input) => Promise<Result>,
  ): Promise<Result> {
    const { options } = input;
    const { id } = await this.#installation();
    const queued = { ...options, taskQueue: queueOf(id, options.taskQueue) };
    const without = () => next({ ...input, options: { ...queued, typedSearchAttributes: [] } });
    if (!this.#searchAttributes.usable) return without();
    const enriched = await this.#subjects.enrich(queued, input.workflowType === OFTEN);
    try {
      return await next({ ...input, options: enriched });
    } catch (error) {
      if (!refusesSearchAttributes(error)) throw error;
      // They have vanished since they were last looked for. A call that was refused has begun nothing.
      this.#searchAttributes.refused();
      return without();
    }
  }
}

/** What of a start's options is changed. */
interface StartOptions extends NamedOptions {
  taskQueue: string;
}

/**
 * Adds what the input's ids and the database say of a workflow's subject; what its starter says of it is not read again. A
 * workflow starts without it when that fails.
 */
class SubjectLookup {
  readonly #db: Database;
  readonly #log: Logger;
  readonly #names = new Map<string, { readonly until: number; readonly names: Names }>();

  constructor(db: Database, log: Logger) {
    this.#db = db;
    this.#log = log;
  }

  /** `often`: for a workflow that is signalled time and again, names may be a little old. */
  async enrich<Options extends NamedOptions>(options: Options, often: boolean): Promise<Options> {
    const subject = subjectOf.safeParse(options.args[0]).data ?? {};
    const given = givenNames(options.typedSearchAttributes);
    const found = isNamed(subject, given)
      ? {}
      : await this.#lookUp(subject, often).catch((error: unknown) => {
          this.#log.warn({ err: error }, 'a workflow starts without the names of its subject');
          return {};
        });
    const names: Names = { ...found, ...given };
    const { staticSummary } = options;
    const attributes = { outcome: OUTCOME_RUNNING, ...names };
    return {
      ...options,
      typedSearchAttributes: searchAttributePairs(attributes),
      memo: { ...options.memo, [ATTRIBUTES_MEMO]: attributes },
      ...(staticSummary === undefined ? {} : { staticSummary: withNames(staticSummary, subject, names) }),
    };
  }

  /** `often`: a workflow that is signalled time and again; its sled changes, but its names may be a little old. */
  async #lookUp(subject: Subject, often: boolean): Promise<Names> {
    const { instanceId, vmmId } = subject;
    const sledId = subject.destinationSledId ?? subject.sledId;
    if (instanceId === undefined && vmmId === undefined && sledId === undefined) return {};
    const key = often && instanceId !== undefined ? instanceId : null;
    const kept = key === null ? undefined : this.#names.get(key);
    if (kept !== undefined && kept.until > performance.now()) return kept.names;
    const names = await readNames(this.#db, {
      ...(instanceId === undefined ? {} : { instanceId }),
      ...(vmmId === undefined ? {} : { vmmId }),
      ...(sledId === undefined ? {} : { sledId }),
    });
    const migrates = subject.destinationSledId !== undefined;
    const attributes: Names = {
      instanceId: names.instanceId ?? instanceId,
      instance: names.instanceName ?? undefined,
      project: names.projectName ?? undefined,
      vmm: vmmId,
      sled: names.sledName ?? (migrates || often ? undefined : (names.vmmSledName ?? undefined)),
      sourceSled: migrates ? (names.vmmSledName ?? undefined) : undefined,
    };
    if (key !== null) {
      if (this.#names.size >= NAMES_KEPT) this.#names.clear();
      this.#names.set(key, { until: performance.now() + NAMES_KEPT_MS, names: attributes });
    }
    return attributes;
  }
}

/** The names that are among a start's search attributes. */
function givenNames(given: NamedOptions['typedSearchAttributes']): Names {
  const pairs = given instanceof TypedSearchAttributes ? given.getAll() : (given ?? []);
  const values = new Map(pairs.map(({ key, value }) => [key.name, String(value)]));
  return Object.fromEntries(
    Object.entries(SEARCH_ATTRIBUTES).flatMap(([attribute, name]) =>
      values.has(name) ? [[attribute, values.get(name)]] : [],
    ),
  );
}

/** Whether all that a subject is known by is there: of a workflow that is about an instance, and no VMM or single sled. */
function isNamed({ instanceId, vmmId, sledId, destinationSledId }: Subject, names: Names): boolean {
  if (instanceId === undefined || vmmId !== undefined || sledId !== undefined) return false;
  const isBound = destinationSledId === undefined || (names.sled !== undefined && names.sourceSled !== undefined);
  return isBound && names.instance !== undefined && names.project !== undefined;
}

/** A summary in which people read names where its writer knew only ids. */
function withNames(summary: string, subject: Subject, { instance, sled }: Names): string {
  const sledId = subject.destinationSledId ?? subject.sledId;
  let text = summary;
  if (subject.instanceId !== undefined && instance !== undefined)
    text = text.replace(subject.instanceId, `"${instance}"`);
  if (sledId !== undefined && sled !== undefined) text = text.replace(sledId, `"${sled}"`);
  return text;
}

type Names = Partial<Record<SearchAttribute, string | undefined>>;
