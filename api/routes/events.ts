import type { FastifyReply, FastifyRequest } from 'fastify';
import type { z } from 'zod';
import type { Database } from '../../db/connect.ts';
import { requireProject } from '../../db/queries/require-project.ts';
import { Refusal } from '../../model/refusal.ts';
import { processDescriptors } from '../../platform/host/descriptor-reserve.ts';
import { connectionShare, SHARES } from '../../platform/http/connection-limits.ts';
import { HttpError, NO_PAGE_HEADERS } from '../../platform/http/http-errors.ts';
import {
  EVENT_KINDS,
  type EventKind,
  eventParams,
  FLEET_EVENT_KINDS,
  streamEvent,
} from '../../wire/operator-api/events.ts';
import { isUuid } from '../../wire/operator-api/names.ts';
import { tokenOf, visibleProject } from '../access.ts';
import type { ApiApp, ApiContext } from '../context.ts';
import { errors } from '../errors.ts';
import type { ChangeFeed } from '../events/change-feed.ts';
import { type EventFilter, EventStream } from '../events/event-stream.ts';
import { findInstance } from '../find-instance.ts';

/** The most readers of one API, where its descriptors are enough for that; and of one token, as a part of them. */
const MOST_READERS = 1_000;
const TOKEN_PART = 1 / 4;
/** When to come again where there are too many, in seconds. */
const RETRY_AFTER_SECONDS = 10;
/** The kinds that are about an instance. */
const OF_INSTANCE: readonly EventKind[] = ['instance', 'operation', 'migration'];

type EventQuery = z.infer<typeof eventParams>;

/** Adds the stream of changes (docs/events.md). */
export function addEventRoutes(app: ApiApp, { db }: ApiContext, feed: ChangeFeed): void {
  app.get(
    '/v1/events',
    {
      schema: {
        tags: ['events'],
        querystring: eventParams,
        response: { 200: { content: { 'text/event-stream': { schema: streamEvent } } }, ...errors },
      },
    },
    async (request, reply) => {
      const filter = await readFilter(db, request.query, visibleProject(request));
      const lastId = request.headers['last-event-id'];
      const after = (typeof lastId === 'string' && lastId !== '' ? lastId : request.query.after) ?? null;
      refuseTooMany(feed, tokenOf(request)?.id ?? null, reply);
      await answerByStream(request, reply, feed, { filter, after });
      return reply;
    },
  );
}

const EVENT_STREAM = 'text/event-stream; charset=utf-8';

/** What the caller may see and asks for. Throws a {@link Refusal} for what it may not, or what isn't there. */
async function readFilter(db: Database, query: EventQuery, seen: string | null): Promise<EventFilter> {
  const { project, instance } = query;
  const hidden = seen === null ? undefined : query.kinds?.find((kind) => FLEET_EVENT_KINDS.has(kind));
  if (hidden !== undefined)
    throw Refusal.forbidden(`kinds: "${hidden}" is of the whole fleet, and this token is on one project`);
  const owner = project === undefined ? null : (await requireProject(db, project, isUuid(project))).id;
  const record = instance === undefined ? null : await findInstance(db, instance, project);
  if (record !== null && owner !== null && record.instance.projectId !== owner)
    throw Refusal.notFound('instance', instance ?? '');
  const shown: readonly EventKind[] =
    record !== null
      ? OF_INSTANCE
      : owner === null
        ? EVENT_KINDS
        : EVENT_KINDS.filter((kind) => !FLEET_EVENT_KINDS.has(kind));
  return {
    kinds: new Set(query.kinds ?? shown),
    projectId: seen ?? owner,
    instanceId: record?.instance.id ?? null,
  };
}

/** Throws where this API, or the token, has as many readers as it takes. */
function refuseTooMany(feed: ChangeFeed, tokenId: string | null, reply: FastifyReply): void {
  const most = Math.min(MOST_READERS, Math.floor(connectionShare(processDescriptors.limit, SHARES.operators) / 2));
  const isFull = feed.size >= most;
  if (!isFull && (tokenId === null || feed.sizeOf(tokenId) < Math.max(1, most * TOKEN_PART))) return;
  reply.header('retry-after', RETRY_AFTER_SECONDS);
  throw new HttpError(
    isFull ? 503 : 429,
    `${isFull ? 'this API' : 'this token'} has as many readers of events as it may: go on in ${RETRY_AFTER_SECONDS} s`,
  );
}

/** Answers with the stream, past the framework: it is never a whole answer. Resolves when it has begun, or is over. */
async function answerByStream(
  request: FastifyRequest<{ Querystring: EventQuery }>,
  reply: FastifyReply,
  feed: ChangeFeed,
  { filter, after }: { readonly filter: EventFilter; readonly after: string | null },
): Promise<void> {
  const headers = {
    ...NO_PAGE_HEADERS,
    'content-type': EVENT_STREAM,
    'cache-control': 'no-store',
    'x-request-id': request.id,
    // Otherwise nginx keeps events until it has a bufferful.
    'x-accel-buffering': 'no',
  };
  reply.hijack();
  const out = reply.raw;
  out.writeHead(200, headers);
  if (request.method === 'HEAD') {
    out.end();
    return;
  }
  const reader = new EventStream(out, filter, tokenOf(request)?.id ?? null);
  out.once('close', () => feed.leave(reader));
  await feed.join(reader, after);
  if (request.query.follow !== 'false') return;
  feed.leave(reader);
  reader.end(null);
}
