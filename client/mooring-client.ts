/**
 * The typed client of the Mooring API, for programs. Every answer is parsed by the schemas that the API is made of; every
 * call can be cancelled by an `AbortSignal`; names stand where ids may.
 *
 * @example
 * const mooring = new MooringClient({ url: 'http://127.0.0.1:12220' });
 * const { instance } = await mooring.startInstance('web', { project: 'default' });
 */
import { z } from 'zod';
import { EventParser, type RawEvent } from '../model/event-parser.ts';
import type { ReconcilerName } from '../model/reconcilers.ts';
import type { AffinityKind } from '../model/states.ts';
import { type ControlPlaneAnswer, isMarked, nothing, parseJson, readControlPlaneAnswer } from '../wire/answer-mark.ts';
import { type NetworkEntry, networkPage } from '../wire/network-protocol.ts';
import {
  type AccessTokenCreate,
  type AccessTokenCreated,
  type AccessTokenView,
  accessTokenCreated,
  accessTokenView,
  type CurrentUserView,
  currentUserView,
} from '../wire/operator-api/access-tokens.ts';
import { type ActivityView, activityView } from '../wire/operator-api/activity.ts';
import {
  type AffinityGroupCreate,
  type AffinityGroupMember,
  type AffinityGroupUpdate,
  type AffinityGroupView,
  affinityGroupMember,
  affinityGroupView,
} from '../wire/operator-api/affinity-groups.ts';
import { type AuditLogEntry, auditLogEntry } from '../wire/operator-api/audit-log.ts';
import { type DrainBegin, type DrainView, drainView } from '../wire/operator-api/drains.ts';
import { type EventKind, type StreamEvent, streamEvent } from '../wire/operator-api/events.ts';
import { type HistoryView, historyView } from '../wire/operator-api/history.ts';
import {
  type InstanceCreate,
  type InstanceCreated,
  type InstanceForceStop,
  type InstanceUpdate,
  type InstanceView,
  instanceCreated,
  instanceView,
} from '../wire/operator-api/instances.ts';
import { type MigrationView, migrationView } from '../wire/operator-api/migrations.ts';
import { type OperationView, operationView } from '../wire/operator-api/operations.ts';
import { type ResultsPage, resultsPage } from '../wire/operator-api/pages.ts';
import {
  type ProjectCreate,
  type ProjectView,
  projectView,
  type QuotaUpdate,
  type QuotaView,
  quotaView,
} from '../wire/operator-api/projects.ts';
import {
  type ReconcilerPassView,
  type ReconcilerView,
  reconcilerPassView,
  reconcilerView,
} from '../wire/operator-api/reconcilers.ts';
import {
  provisionPolicyResponse,
  type SledAdd,
  type SledAdded,
  type SledDeclareDead,
  type SledExpunge,
  type SledSetAddress,
  type SledView,
  sledAdded,
  sledView,
} from '../wire/operator-api/sleds.ts';
import {
  type SledCertificateView,
  type SledInviteCreate,
  type SledInviteView,
  sledCertificateList,
  sledInviteView,
} from '../wire/sled-identity.ts';
import { type SerialConsoleData, serialConsoleData } from '../wire/sled-protocol.ts';

/** The API refused a request or failed to do it. */
export class MooringApiError extends Error {
  override readonly name = 'MooringApiError';
  readonly status: number;
  readonly errorCode: string | undefined;
  readonly requestId: string | undefined;

  constructor(
    status: number,
    body: { error_code?: string | undefined; message: string; request_id?: string | undefined },
  ) {
    super(body.message);
    this.status = status;
    this.errorCode = body.error_code;
    this.requestId = body.request_id;
  }
}

/** No API answered at the address: nobody did, or somebody else, such as a proxy or a captive portal. */
export class MooringConnectionError extends Error {
  override readonly name = 'MooringConnectionError';
  /** Nothing listens there: the call was not done. Otherwise it may have been. */
  readonly neverSent: boolean;

  constructor(message: string, neverSent: boolean, options?: ErrorOptions) {
    super(message, options);
    this.neverSent = neverSent;
  }
}

/** What a client is made with. */
export interface MooringClientOptions {
  /** Where the API is, for example `http://127.0.0.1:12220`. */
  readonly url: string;
  /** The access token, or what finds it, once, at the first call; without one calls carry no token. */
  readonly token?: string | (() => Promise<string | undefined>) | undefined;
  /**
   * How long an answer may take, in milliseconds, to the last byte, beyond what the API was asked to wait; default 60000. Past
   * it the call throws a {@link MooringConnectionError}: it may have been done.
   */
  readonly timeoutMs?: number | undefined;
}

/** For every call. */
export interface CallOptions {
  /** Cancels the call. */
  readonly signal?: AbortSignal | undefined;
}

/** For calls that name an instance: the project is needed with a name, not with an id. */
export interface InstanceCallOptions extends CallOptions {
  readonly project?: string | undefined;
}

/** For calls that wait for a saga's answer. */
export interface OperationCallOptions extends InstanceCallOptions {
  /** How long to wait, in whole seconds; the API's limit when absent. */
  readonly waitSeconds?: number | undefined;
  /**
   * A UUID that makes the same call again, from this process or another, the same operation with the same outcome. Each
   * call has a new one by itself, under which it is sent again when its answer was lost.
   */
  readonly idempotencyKey?: string | undefined;
}

/** For calls that follow something to its end. */
export interface FollowCallOptions<View> extends CallOptions {
  /** Called with each view of it. */
  readonly onProgress?: ((view: View) => void) | undefined;
}

/** What is asked of the stream of changes; all that the token may see where nothing is. */
export interface EventCallOptions extends InstanceCallOptions {
  /** These kinds alone. */
  readonly kinds?: readonly EventKind[] | undefined;
  /** Only what is about this instance. */
  readonly instance?: string | undefined;
  /** What came after this cursor, the `id` of an event. */
  readonly after?: string | undefined;
  /** `false`: ends when all was sent that there is; default true. */
  readonly follow?: boolean | undefined;
}

/** An event of the stream, and the cursor after it; `null`: none yet, since others of its batch are to come. */
export type ReceivedEvent = Exclude<StreamEvent, { event: 'end' }> & { readonly id: string | null };

/** An instance and, where a saga was started or joined, the operation to follow. */
export interface OperationStarted {
  readonly instance: InstanceView;
  readonly operationId: string | null;
}

/** How long an answer may take where nothing is waited for, in milliseconds. */
const TIMEOUT_MS = 60_000;
/** The longest that an API waits for an operation when it is not asked for less, in seconds: `mooring api --wait`. */
const LONGEST_WAIT_SECONDS = 90;
const FOLLOW_EVERY_MS = 200;
/** After so long without a byte a stream is dead, in milliseconds: the API sends a comment every 15 s at the least. */
const SILENT_STREAM_MS = 40_000;
/** How long until a stream is asked for again, in milliseconds, twice as long each time, and at most. */
const STREAM_AGAIN_MS = { first: 250, longest: 5_000 };
/** How long an API may be unavailable before a call that follows something throws, in milliseconds. */
const UNAVAILABLE_MS = 60_000;
/** How often a call with a key is sent again when its answer was lost, and how long between, in milliseconds. */
const MAX_RESENDS = 4;
const RESEND_AFTER_MS = 250;

/** Waits `ms` milliseconds, or until the signal is aborted. */
async function pause(ms: number, signal: AbortSignal | undefined): Promise<void> {
  await new Promise<void>((resolve) => {
    const end = () => {
      clearTimeout(timer);
      signal?.removeEventListener('abort', end);
      resolve();
    };
    const timer = setTimeout(end, ms);
    signal?.addEventListener('abort', end);
  });
}

/**
 * Reads what is under way until it is over. 503 means "ask again", and a connection that broke may have been an API that was
 * restarted: both are retried for {@link UNAVAILABLE_MS}, then thrown.
 */
async function follow<View>(
  read: () => Promise<View>,
  isOver: (view: View) => boolean,
  { onProgress, signal }: FollowCallOptions<View>,
): Promise<View> {
  let unavailableSince: number | null = null;
  for (;;) {
    try {
      const view = await read();
      unavailableSince = null;
      onProgress?.(view);
      if (isOver(view)) return view;
    } catch (error) {
      const temporary =
        (error instanceof MooringApiError && error.status === 503) || error instanceof MooringConnectionError;
      unavailableSince ??= performance.now();
      if (!temporary || performance.now() > unavailableSince + UNAVAILABLE_MS) throw error;
    }
    await pause(FOLLOW_EVERY_MS, signal);
    signal?.throwIfAborted();
  }
}

/** A client of one API. Its calls throw {@link MooringApiError} and {@link MooringConnectionError}. */
export class MooringClient {
  readonly #url: string;
  readonly #timeoutMs: number;
  readonly #findToken: () => Promise<string | undefined>;
  #token: Promise<string | undefined> | undefined;

  constructor(options: MooringClientOptions) {
    const { token } = options;
    this.#url = options.url.replace(/\/+$/, '');
    this.#timeoutMs = options.timeoutMs ?? TIMEOUT_MS;
    this.#findToken = typeof token === 'function' ? token : async () => token;
  }

  listProjects(options: CallOptions = {}): AsyncGenerator<ProjectView> {
    return this.#pages('/v1/projects', {}, projectView, options);
  }
  createProject(project: ProjectCreate, options: CallOptions = {}): Promise<ProjectView> {
    return this.#call('POST', '/v1/projects', { body: project, ...options }, projectView);
  }
  getProject(project: string, options: CallOptions = {}): Promise<ProjectView> {
    return this.#call('GET', `/v1/projects/${encodeURIComponent(project)}`, options, projectView);
  }
  async deleteProject(project: string, options: CallOptions = {}): Promise<void> {
    await this.#call('DELETE', `/v1/projects/${encodeURIComponent(project)}`, options, nothing);
  }
  getQuota(project: string, options: CallOptions = {}): Promise<QuotaView> {
    return this.#call('GET', `/v1/system/projects/${encodeURIComponent(project)}/quota`, options, quotaView);
  }
  setQuota(project: string, quota: QuotaUpdate, options: CallOptions = {}): Promise<QuotaView> {
    return this.#call(
      'PUT',
      `/v1/system/projects/${encodeURIComponent(project)}/quota`,
      { body: quota, ...options },
      quotaView,
    );
  }

  /** Lists instances, page by page as they are read; `state` is an external state. */
  listInstances(options: InstanceCallOptions & { state?: string | undefined } = {}): AsyncGenerator<InstanceView> {
    const { project, state, signal } = options;
    return this.#pages('/v1/instances', { project, state }, instanceView, { signal });
  }
  /**
   * Creates an instance and, unless `start` is false, starts it. A first start that fails leaves it stopped, and doesn't throw:
   * `start_error` says why. One that goes on is followed by `start_operation_id`.
   */
  async createInstance(
    instance: InstanceCreate,
    options: OperationCallOptions & { project: string },
  ): Promise<InstanceCreated> {
    const parts = {
      ...options,
      idempotencyKey: options.idempotencyKey ?? crypto.randomUUID(),
      query: { project: options.project },
      body: instance,
    };
    const { headers, value } = await this.#request('POST', '/v1/instances', parts, instanceCreated);
    return { ...value, start_operation_id: value.start_operation_id ?? operationIn(headers) };
  }
  getInstance(instance: string, options: InstanceCallOptions = {}): Promise<InstanceView> {
    return this.#call('GET', instancePath(instance), instanceQuery(options), instanceView);
  }
  /** How far an instance's newest migration is, or how it ended. Throws {@link MooringApiError} (404) when it never had one. */
  getMigration(instance: string, options: InstanceCallOptions = {}): Promise<MigrationView> {
    return this.#call('GET', `${instancePath(instance)}/migration`, instanceQuery(options), migrationView);
  }
  /** Reads what happened to an instance, oldest first; by its id also for a deleted one. */
  getInstanceHistory(instance: string, options: InstanceCallOptions = {}): Promise<HistoryView> {
    return this.#call('GET', `${instancePath(instance)}/history`, instanceQuery(options), historyView);
  }
  updateInstance(instance: string, changes: InstanceUpdate, options: InstanceCallOptions = {}): Promise<InstanceView> {
    return this.#call('PUT', instancePath(instance), { ...instanceQuery(options), body: changes }, instanceView);
  }
  async deleteInstance(instance: string, options: InstanceCallOptions = {}): Promise<void> {
    await this.#call('DELETE', instancePath(instance), instanceQuery(options), nothing);
  }
  /**
   * Starts an instance; returns when its sled has accepted to run it. Throws {@link MooringApiError} when the start was
   * undone.
   */
  startInstance(instance: string, options: OperationCallOptions = {}): Promise<OperationStarted> {
    return this.#operate(instance, 'start', undefined, { idempotencyKey: crypto.randomUUID(), ...options });
  }
  /** Stops an instance: returns when the intent is recorded, from which on it ends Stopped. */
  async stopInstance(instance: string, options: InstanceCallOptions = {}): Promise<InstanceView> {
    return (await this.#operate(instance, 'stop', undefined, options)).instance;
  }
  /**
   * Stops an instance whose sled doesn't answer, on the caller's statement (`sled_powered_off`) that the sled runs nothing
   * any more. Throws {@link MooringApiError} (409) when the sled answers, or that is not stated.
   */
  async forceStopInstance(
    instance: string,
    statement: InstanceForceStop = {},
    options: InstanceCallOptions = {},
  ): Promise<InstanceView> {
    return (await this.#operate(instance, 'force-stop', statement, options)).instance;
  }
  async rebootInstance(instance: string, options: InstanceCallOptions = {}): Promise<InstanceView> {
    return (await this.#operate(instance, 'reboot', undefined, options)).instance;
  }
  /** Migrates an instance to a sled (by id); returns when the destination has accepted to migrate it in. */
  migrateInstance(instance: string, sledId: string, options: OperationCallOptions = {}): Promise<OperationStarted> {
    return this.#operate(
      instance,
      'migrate',
      { dst_sled_id: sledId },
      { idempotencyKey: crypto.randomUUID(), ...options },
    );
  }

  /** Lists the affinity or anti-affinity groups of a project. */
  listAffinityGroups(
    kind: AffinityKind,
    options: CallOptions & { project: string },
  ): AsyncGenerator<AffinityGroupView> {
    return this.#pages(groupsPath(kind), { project: options.project }, affinityGroupView, { signal: options.signal });
  }
  createAffinityGroup(
    kind: AffinityKind,
    group: AffinityGroupCreate,
    options: CallOptions & { project: string },
  ): Promise<AffinityGroupView> {
    return this.#call('POST', groupsPath(kind), { ...instanceQuery(options), body: group }, affinityGroupView);
  }
  getAffinityGroup(kind: AffinityKind, group: string, options: InstanceCallOptions = {}): Promise<AffinityGroupView> {
    return this.#call('GET', groupsPath(kind, group), instanceQuery(options), affinityGroupView);
  }
  updateAffinityGroup(
    kind: AffinityKind,
    group: string,
    changes: AffinityGroupUpdate,
    options: InstanceCallOptions = {},
  ): Promise<AffinityGroupView> {
    return this.#call('PUT', groupsPath(kind, group), { ...instanceQuery(options), body: changes }, affinityGroupView);
  }
  /** Deletes a group; its members stay where they are. */
  async deleteAffinityGroup(kind: AffinityKind, group: string, options: InstanceCallOptions = {}): Promise<void> {
    await this.#call('DELETE', groupsPath(kind, group), instanceQuery(options), nothing);
  }
  listAffinityMembers(
    kind: AffinityKind,
    group: string,
    options: InstanceCallOptions = {},
  ): AsyncGenerator<AffinityGroupMember> {
    const { query, signal } = instanceQuery(options);
    return this.#pages(`${groupsPath(kind, group)}/members`, query, affinityGroupMember, { signal });
  }
  /** Adds an instance of the group's project that is not placed on a sled. */
  addAffinityMember(
    kind: AffinityKind,
    group: string,
    instance: string,
    options: InstanceCallOptions = {},
  ): Promise<AffinityGroupMember> {
    return this.#call('POST', memberPath(kind, group, instance), instanceQuery(options), affinityGroupMember);
  }
  async removeAffinityMember(
    kind: AffinityKind,
    group: string,
    instance: string,
    options: InstanceCallOptions = {},
  ): Promise<void> {
    await this.#call('DELETE', memberPath(kind, group, instance), instanceQuery(options), nothing);
  }
  /** Lists the groups that an instance is in. */
  listAffinityGroupsOf(
    kind: AffinityKind,
    instance: string,
    options: InstanceCallOptions = {},
  ): AsyncGenerator<AffinityGroupView> {
    const { query, signal } = instanceQuery(options);
    return this.#pages(`${instancePath(instance)}/${GROUP_PATHS[kind]}`, query, affinityGroupView, { signal });
  }

  /**
   * Reads a piece of an instance's serial console, from an offset since the guest began; it goes on counting across
   * migrations.
   */
  readSerialConsole(
    instance: string,
    options: InstanceCallOptions & { fromStart?: number | undefined; maxBytes?: number | undefined } = {},
  ): Promise<SerialConsoleData> {
    const { query, signal } = instanceQuery(options);
    return this.#call(
      'GET',
      `${instancePath(instance)}/serial-console`,
      {
        query: { ...query, from_start: options.fromStart?.toString(), max_bytes: options.maxBytes?.toString() },
        signal,
      },
      serialConsoleData,
    );
  }

  getOperation(operationId: string, options: CallOptions = {}): Promise<OperationView> {
    return this.#call('GET', `/v1/operations/${encodeURIComponent(operationId)}`, options, operationView);
  }
  /**
   * Follows an operation to its outcome; `onProgress` is called with each view of it. An API that is unavailable for a while
   * (503) is asked again. Throws the signal's reason when cancelled.
   */
  waitForOperation(operationId: string, options: FollowCallOptions<OperationView> = {}): Promise<OperationView> {
    return follow(
      () => this.getOperation(operationId, options),
      (operation) => operation.state === 'done',
      options,
    );
  }

  listSleds(options: CallOptions = {}): AsyncGenerator<SledView> {
    return this.#pages('/v1/system/hardware/sleds', {}, sledView, options);
  }
  /** Adds a sled, having asked its agent who it is; `warning` says where nobody answers. */
  addSled(sled: SledAdd, options: CallOptions = {}): Promise<SledAdded> {
    return this.#call('POST', '/v1/system/hardware/sleds', { body: sled, ...options }, sledAdded);
  }
  /** Has a sled's agent be at another address, and its VMMs with it; refused while the one at the old address answers. */
  setSledAddress(
    sledId: string,
    address: string,
    { sled_powered_off, ...options }: CallOptions & Omit<SledSetAddress, 'address'> = {},
  ): Promise<SledAdded> {
    const path = `/v1/system/hardware/sleds/${encodeURIComponent(sledId)}/address`;
    const body: SledSetAddress = { address, ...(sled_powered_off === undefined ? {} : { sled_powered_off }) };
    return this.#call('PUT', path, { body, ...options }, sledAdded);
  }
  getSled(sledId: string, options: CallOptions = {}): Promise<SledView> {
    return this.#call('GET', `/v1/system/hardware/sleds/${encodeURIComponent(sledId)}`, options, sledView);
  }
  async setSledPolicy(
    sledId: string,
    policy: 'provisionable' | 'non_provisionable',
    options: CallOptions = {},
  ): Promise<void> {
    const path = `/v1/system/hardware/sleds/${encodeURIComponent(sledId)}/provision-policy`;
    await this.#call('PUT', path, { body: { state: policy }, ...options }, provisionPolicyResponse);
  }
  /** States that nothing runs on a sled any more: what ran there becomes Failed, and may come up elsewhere. */
  declareSledDead(sledId: string, statement: SledDeclareDead, options: CallOptions = {}): Promise<SledView> {
    const path = `/v1/system/hardware/sleds/${encodeURIComponent(sledId)}/declare-dead`;
    return this.#call('POST', path, { body: statement, ...options }, sledView);
  }
  /**
   * States that a sled is gone for good. What ran there becomes Failed when it can't run any more; until then its `state` is
   * `active`. It can't be taken back. Throws {@link MooringApiError} (409) for a sled that answers, may hold a lease, or has
   * VMMs, where `sled_powered_off` is not stated.
   */
  expungeSled(sledId: string, statement: SledExpunge = {}, options: CallOptions = {}): Promise<SledView> {
    const path = `/v1/system/hardware/sleds/${encodeURIComponent(sledId)}/expunge`;
    return this.#call('POST', path, { body: statement, ...options }, sledView);
  }

  /** Who the API takes this client for. */
  whoAmI(options: CallOptions = {}): Promise<CurrentUserView> {
    return this.#call('GET', '/v1/me', options, currentUserView);
  }
  /** Lists the access tokens that are not revoked, without their secrets. */
  listTokens(options: CallOptions = {}): AsyncGenerator<AccessTokenView> {
    return this.#pages('/v1/system/access-tokens', {}, accessTokenView, options);
  }
  /** Makes an access token; `token` in the answer is its secret, which can't be read again. */
  createToken(token: AccessTokenCreate, options: CallOptions = {}): Promise<AccessTokenCreated> {
    return this.#call('POST', '/v1/system/access-tokens', { body: token, ...options }, accessTokenCreated);
  }
  /** Revokes a token, by its id or name: the next request that carries it is refused. */
  async revokeToken(token: string, options: CallOptions = {}): Promise<void> {
    await this.#call('DELETE', `/v1/system/access-tokens/${encodeURIComponent(token)}`, options, nothing);
  }

  /**
   * Lists what was done, in the order in which it was completed; `since` is included, `until` is not, both ISO 8601. Of what
   * is still going on there is nothing yet.
   */
  listAuditLog(
    options: CallOptions & {
      since?: string | undefined;
      until?: string | undefined;
      newestFirst?: boolean | undefined;
    } = {},
  ): AsyncGenerator<AuditLogEntry> {
    const { since, until, newestFirst, signal } = options;
    const sort_by = newestFirst ? 'time_and_id_descending' : undefined;
    return this.#pages('/v1/system/audit-log', { start_time: since, end_time: until, sort_by }, auditLogEntry, {
      signal,
    });
  }

  /** Lists where each instance lives, as sled agents read it. */
  async *listNetwork(options: CallOptions = {}): AsyncGenerator<NetworkEntry> {
    for (let after: string | undefined; ; ) {
      const page = await this.#call('GET', '/network/instances', { ...options, query: { after } }, networkPage);
      yield* page.items;
      if (!page.more) return;
      after = page.next;
    }
  }

  /** Begins to drain a sled, or joins the drain that is under way. */
  drainSled(sledId: string, drain: DrainBegin = {}, options: CallOptions = {}): Promise<DrainView> {
    return this.#call('POST', drainPath(sledId), { body: drain, ...options }, drainView);
  }
  /** How far the last drain of a sled has come. Throws {@link MooringApiError} (404) when there was none. */
  getDrain(sledId: string, options: CallOptions = {}): Promise<DrainView> {
    return this.#call('GET', drainPath(sledId), options, drainView);
  }
  /** Stops a drain: nothing more is moved; the sled stays out of service for new instances. */
  stopDrain(sledId: string, options: CallOptions = {}): Promise<DrainView> {
    return this.#call('DELETE', drainPath(sledId), options, drainView);
  }
  /**
   * Follows a drain to its end; `onProgress` is called with each view of it. An API that is unavailable for a while (503: no
   * worker answers its query) is asked again. Throws the signal's reason when cancelled.
   */
  waitForDrain(sledId: string, options: FollowCallOptions<DrainView> = {}): Promise<DrainView> {
    return follow(
      () => this.getDrain(sledId, options),
      (drain) => drain.state !== 'running',
      options,
    );
  }

  /** Invites a sled: the answer holds the one-time token by which it joins, shown this once. */
  inviteSled(invite: SledInviteCreate, options: CallOptions = {}): Promise<SledInviteView> {
    return this.#call('POST', '/v1/system/hardware/sled-invites', { body: invite, ...options }, sledInviteView);
  }
  /** Lists the certificates of a sled (by id), newest first. */
  async listSledCertificates(sledId: string, options: CallOptions = {}): Promise<SledCertificateView[]> {
    const path = `/v1/system/hardware/sleds/${encodeURIComponent(sledId)}/certificates`;
    return (await this.#call('GET', path, options, sledCertificateList)).items;
  }
  /** Revokes every certificate of a sled (by id); returns how many were good. */
  async revokeSledCertificates(sledId: string, options: CallOptions = {}): Promise<number> {
    const path = `/v1/system/hardware/sleds/${encodeURIComponent(sledId)}/revoke-certificates`;
    return (await this.#call('POST', path, options, z.object({ revoked: z.number() }))).revoked;
  }

  async listReconcilers(options: CallOptions = {}): Promise<ReconcilerView[]> {
    const page = z.object({ items: z.array(reconcilerView) });
    return (await this.#call('GET', '/v1/system/reconcilers', options, page)).items;
  }
  /** Switches a reconciling loop on or off. */
  setReconciler(name: ReconcilerName, enabled: boolean, options: CallOptions = {}): Promise<ReconcilerView> {
    return this.#call('PUT', `/v1/system/reconcilers/${name}`, { body: { enabled }, ...options }, reconcilerView);
  }
  /** Runs one pass of a reconciling loop now, also while it is switched off; returns what it found and did. */
  runReconciler(name: ReconcilerName, options: CallOptions = {}): Promise<ReconcilerPassView> {
    return this.#call('POST', `/v1/system/reconcilers/${name}/run`, options, reconcilerPassView);
  }

  /** Lists operations, the newest first; `since` is when they began at the earliest, ISO 8601. */
  listOperations(
    options: InstanceCallOptions & {
      instance?: string | undefined;
      state?: 'running' | 'done' | undefined;
      outcome?: 'succeeded' | 'failed' | undefined;
      since?: string | undefined;
    } = {},
  ): AsyncGenerator<OperationView> {
    const { project, instance, state, outcome, since, signal } = options;
    const query = { project, instance, state, outcome, start_time: since };
    return this.#pages('/v1/operations', query, operationView, { signal });
  }
  /** What happened in each of the last minutes (default 60, at most 180): starts, migrations, unwinds, failures, update lag. */
  getActivity({ minutes, ...options }: CallOptions & { minutes?: number | undefined } = {}): Promise<ActivityView> {
    const query = { minutes: minutes === undefined ? undefined : String(minutes) };
    return this.#call('GET', '/v1/system/activity', { query, ...options }, activityView);
  }

  /**
   * Follows what changes (docs/events.md): yields each event, and goes on where it was when the connection breaks. A `reset` says
   * that changes may have been missed: list anew what you keep. Ends with `follow: false`. Throws {@link MooringApiError} where the
   * caller may not (or no more: 401, 403, 404) and for an API that doesn't know it (404), the signal's reason when cancelled, and
   * {@link MooringConnectionError} after a minute without an API.
   */
  async *events(options: EventCallOptions = {}): AsyncGenerator<ReceivedEvent> {
    const { kinds, project, instance, signal, follow = true } = options;
    let after = options.after;
    let awaySince: number | null = null;
    let pauseMs = STREAM_AGAIN_MS.first;
    for (;;) {
      try {
        const query = { kinds: kinds?.join(','), project, instance, after, follow: follow ? undefined : 'false' };
        for await (const { raw, id } of this.#stream('/v1/events', { query, signal })) {
          awaySince = null;
          pauseMs = STREAM_AGAIN_MS.first;
          const event = raw === null ? null : readEvent(raw);
          if (event?.event === 'end') break;
          if (event !== null) yield { ...event, id };
          after = id ?? after;
        }
        if (!follow) return;
      } catch (error) {
        signal?.throwIfAborted();
        const isAway =
          error instanceof MooringConnectionError ||
          (error instanceof MooringApiError && (error.status === 503 || error.status === 429));
        awaySince ??= performance.now();
        if (!isAway || performance.now() > awaySince + UNAVAILABLE_MS) throw error;
      }
      await pause(pauseMs, signal);
      signal?.throwIfAborted();
      pauseMs = Math.min(STREAM_AGAIN_MS.longest, pauseMs * 2);
    }
  }

  async #operate(
    instance: string,
    what: string,
    body: unknown,
    options: OperationCallOptions,
  ): Promise<OperationStarted> {
    const parts = {
      ...instanceQuery(options),
      waitSeconds: options.waitSeconds,
      idempotencyKey: options.idempotencyKey,
      body,
    };
    const { headers, value } = await this.#request('POST', `${instancePath(instance)}/${what}`, parts, instanceView);
    return { instance: value, operationId: operationIn(headers) };
  }

  async *#pages<Item>(path: string, query: Query, schema: z.ZodType<Item>, options: CallOptions): AsyncGenerator<Item> {
    let token: string | null = null;
    do {
      const page: ResultsPage<Item> = await this.#call(
        'GET',
        path,
        { ...options, query: { ...query, page_token: token ?? undefined } },
        resultsPage(schema),
      );
      yield* page.items;
      token = page.next_page;
    } while (token !== null);
  }

  async #call<Answer>(method: string, path: string, request: RequestParts, schema: z.ZodType<Answer>): Promise<Answer> {
    return (await this.#request(method, path, request, schema)).value;
  }

  async #request<Answer>(
    method: string,
    path: string,
    request: RequestParts,
    schema: z.ZodType<Answer>,
  ): Promise<Answered<Answer>> {
    for (let sent = 1; ; sent++) {
      try {
        return await this.#send(method, path, request, schema);
      } catch (error) {
        // Only a call with a key may be sent again after it was perhaps done already.
        const resendable = error instanceof MooringConnectionError && request.idempotencyKey !== undefined;
        // One that was waited for to the limit has had its time.
        const isLate = error instanceof Error && error.cause instanceof AnswerLate;
        if (!resendable || isLate || sent > MAX_RESENDS || (sent === 1 && error.neverSent)) throw error;
        await pause(RESEND_AFTER_MS * sent, request.signal);
        request.signal?.throwIfAborted();
      }
    }
  }

  async #send<Answer>(
    method: string,
    path: string,
    request: RequestParts,
    schema: z.ZodType<Answer>,
  ): Promise<Answered<Answer>> {
    const url = this.#urlOf(path, request.query);
    const headers = await this.#headers();
    if (request.body !== undefined) headers['content-type'] = 'application/json';
    if (request.waitSeconds !== undefined) headers.prefer = `wait=${request.waitSeconds}`;
    if (request.idempotencyKey !== undefined) headers['idempotency-key'] = request.idempotencyKey;
    const waitMs = method === 'GET' ? 0 : (request.waitSeconds ?? LONGEST_WAIT_SECONDS) * 1_000;
    let response: Response;
    let text: string;
    try {
      ({ response, text } = await within(this.#timeoutMs + waitMs, request.signal, async (signal) => {
        const body = request.body === undefined ? null : JSON.stringify(request.body);
        // The API sends nobody elsewhere: who does is somebody else, who need not be told the token and the body again.
        const answer = await fetch(url, { method, headers, body, signal, redirect: 'manual' });
        return { response: answer, text: await answer.text() };
      }));
    } catch (error) {
      request.signal?.throwIfAborted();
      throw connectionError(this.#url, error);
    }
    const { status, headers: received } = response;
    const answer = readControlPlaneAnswer({ status, text, requestId: received.get('x-request-id') }, schema);
    if (answer.kind === 'done') return { headers: received, value: answer.value };
    throw this.#refusalOf(response, answer);
  }

  /** What an answer that is no success throws. */
  #refusalOf(
    { status, headers }: Response,
    answer: Exclude<ControlPlaneAnswer<unknown>, { kind: 'done' }>,
  ): MooringApiError | MooringConnectionError {
    if (answer.kind === 'refused') return new MooringApiError(status, answer.error);
    const elsewhere = headers.get('location');
    const hint =
      status >= 300 && status < 400 && elsewhere !== null
        ? `it points to ${elsewhere}: is the API there?`
        : 'a proxy or a portal may stand in between, or the address be another one';
    return new MooringConnectionError(
      `what answers at ${this.#url} is not the Mooring API (${answer.why}): ${hint}`,
      false,
    );
  }

  #urlOf(path: string, query: Query = {}): URL {
    const url = new URL(this.#url + path);
    for (const [name, value] of Object.entries(query)) if (value !== undefined) url.searchParams.set(name, value);
    return url;
  }

  async #headers(): Promise<Record<string, string>> {
    this.#token ??= this.#findToken();
    const token = await this.#token;
    return token === undefined ? {} : { authorization: `Bearer ${token}` };
  }

  /** The events of one connection, and cursors that came alone (`raw` is `null`). Ends with it; throws as each call does. */
  async *#stream(
    path: string,
    { query, signal }: RequestParts,
  ): AsyncGenerator<{ raw: RawEvent | null; id: string | null }> {
    const connection = new AbortController();
    const end = () => connection.abort();
    signal?.addEventListener('abort', end, { once: true });
    const patiently = <Result>(work: Promise<Result>, limitMs: number) => {
      const silent = setTimeout(end, limitMs);
      return work.finally(() => clearTimeout(silent));
    };
    try {
      signal?.throwIfAborted();
      const headers = { ...(await this.#headers()), accept: 'text/event-stream' };
      const asked = fetch(this.#urlOf(path, query), { headers, signal: connection.signal, redirect: 'manual' });
      const response = await patiently(asked, this.#timeoutMs);
      const requestId = response.headers.get('x-request-id');
      const isStream = response.headers.get('content-type')?.startsWith('text/event-stream') ?? false;
      if (response.status !== 200 || !isStream || !isMarked({ status: 200, text: '', requestId }) || !response.body) {
        const text = await patiently(response.text(), this.#timeoutMs);
        throw this.#refusalOf(
          response,
          noStream(readControlPlaneAnswer({ status: response.status, text, requestId }, z.never())),
        );
      }
      const parser = new EventParser();
      const decoder = new TextDecoder();
      const reader = response.body.getReader();
      for (;;) {
        const before = parser.lastId;
        const { value, done } = await patiently(reader.read(), SILENT_STREAM_MS);
        if (done) return;
        const events = parser.take(decoder.decode(value, { stream: true }));
        for (const raw of events) yield { raw, id: raw.id };
        if (parser.lastId !== before && events.at(-1)?.id !== parser.lastId) yield { raw: null, id: parser.lastId };
      }
    } catch (error) {
      signal?.throwIfAborted();
      if (error instanceof MooringApiError || error instanceof MooringConnectionError) throw error;
      throw connectionError(this.#url, error);
    } finally {
      signal?.removeEventListener('abort', end);
      connection.abort();
    }
  }
}

/** An answer of which nothing can be a success. */
function noStream(answer: ControlPlaneAnswer<never>): Exclude<ControlPlaneAnswer<never>, { kind: 'done' }> {
  return answer.kind === 'done' ? { kind: 'none', why: 'it is no stream' } : answer;
}

/** An event; `null` for one of a kind that this client does not know. */
function readEvent({ event, data }: RawEvent): StreamEvent | null {
  const read = streamEvent.safeParse({ event, data: parseJson(data) });
  if (read.success) return read.data;
  if (!KNOWN_EVENTS.has(event)) return null;
  const [issue] = read.error.issues;
  throw new Error(
    `the API sent an event "${event}" that is not what it should be (${issue?.path.join('.')}: ${issue?.message})`,
  );
}

const KNOWN_EVENTS: ReadonlySet<string> = new Set(streamEvent.options.map(({ shape }) => shape.event.value));

interface Answered<Answer> {
  readonly headers: Headers;
  readonly value: Answer;
}

/** The operation that an answer points to; `null` where it points to none. */
function operationIn(headers: Headers): string | null {
  return headers.get('location')?.split('/').at(-1) ?? null;
}

class AnswerLate extends Error {
  override readonly name = 'AnswerLate';
}

/** Runs `work` with a signal that is aborted after `limitMs` milliseconds, or when `outer` is. */
async function within<Result>(
  limitMs: number,
  outer: AbortSignal | undefined,
  work: (signal: AbortSignal) => Promise<Result>,
): Promise<Result> {
  const limit = new AbortController();
  const end = () => limit.abort(outer?.reason);
  const timer = setTimeout(
    () => limit.abort(new AnswerLate(`it gave no whole answer within ${limitMs / 1_000} s`)),
    limitMs,
  );
  if (outer?.aborted) end();
  outer?.addEventListener('abort', end, { once: true });
  try {
    return await work(limit.signal);
  } finally {
    clearTimeout(timer);
    outer?.removeEventListener('abort', end);
  }
}

/** What a call that got no answer from `url` throws. */
function connectionError(url: string, error: unknown): MooringConnectionError {
  const cause = error instanceof Error && error.cause instanceof Error ? error.cause : error;
  const { code } = (cause ?? {}) as { code?: unknown };
  const speaksNoTls = url.startsWith('https:') && /^(EPROTO|ERR_SSL_)/.test(String(code));
  return new MooringConnectionError(
    speaksNoTls
      ? `what answers at ${url} speaks no TLS: name it with http:// (--api-url or MOORING_API_URL), or a port that has TLS`
      : `no Mooring API answers at ${url} (${cause instanceof Error ? cause.message : cause}): start one with "mooring up", or name another with --api-url`,
    code === 'ECONNREFUSED',
    { cause: error },
  );
}

type Query = Record<string, string | undefined>;
interface RequestParts extends CallOptions {
  readonly query?: Query;
  readonly body?: unknown;
  readonly waitSeconds?: number | undefined;
  readonly idempotencyKey?: string | undefined;
}

function instancePath(instance: string): string {
  return `/v1/instances/${encodeURIComponent(instance)}`;
}

const GROUP_PATHS: Readonly<Record<AffinityKind, string>> = {
  affinity: 'affinity-groups',
  anti_affinity: 'anti-affinity-groups',
};

function groupsPath(kind: AffinityKind, group?: string): string {
  const all = `/v1/${GROUP_PATHS[kind]}`;
  return group === undefined ? all : `${all}/${encodeURIComponent(group)}`;
}

function memberPath(kind: AffinityKind, group: string, instance: string): string {
  return `${groupsPath(kind, group)}/members/instance/${encodeURIComponent(instance)}`;
}

function instanceQuery(options: InstanceCallOptions): { query: Query; signal?: AbortSignal | undefined } {
  return { query: { project: options.project }, signal: options.signal };
}

function drainPath(sledId: string): string {
  return `/v1/system/hardware/sleds/${encodeURIComponent(sledId)}/drain`;
}
