/** What each release promised is kept by the working tree: CONTRIBUTING.md, "What a release promises". */
import { readdir, readFile } from 'node:fs/promises';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { apiDocument, digestOf, digestOfTypes } from '../console/api-types.ts';
import { type Harness, startHarness } from '../support/harness.ts';
import { brokenPromises, collectPromises, type Promises } from './promises.ts';

const RELEASES = (await readdir(new URL('.', import.meta.url))).filter((name) => name.endsWith('.json')).sort();
const read = async (name: string) => JSON.parse(await readFile(new URL(name, import.meta.url), 'utf8')) as Promises;

let harness: Harness;
let now: Promises;
beforeAll(async () => {
  harness = await startHarness();
  now = await collectPromises(await (await fetch(`${harness.stack.apiUrl}/openapi.json`)).json());
});
afterAll(() => harness?.close());

test('the console’s types are of this document: npm run console:types', async () => {
  expect(await digestOfTypes()).toBe(digestOf(apiDocument.parse(now.api)));
});

test('the first release has made some', () => expect(RELEASES[0]).toBe('0.2.0.json'));

test.each(RELEASES)('what %s promised is kept', async (name) => {
  expect(brokenPromises(await read(name), now)).toEqual([]);
});

// biome-ignore lint/suspicious/noExplicitAny: JSON that is broken on purpose, at any depth
type Json = any;
const instance = (made: Json) => made.api.paths['/v1/instances/{instance}'].get;
const BREACHES: readonly [string, (made: Json) => void, RegExp][] = [
  ['a path', (made) => delete made.api.paths['/v1/instances'], /POST \/v1\/instances: is gone/],
  ['a method', (made) => delete made.api.paths['/v1/instances/{instance}'].delete, /DELETE .*: is gone/],
  ['a status', (made) => delete instance(made).responses[200], /200 is gone/],
  [
    'a field of an answer',
    (made) => delete instance(made).responses[200].content['application/json'].schema.properties.run_state,
    /run_state: is gone/,
  ],
  [
    'a field that may be missing',
    (made) => {
      const { schema } = instance(made).responses[200].content['application/json'];
      schema.required = schema.required.filter((name: string) => name !== 'id');
    },
    /id: may be missing now/,
  ],
  [
    'another type',
    (made) => {
      instance(made).responses[200].content['application/json'].schema.properties.ncpus = { type: 'string' };
    },
    /ncpus: was integer, is string/,
  ],
  [
    'a field that must be given',
    (made) => made.api.paths['/v1/instances'].post.requestBody.content['application/json'].schema.required.push('zone'),
    /zone: is required now/,
  ],
  [
    'a parameter that must be given',
    (made) =>
      made.api.paths['/v1/instances'].post.parameters.push({ name: 'zone', in: 'query', required: true, schema: {} }),
    /zone is required now/,
  ],
  ['a part of the protocol', (made) => delete made.protocol.sledInventory, /protocol: sledInventory: is gone/],
  ['a field of the protocol', (made) => made.protocol.registerRequest.required.push('disks'), /disks: is required now/],
  [
    'a migration',
    (made) => Object.assign(made.migrations, { '0000_schema.sql': 'x' }),
    /migration 0000_schema.sql: was/,
  ],
  ['a history', (made) => delete made.histories[Object.keys(made.histories)[0] ?? ''], /history .*: is gone/],
  ['a command', (made) => delete made.commands['instance migrate'], /mooring instance migrate: is gone/],
  ['an option', (made) => made.commands['instance list'].splice(0), /mooring instance list --json: is gone/],
  ['a variable', (made) => made.environment.splice(0, 1), /variable DATABASE_URL: is gone/],
  ['a name in Temporal', (made) => made.temporal.splice(0, 1), /name in Temporal .*: is gone/],
];

describe('a breach is seen', () => {
  test.each(BREACHES)('%s', (_, breach, said) => {
    const broken: Json = structuredClone(now);
    breach(broken);
    expect(brokenPromises(now, broken).join('\n')).toMatch(said);
  });

  test('and nothing else is one', () => {
    const more: Json = structuredClone(now);
    instance(more).responses[200].content['application/json'].schema.properties.news = { type: 'string' };
    more.api.paths['/v1/news'] = more.api.paths['/v1/instances'];
    more.commands.news = [];
    expect(brokenPromises(now, more)).toEqual([]);
  });
});
