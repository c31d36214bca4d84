/**
 * Who is calling, and whether they may: the first thing that is asked of every request. Each route's permission is a line in
 * `model/permissions.ts`; what it is about is looked up here, once, for callers who may not see everything.
 */
import type { FastifyInstance, FastifyReply, FastifyRequest } from 'fastify';
import { hashTokenSecret } from '../db/access-token-secret.ts';
import type { Database } from '../db/connect.ts';
import { findToken, findTokenByHash } from '../db/queries/find-token.ts';
import { readProjectOf } from '../db/queries/read-project-of.ts';
import { requireAffinityGroup } from '../db/queries/require-affinity-group.ts';
import { requireProject } from '../db/queries/require-project.ts';
import { type Caller, judgeAccess, type TokenIdentity } from '../model/access.ts';
import { type Permission, permissionOf, type Subject } from '../model/permissions.ts';
import { Refusal } from '../model/refusal.ts';
import { type AffinityKind, assertNever, groupNoun } from '../model/states.ts';
import { isForPerson, isOfForeignPage, isOfPage, isOwnHost } from '../platform/http/web-pages.ts';
import { isUuid } from '../wire/operator-api/names.ts';
import { RequestAudit } from './audit.ts';

/**
 * How callers are known. `tokens`: by a bearer token. `open`: a request without one is the local operator's; only for an
 * API that listens on the loopback address.
 */
export const AUTHENTICATION_MODES = ['tokens', 'open'] as const;
export type AuthenticationMode = (typeof AUTHENTICATION_MODES)[number];

declare module 'fastify' {
  interface FastifyRequest {
    /** Who sends it; `null` where nobody needs to be known. */
    caller: Caller | null;
    /** Its way onto the audit log; `null` for what changes nothing. */
    audit: RequestAudit | null;
  }
  interface FastifyContextConfig {
    permission?: Permission;
  }
}

/** What the hooks work with. */
export interface AccessOptions {
  readonly db: Database;
  readonly mode: AuthenticationMode;
  /** Hosts by which callers of the open mode may reach it, besides loopback addresses and the address that it listens on. */
  readonly hosts?: readonly string[] | undefined;
  /** Called with each refused credential, for the log. */
  readonly onRefused: (request: FastifyRequest, refusal: Refusal) => void;
  /** Called for each audit record that could not be written after its request was done. */
  readonly onAuditLost: (request: FastifyRequest, error: unknown) => void;
  /** Which sled agent sends a request; `null`: none that can prove it. */
  readonly sledOf: (request: FastifyRequest) => Caller | null;
}

/** Adds the hooks, before any route. A route that has no permission throws as it is added. */
export function addAccessHooks(app: FastifyInstance, options: AccessOptions): void {
  const { db } = options;
  app.decorateRequest('caller', null);
  app.decorateRequest('audit', null);
  app.addHook('onRoute', (route) => {
    for (const method of [route.method].flat()) {
      const permission = permissionOf(method, route.url);
      if (permission === undefined)
        throw new Error(`${method} ${route.url} has no permission: add its line to model/permissions.ts`);
      route.config = { ...route.config, permission };
      if (route.schema === undefined) continue;
      Object.assign(route.schema, {
        operationId: permission.operation,
        ...(permission.needs === 'anyone' || permission.needs === 'sled' ? { security: [] } : {}),
      });
    }
  });
  app.addHook('onRequest', async (request, reply) => {
    const permission = request.routeOptions.config.permission;
    if (request.is404 || permission === undefined) return;
    try {
      if (permission.needs === 'anyone') {
        // A link from anywhere leads to the console.
        if (options.mode === 'open') refuseForeign(request, options, isForPerson(request.headers));
        return;
      }
      request.caller = await identify(request, permission, options);
    } catch (error) {
      if (error instanceof Refusal && error.code === 'Unauthorized') {
        // RFC 6750, section 3.
        const sent = request.headers.authorization !== undefined;
        reply.header('www-authenticate', `Bearer realm="mooring"${sent ? ', error="invalid_token"' : ''}`);
        options.onRefused(request, error);
      }
      throw error;
    }
  });
  app.addHook('preHandler', async (request) => {
    const permission = request.routeOptions.config.permission;
    const { caller } = request;
    if (permission === undefined || caller === null) return;
    if (permission.audit !== null) request.audit = new RequestAudit(db, request, caller, permission);
    await authorize(db, request, caller, permission);
    if (permission.audit === 'before' && !BEGUN_BY_THEIR_HANDLER.has(permission.operation))
      await request.audit?.begin();
  });
  app.addHook('onSend', async (request, reply: FastifyReply, payload) => {
    await request.audit?.complete(reply, payload).catch((error: unknown) => options.onAuditLost(request, error));
    return payload;
  });
}

/** Their record is a part of a statement that they send anyway: a start must cost no round trip more. */
const BEGUN_BY_THEIR_HANDLER = new Set(['instance_start', 'instance_migrate']);

const HOW_TO_LOG_IN = 'log in with "mooring login", or set MOORING_TOKEN';

async function identify(request: FastifyRequest, permission: Permission, options: AccessOptions): Promise<Caller> {
  const { db, mode, sledOf } = options;
  const { authorization } = request.headers;
  const forSleds = permission.needs === 'sled' || permission.needs === 'sled or viewer';
  if (authorization === undefined) {
    const sled = forSleds ? sledOf(request) : null;
    if (sled !== null) return unseenByPages(request, options, sled);
    if (mode === 'open' && !forSleds) return localOperator(request, options);
    throw Refusal.unauthorized(`a token is needed: ${HOW_TO_LOG_IN}`);
  }
  const secret = /^Bearer +([\x21-\x7e]+) *$/i.exec(authorization)?.[1];
  if (secret === undefined) throw Refusal.unauthorized(`Authorization: must be "Bearer" and a token; ${HOW_TO_LOG_IN}`);
  const found = await findTokenByHash(db, hashTokenSecret(secret));
  if (found === null) throw Refusal.unauthorized(`the token is not one of this installation: ${HOW_TO_LOG_IN}`);
  const { token, expired } = found;
  // Only who holds the token gets to know its name.
  if (token.timeRevoked !== null)
    throw Refusal.unauthorized(`the token "${token.name}" was revoked: ask for another one, then ${HOW_TO_LOG_IN}`);
  if (expired)
    throw Refusal.unauthorized(`the token "${token.name}" has expired: ask for another one, then ${HOW_TO_LOG_IN}`);
  const { id, name, role, projectId } = token;
  return { kind: 'operator', token: { id, name, role, projectId } };
}

/** The local operator, who is no page of some site in the operator's browser. */
function localOperator(request: FastifyRequest, options: AccessOptions): Caller {
  refuseForeign(request, options);
  return { kind: 'local' };
}

/** A sled agent that proves nothing: no page, and where callers need no token, no other host's. */
function unseenByPages(request: FastifyRequest, options: AccessOptions, sled: Caller): Caller {
  if (isOfPage(request.headers)) throw foreignPage();
  if (options.mode === 'open') refuseForeign(request, options);
  return sled;
}

/**
 * Refuses, in the open mode, a page that is not of this machine, and whoever reached it by a name that is not its own.
 * `mayBeLed`: what is answered has nothing that the page that led there could do harm with.
 */
function refuseForeign(
  { method, headers, socket }: FastifyRequest,
  { hosts = [] }: AccessOptions,
  mayBeLed = false,
): void {
  // Where the connection came in is its own address, whatever it listens on.
  const own = socket.localAddress === undefined ? hosts : [socket.localAddress, ...hosts];
  if (isOfForeignPage(headers, own) && !(mayBeLed && method === 'GET')) throw foreignPage();
  const { host } = headers;
  if (host === undefined || isOwnHost(host, own)) return;
  throw Refusal.unauthorized(
    `a token is needed by what calls this API by the host ${JSON.stringify(host)}: call it by a loopback address, name the host with --hosts (MOORING_HOSTS) as it is started, or ${HOW_TO_LOG_IN}`,
  );
}

function foreignPage(): Refusal {
  return Refusal.unauthorized(`a token is needed by what comes from a page of another site: ${HOW_TO_LOG_IN}`);
}

async function authorize(
  db: Database,
  request: FastifyRequest,
  caller: Caller,
  { needs, subjects, operation }: Permission,
): Promise<void> {
  if (needs === 'anyone' || needs === 'known' || caller.kind === 'local') return;
  if (needs === 'sled' || needs === 'sled or viewer') {
    if (caller.kind === 'sled') return;
    if (needs === 'sled or viewer' && caller.token.projectId === null) return;
    throw Refusal.forbidden(
      needs === 'sled'
        ? `only a sled agent may do this, and token "${caller.token.name}" is not one`
        : `this shows the whole fleet, and token "${caller.token.name}" is on one project`,
    );
  }
  if (caller.kind === 'sled') throw Refusal.forbidden('a sled agent may not do this');
  const { token } = caller;
  // What is looked up is only needed where not everything may be seen.
  const projectIds = token.projectId === null ? [] : await projectsOf(db, request, subjects, token.projectId);
  // `hidden` can't come here: each look-up has refused it by the message by which it refuses what isn't there.
  if (judgeAccess(token, needs, projectIds) === 'allowed') return;
  const holds = `is ${token.role} on ${token.projectId === null ? 'the fleet' : 'one project'}`;
  throw Refusal.forbidden(
    `${operation} needs the role ${needs.role} on the ${needs.on === 'fleet' ? 'fleet' : 'project or the fleet'}, and token "${token.name}" ${holds}: ask an admin for another token`,
  );
}

type Texts = Record<string, string | undefined>;

/**
 * The projects that a request is about. Throws for one that the caller may not see exactly what is thrown for one that isn't
 * there. A project that is named is replaced by its id, so that the handler can't find another one under the name.
 */
async function projectsOf(
  db: Database,
  request: FastifyRequest,
  subjects: readonly Subject[],
  own: string,
): Promise<string[]> {
  const params = request.params as Texts;
  const query = request.query as Texts;
  const body = (request.body ?? {}) as { project?: unknown; anti_affinity_groups?: unknown };

  async function ownProject(named: string): Promise<string> {
    const { id } = await requireProject(db, named, isUuid(named));
    if (id !== own) throw Refusal.notFound('project', named);
    return id;
  }
  async function inQuery(): Promise<string | undefined> {
    if (query.project !== undefined) query.project = await ownProject(query.project);
    return query.project;
  }
  async function ownedBy(kind: 'instance' | 'instance, deleted too' | 'operation', id: string): Promise<void> {
    if ((await readProjectOf(db, kind, id)) !== own)
      throw Refusal.notFound(kind === 'operation' ? 'operation' : 'instance', id);
  }
  async function ownGroup(kind: AffinityKind, id: string): Promise<void> {
    const group = await requireAffinityGroup(db, kind, { id });
    if (group.projectId !== own) throw Refusal.notFound(groupNoun(kind), id);
  }

  for (const subject of subjects) {
    switch (subject) {
      case 'project':
        if (params.project !== undefined) params.project = await ownProject(params.project);
        break;
      case 'project in query':
        await inQuery();
        for (const named of Array.isArray(body.anti_affinity_groups) ? body.anti_affinity_groups : [])
          if (typeof named === 'string' && isUuid(named)) await ownGroup('anti_affinity', named);
        break;
      case 'project in body':
        // Without a project it is about the fleet, which is refused by the role.
        if (typeof body.project !== 'string')
          throw Refusal.forbidden('project: needed by a token that is on one project');
        body.project = await ownProject(body.project);
        break;
      case 'instances':
        query.project = (await inQuery()) ?? own;
        break;
      case 'instance':
      case 'instance, deleted too':
        // By its name it is found within the project of the query, which is the caller's.
        await inQuery();
        if (params.instance !== undefined && isUuid(params.instance)) await ownedBy(subject, params.instance);
        break;
      case 'affinity group':
      case 'anti-affinity group':
        await inQuery();
        if (params.group !== undefined && isUuid(params.group))
          await ownGroup(subject === 'affinity group' ? 'affinity' : 'anti_affinity', params.group);
        break;
      case 'operation':
        await ownedBy('operation', params.operation_id ?? '');
        break;
      case 'token': {
        const named = params.token ?? '';
        if ((await findToken(db, named, isUuid(named)))?.projectId !== own) throw Refusal.notFound('token', named);
        break;
      }
      case 'projects':
      case 'tokens':
        // The list itself shows what may be seen: see `visibleProject`.
        break;
      default:
        assertNever(subject);
    }
  }
  return [own];
}

/** The one project that a caller may see; `null` when all of them. */
export function visibleProject(request: FastifyRequest): string | null {
  return request.caller?.kind === 'operator' ? request.caller.token.projectId : null;
}

/** The token of a caller; `null` for the local operator. */
export function tokenOf(request: FastifyRequest): TokenIdentity | null {
  return request.caller?.kind === 'operator' ? request.caller.token : null;
}
