/** One id has two spellings: whatever an agent, or who calls one, writes in upper case is read as what the database has. */

import { createServer } from 'node:http';
import fc from 'fast-check';
import { afterAll, describe, expect, test } from 'vitest';
import { z } from 'zod';
import { SledClient } from '../../activities/sled-client.ts';
import { handOverMessage } from '../../sled-agent/qemu/hand-over.ts';
import * as lease from '../../wire/lease-protocol.ts';
import * as network from '../../wire/network-protocol.ts';
import * as identity from '../../wire/sled-identity.ts';
import * as protocol from '../../wire/sled-protocol.ts';
import { AGENT_ID_HEADER } from '../../wire/sled-protocol.ts';

/** Every schema of what agents and the control plane say to each other. */
const SCHEMAS = Object.entries<unknown>({ ...lease, ...network, ...identity, ...protocol, handOverMessage }).flatMap(
  ([name, schema]): [string, z.ZodType][] => (schema instanceof z.ZodType ? [[name, schema]] : []),
);
const ID = 'ABCDEF01-2345-4678-9ABC-DEF012345678';

interface JsonSchema {
  readonly type?: string | readonly string[];
  readonly format?: string;
  readonly pattern?: string;
  readonly const?: unknown;
  readonly enum?: readonly unknown[];
  readonly properties?: Readonly<Record<string, JsonSchema>>;
  readonly items?: JsonSchema;
  readonly minimum?: number;
  readonly minLength?: number;
  readonly anyOf?: readonly JsonSchema[];
  readonly oneOf?: readonly JsonSchema[];
}

/** What a schema takes, with every field there: `id` wherever it wants one. Notes where that is. */
function sample(schema: JsonSchema, id: () => string): fc.Arbitrary<unknown> {
  const choices = schema.anyOf ?? schema.oneOf;
  if (choices !== undefined)
    return fc.oneof(...choices.filter((one) => one.type !== 'null').map((one) => sample(one, id)));
  if (Array.isArray(schema.type)) return sample({ ...schema, type: schema.type[0] }, id);
  if ('const' in schema) return fc.constant(schema.const);
  if (schema.enum !== undefined) return fc.constantFrom(...schema.enum);
  if (schema.type === 'object')
    return fc.record(
      Object.fromEntries(Object.entries(schema.properties ?? {}).map(([name, one]) => [name, sample(one, id)])),
    );
  if (schema.type === 'array') return fc.array(sample(schema.items ?? {}, id), { minLength: 1, maxLength: 2 });
  if (schema.type === 'integer' || schema.type === 'number') return fc.constant(Math.max(1, schema.minimum ?? 1));
  if (schema.type === 'boolean') return fc.boolean();
  if (isId(schema)) return fc.constant(null).map(id);
  if (schema.format === 'date-time') return fc.constant('2026-01-01T00:00:00Z');
  if (schema.format === 'uri') return fc.constant('http://127.0.0.1');
  return fc.constantFrom('10.0.0.1:8099', 'text', 'tcp:10.0.0.1:1', 'AAAA');
}
const isId = ({ format, pattern }: JsonSchema) =>
  format === 'uuid' || format === 'guid' || /0-9a-fA-F\]\{12\}/.test(pattern ?? '');
const idsIn = (schema: JsonSchema): number =>
  (isId(schema) ? 1 : 0) +
  [
    ...(schema.anyOf ?? []),
    ...(schema.oneOf ?? []),
    ...Object.values(schema.properties ?? {}),
    ...(schema.items ? [schema.items] : []),
  ]
    .map(idsIn)
    .reduce((sum, one) => sum + one, 0);

describe('every schema of the protocols', () => {
  const withIds = SCHEMAS.map(([name, schema]) => {
    const json = z.toJSONSchema(schema, { io: 'input', unrepresentable: 'any' }) as JsonSchema;
    return { name, schema, json };
  }).filter(({ json }) => idsIn(json) > 0);

  test('is among these', () => {
    expect(withIds.map(({ name }) => name)).toEqual(
      expect.arrayContaining([
        ...['leaseRenewal', 'sledIdentity', 'networkPage', 'joinRequest', 'joinAnswer', 'migrationDestination'],
        ...['sledVmmState', 'migrationProgress', 'vmmStateAnswer', 'registerRequest', 'sledInventory'],
        ...['agentDescription', 'updatedRuntime', 'handOverMessage'],
      ]),
    );
  });

  test.each(withIds)('$name reads ids in lower case', ({ schema, json }) => {
    let read = 0;
    fc.assert(
      fc.property(
        sample(json, () => ID),
        (value) => {
          const result = schema.safeParse(value);
          if (!result.success) return;
          const text = JSON.stringify(result.data);
          expect(text).not.toContain(ID);
          if (text.includes(ID.toLowerCase())) read += 1;
        },
      ),
      { numRuns: 300 },
    );
    expect(read).toBeGreaterThan(0);
  });
});

describe('an agent that writes its id in upper case', () => {
  const client = new SledClient();
  const server = createServer((_, response) =>
    response.writeHead(200, { [AGENT_ID_HEADER]: ID, connection: 'close' }).end('{"vmms":[]}'),
  );
  afterAll(async () => {
    await client.close();
    server.close();
  });

  test('is the sled’s own: in every call, and to the question whether it answers', async () => {
    await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
    const at = server.address();
    const address = `127.0.0.1:${typeof at === 'object' && at !== null ? at.port : 0}`;
    const own = { name: 'sled-1', address, keptAgentId: ID.toLowerCase() };
    expect(await client.answers(own, 5_000)).toBe(true);
    expect(await client.readInventory(own, 5_000)).toEqual({ vmms: [] });
    client.learnAgents([{ name: 'sled-2', keptAgentId: ID.toLowerCase() }]);
    await expect(client.readInventory({ ...own, keptAgentId: null }, 5_000)).rejects.toThrow(
      'is that of sled "sled-2"',
    );
  });
});
