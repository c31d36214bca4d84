/** What the OpenAPI document says beside the schemas of its endpoints: headers, and the errors that every endpoint may answer. */
import { KEYED_CALLS } from '../model/states.ts';
import { describePermission, PERMISSION_OF, TAGS, WORDS } from './document-words.ts';

interface Header {
  readonly description: string;
  readonly schema: { readonly type: string; readonly format?: string };
}
interface Response {
  description: string;
  headers?: Record<string, Header>;
}
interface Operation {
  readonly operationId?: string;
  summary?: string;
  description?: string;
  parameters?: object[];
  readonly requestBody?: { readonly content?: Record<string, { example?: unknown }> };
  readonly responses?: Record<string, Response>;
}
/** The parts of a document that are changed. */
interface Document {
  readonly paths?: Record<string, Record<string, Operation>>;
  tags?: readonly object[];
}

const REQUEST_ID: Header = {
  description: 'The id of the request, which finds it in the log of the API. Every answer has it.',
  schema: { type: 'string', format: 'uuid' },
};
const LOCATION: Header = {
  description:
    'The operation that the request began or joined: /v1/operations/{operation_id}. Absent where it needed none.',
  schema: { type: 'string' },
};
const ALLOW: Header = { description: 'With 405: the methods that the path takes.', schema: { type: 'string' } };
const RETRY_AFTER: Header = {
  description: 'With 429: when to go on, in seconds.',
  schema: { type: 'integer' },
};

const CLIENT_ERROR =
  'Refused, with error_code, message and request_id, also where HTTP itself refuses the request. 400: invalid, or a name that is ' +
  'taken. 401: nobody is known by its token. 403: not the role. 404: not found. 405: the path takes other methods (Allow). 408: it ' +
  'came too slowly. 409: conflict. 413, 414, 431: its body, path or headers are too large. 415: the body is not JSON. 417: Expect. ' +
  '422: its Idempotency-Key names another request. 429: too many requests.';
const SERVER_ERROR =
  'Failed, with error_code, message and request_id. 500: internal. 503: a sled, the database or the Temporal server is unavailable, ' +
  'or the API is about to end: try again. 507: no capacity or quota.';

const KEY = {
  name: 'Idempotency-Key',
  in: 'header',
  required: false,
  description:
    'Names this request, so that the same one again, after its answer was lost, is the same operation. With another request it is ' +
    'refused with 422 (IdempotencyKeyReused). Kept for a week.',
  schema: { type: 'string', format: 'uuid' },
};
const LAST_EVENT_ID = {
  name: 'Last-Event-ID',
  in: 'header',
  required: false,
  description: 'The id of the last event that was read: what came after it is sent. Goes before `after`.',
  schema: { type: 'string', maxLength: 1024 },
};
const WAITS =
  'Answered with the outcome of its operation, or with the operation to follow (Location) when that takes too long; the header ' +
  '"Prefer: wait=SECONDS" (RFC 7240) asks for less.';
const KEYED: ReadonlySet<string> = new Set(KEYED_CALLS.map((call) => `instance_${call}`));

/** Completes the document of the API. */
export function describeDocument<Made extends object>(document: Made): Made {
  for (const path of Object.values((document as Document).paths ?? {}))
    for (const operation of Object.values(path)) describeOperation(operation);
  (document as Document).tags = TAGS;
  return document;
}

function describeOperation(operation: Operation): void {
  const { operationId = '' } = operation;
  const keyed = KEYED.has(operationId);
  const words = WORDS[operationId];
  const permission = PERMISSION_OF.get(operationId);
  if (keyed) operation.parameters = [...(operation.parameters ?? []), KEY];
  if (words !== undefined) operation.summary = words.summary;
  operation.description = [
    words?.description,
    ...(keyed ? [WAITS] : []),
    ...(permission === undefined ? [] : [describePermission(permission)]),
  ]
    .filter((part) => part !== undefined)
    .join(' ');
  for (const content of Object.values(operation.requestBody?.content ?? {}))
    if (words?.example !== undefined) content.example = words.example;
  if (operationId === 'event_stream') operation.parameters = [...(operation.parameters ?? []), LAST_EVENT_ID];
  for (const [status, response] of Object.entries(operation.responses ?? {})) {
    response.headers = { ...response.headers, 'x-request-id': REQUEST_ID };
    if (status === '4XX') {
      response.description = CLIENT_ERROR;
      response.headers = { ...response.headers, Allow: ALLOW, 'Retry-After': RETRY_AFTER };
    } else if (status === '5XX') response.description = SERVER_ERROR;
    else if (keyed) response.headers = { ...response.headers, Location: LOCATION };
  }
}
