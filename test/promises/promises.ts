/**
 * What a release promises to those who built on it, as data that can be compared: the API's document, the shapes of the sled
 * protocol, migrations, recorded histories, the command's words, environment variables, names that Temporal knows.
 */
import { createHash } from 'node:crypto';
import { readdir, readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import type { Command } from 'commander';
import { z } from 'zod';
import { makeWholeProgram } from '../../cli/program.ts';
import { SEARCH_ATTRIBUTES } from '../../model/search-attributes.ts';
import { deploymentOf, queueOf, scheduleOf, TASK_QUEUES, workflowIds } from '../../model/workflow-names.ts';
import * as leaseProtocol from '../../wire/lease-protocol.ts';
import * as networkProtocol from '../../wire/network-protocol.ts';
import * as sledIdentity from '../../wire/sled-identity.ts';
import * as sledProtocol from '../../wire/sled-protocol.ts';
import * as workflows from '../../workflows/index.ts';

const ROOT = fileURLToPath(new URL('../..', import.meta.url));

export interface Promises {
  /** The API's document. */
  readonly api: unknown;
  /** JSON schemas of what sled agents and control plane say to each other, by their names in `wire/`. */
  readonly protocol: Readonly<Record<string, unknown>>;
  /** SHA-256 of each file that never changes once it is released. */
  readonly migrations: Readonly<Record<string, string>>;
  readonly histories: Readonly<Record<string, string>>;
  /** The options of each command. */
  readonly commands: Readonly<Record<string, readonly string[]>>;
  readonly environment: readonly string[];
  readonly temporal: readonly string[];
}

/** What the working tree promises; `api` is its document. */
export async function collectPromises(api: unknown): Promise<Promises> {
  return {
    api,
    protocol: Object.fromEntries(
      Object.entries({ ...sledProtocol, ...leaseProtocol, ...networkProtocol, ...sledIdentity }).flatMap(
        ([name, value]) => (value instanceof z.ZodType ? [[name, z.toJSONSchema(value, { io: 'input' })]] : []),
      ),
    ),
    migrations: await digests('db/migrations', (name) => name.endsWith('.sql')),
    histories: await digests('test/histories', (name) => name.endsWith('.json')),
    commands: Object.fromEntries(wordsOf(await makeWholeProgram())),
    environment: await readVariables(),
    temporal: [
      ...Object.keys(workflows),
      ...TASK_QUEUES.map((queue) => queueOf('ID', queue)),
      ...Object.values(SEARCH_ATTRIBUTES),
      ...Object.values(workflowIds).map((name) => name('ID', 'watcher')),
      scheduleOf('ID', 'watcher'),
      deploymentOf('ID'),
    ].sort(),
  };
}

async function digests(folder: string, wanted: (name: string) => boolean): Promise<Record<string, string>> {
  const names = (await readdir(join(ROOT, folder))).filter(wanted).sort();
  return Object.fromEntries(
    await Promise.all(
      names.map(async (name) => {
        const content = await readFile(join(ROOT, folder, name));
        return [name, createHash('sha256').update(content).digest('hex')] as const;
      }),
    ),
  );
}

function wordsOf(command: Command, path: readonly string[] = []): [string, readonly string[]][] {
  const options = command.options.flatMap(({ long }) => long ?? []).sort();
  return [
    ...(path.length === 0 ? [] : [[path.join(' '), options] as [string, readonly string[]]]),
    ...command.commands.flatMap((one) => wordsOf(one, [...path, one.name()])),
  ];
}

/** The variables that the README documents. */
async function readVariables(): Promise<string[]> {
  const readme = await readFile(join(ROOT, 'README.md'), 'utf8');
  return [...new Set(readme.match(/\b(?:MOORING|TEMPORAL|DATABASE|OTEL)_[A-Z_]+[A-Z]\b/g))].sort();
}

/** What was promised and is not kept, in words; empty where all is. What is new is no breach. */
export function brokenPromises(before: Promises, now: Promises): string[] {
  return [
    ...brokenApi(apiDocument.parse(before.api), apiDocument.parse(now.api)),
    ...Object.entries(before.protocol).flatMap(([name, schema]) =>
      narrowed(`protocol: ${name}`, schema, now.protocol[name], 'both'),
    ),
    ...changedFiles('migration', before.migrations, now.migrations),
    ...changedFiles('history', before.histories, now.histories),
    ...Object.entries(before.commands).flatMap(([path, options]) => {
      const known = now.commands[path];
      if (known === undefined) return [`mooring ${path}: is gone`];
      return options.filter((option) => !known.includes(option)).map((option) => `mooring ${path} ${option}: is gone`);
    }),
    ...missing('variable', before.environment, now.environment),
    ...missing('name in Temporal', before.temporal, now.temporal),
  ];
}

const missing = (what: string, before: readonly string[], now: readonly string[]) =>
  before.filter((one) => !now.includes(one)).map((one) => `${what} ${one}: is gone`);

const changedFiles = (what: string, before: Readonly<Record<string, string>>, now: Readonly<Record<string, string>>) =>
  Object.entries(before).flatMap(([name, digest]) => {
    if (now[name] === digest) return [];
    return [`${what} ${name}: ${now[name] === undefined ? 'is gone' : 'was changed'}`];
  });

const contents = z.object({ 'application/json': z.object({ schema: z.unknown() }).optional() });
const endpoint = z.object({
  parameters: z
    .array(z.object({ name: z.string(), in: z.string(), required: z.boolean().optional(), schema: z.unknown() }))
    .optional(),
  requestBody: z.object({ content: contents, required: z.boolean().optional() }).optional(),
  responses: z.record(z.string(), z.object({ content: contents.optional() })),
});
type Endpoint = z.infer<typeof endpoint>;
const apiDocument = z.object({ paths: z.record(z.string(), z.record(z.string(), endpoint)) });

function brokenApi(before: z.infer<typeof apiDocument>, now: z.infer<typeof apiDocument>): string[] {
  return Object.entries(before.paths).flatMap(([path, methods]) =>
    Object.entries(methods).flatMap(([method, promised]) => {
      const where = `${method.toUpperCase()} ${path}`;
      const kept = now.paths[path]?.[method];
      return kept === undefined ? [`${where}: is gone`] : brokenEndpoint(where, promised, kept);
    }),
  );
}

function brokenEndpoint(where: string, before: Endpoint, now: Endpoint): string[] {
  const parameters = now.parameters ?? [];
  const sameParameter = (one: { name: string; in: string }) =>
    parameters.find(({ name, in: place }) => name === one.name && place === one.in);
  const known = new Set((before.parameters ?? []).map((one) => sameParameter(one)));
  return [
    ...(before.parameters ?? []).flatMap((one) => {
      const kept = sameParameter(one);
      if (kept === undefined) return [`${where}: parameter ${one.name} is gone`];
      return narrowed(`${where}: parameter ${one.name}`, one.schema, kept.schema, 'in');
    }),
    ...parameters
      .filter((one) => one.required && !known.has(one))
      .map((one) => `${where}: ${one.name} is required now`),
    ...(before.requestBody === undefined && now.requestBody?.required ? [`${where}: a body is required now`] : []),
    ...narrowed(
      `${where}: body`,
      before.requestBody?.content['application/json']?.schema,
      now.requestBody?.content['application/json']?.schema,
      'in',
    ),
    ...Object.entries(before.responses).flatMap(([status, response]) => {
      const kept = now.responses[status];
      if (kept === undefined) return [`${where}: ${status} is gone`];
      const schemaOf = (one: typeof response) => one.content?.['application/json']?.schema;
      return narrowed(`${where}: ${status}`, schemaOf(response), schemaOf(kept), 'out');
    }),
  ];
}

const jsonSchema = z.looseObject({
  type: z.union([z.string(), z.array(z.string())]).optional(),
  properties: z.record(z.string(), z.unknown()).optional(),
  required: z.array(z.string()).optional(),
  items: z.unknown().optional(),
  enum: z.array(z.unknown()).optional(),
  anyOf: z.array(z.unknown()).optional(),
});

/**
 * Where a schema gives less than before to who reads it (`out`), or asks more of who writes it (`in`), or either: a field that is
 * gone, has another type, may be missing, or must be given; a value that is taken no more.
 */
function narrowed(where: string, before: unknown, now: unknown, way: 'in' | 'out' | 'both'): string[] {
  if (before === undefined) return [];
  if (now === undefined) return [`${where}: is gone`];
  const [old, fresh] = [jsonSchema.parse(before), jsonSchema.parse(now)];
  const typesOf = (schema: typeof old) =>
    [
      ...new Set([schema.type ?? [], (schema.anyOf ?? []).map((one) => jsonSchema.parse(one).type ?? [])].flat(3)),
    ].sort();
  const [oldTypes, newTypes] = [typesOf(old), typesOf(fresh)];
  const lostIn = way !== 'out' && oldTypes.some((type) => !newTypes.includes(type));
  const newOut = way !== 'in' && newTypes.some((type) => !oldTypes.includes(type));
  const wants = (schema: typeof old, name: string) => (schema.required ?? []).includes(name);
  const [oldFields, newFields] = [old.properties ?? {}, fresh.properties ?? {}];
  return [
    ...(oldTypes.length > 0 && newTypes.length > 0 && (lostIn || newOut)
      ? [`${where}: was ${oldTypes.join(' or ')}, is ${newTypes.join(' or ')}`]
      : []),
    ...(way === 'out'
      ? []
      : (old.enum ?? []).filter((one) => fresh.enum !== undefined && !fresh.enum.includes(one))
    ).map((one) => `${where}: ${JSON.stringify(one)} is taken no more`),
    ...Object.entries(oldFields).flatMap(([name, field]) => [
      ...narrowed(`${where}.${name}`, field, newFields[name], way),
      ...(way !== 'in' && name in newFields && wants(old, name) && !wants(fresh, name)
        ? [`${where}.${name}: may be missing now`]
        : []),
    ]),
    ...(way === 'out' ? [] : (fresh.required ?? []).filter((name) => !wants(old, name))).map(
      (name) => `${where}.${name}: is required now`,
    ),
    ...(old.items === undefined ? [] : narrowed(`${where}[]`, old.items, fresh.items, way)),
    ...(old.anyOf ?? []).flatMap((one, index) => {
      const objects = jsonSchema.parse(one).properties !== undefined;
      return objects ? narrowed(where, one, fresh.anyOf?.[index] ?? fresh, way) : [];
    }),
  ];
}
