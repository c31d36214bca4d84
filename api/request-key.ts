/**
 * The key that a client gives a request (`Idempotency-Key`, a UUID), so that the same request again, after its answer was lost,
 * is the same operation. A key names one request for as long as it is kept: by its method, its route, and what it asks for,
 * as that is understood. So an instance by its name or its id is the same, and what a field says by default, also by `null` or an
 * empty list, and the order of fields; another instance of that name is not. Source: draft-ietf-httpapi-idempotency-key-header.
 */
import { createHash, randomUUID } from 'node:crypto';
import type { FastifyInstance, FastifyRequest } from 'fastify';
import type { Database } from '../db/connect.ts';
import { isKeyKnown } from '../db/queries/is-key-known.ts';
import type { RequestKey } from '../db/transactions/take-key.ts';
import { Refusal } from '../model/refusal.ts';
import { KEYED_CALLS, type KeyedCall } from '../model/states.ts';
import { isUuid } from '../wire/operator-api/names.ts';

/** The key of a request that asks for `asked`. Throws a {@link Refusal} for one that is no UUID. */
export function requestKey(request: FastifyRequest, call: KeyedCall, asked: unknown): RequestKey | undefined {
  const given = givenKey(request);
  if (given === undefined) return undefined;
  if (!isUuid(given)) throw Refusal.invalid('Idempotency-Key: must be a UUID, a new one for each new request');
  const digest = digestOf([request.method, request.routeOptions.url, asked]);
  return { value: given.toLowerCase(), call, digest, sending: randomUUID() };
}

/** What was given as a key; the draft has it as a quoted string, and most clients leave the quotes out. */
function givenKey({ headers }: FastifyRequest): string | undefined {
  const given = headers['idempotency-key'];
  return given === undefined ? undefined : String(given).replace(/^"(.*)"$/, '$1');
}

/** SHA-256, in hexadecimal, of a value of JSON, whatever the order of its fields. Throws a {@link Refusal} where it is too deep. */
function digestOf(value: unknown): string {
  try {
    return createHash('sha256').update(JSON.stringify(value, sorted)).digest('hex');
  } catch (error) {
    if (error instanceof RangeError) throw Refusal.invalid('body: is nested too deep');
    throw error;
  }
}

function sorted(_: string, value: unknown): unknown {
  if (typeof value !== 'object' || value === null || Array.isArray(value)) return value;
  const said = Object.entries(value).filter(([, field]) => !isUnset(field));
  return Object.fromEntries(said.sort(([one], [other]) => (one < other ? -1 : 1)));
}

/** What a field says that might as well be left out; no keyed call means anything else by it. */
function isUnset(field: unknown): boolean {
  return field == null || (Array.isArray(field) && field.length === 0);
}

const KEYED_OPERATIONS: ReadonlySet<string> = new Set(KEYED_CALLS.map((call) => `instance_${call}`));

/** Refuses a key that names a request before it goes with one that takes no key. Add it behind the hooks that know the caller. */
export function addKeyHook(app: FastifyInstance, db: Database): void {
  app.addHook('preHandler', async (request) => {
    const { permission } = request.routeOptions.config;
    if (permission === undefined || permission.audit === null || KEYED_OPERATIONS.has(permission.operation)) return;
    const given = givenKey(request);
    if (given !== undefined && isUuid(given) && (await isKeyKnown(db, given.toLowerCase())))
      throw Refusal.keyReused(given.toLowerCase());
  });
}
