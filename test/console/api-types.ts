/** The console's types of the API, made of its document by openapi-typescript, which is a package of its own (`console/api-types`). */
import { execFile } from 'node:child_process';
import { createHash } from 'node:crypto';
import { mkdtemp, readFile, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { promisify } from 'node:util';
import { z } from 'zod';

const MAKER = fileURLToPath(new URL('../../console/api-types/node_modules/.bin/openapi-typescript', import.meta.url));
/** The API's document; its paths are what types are made of. */
export const apiDocument = z.looseObject({ paths: z.record(z.string(), z.unknown()) });
export const API_TYPES = fileURLToPath(new URL('../../console/api-schema.ts', import.meta.url));

/** What the document says, apart from its version, which changes with each release: by it stale types are known. */
export function digestOf(document: z.infer<typeof apiDocument>): string {
  return createHash('sha256').update(JSON.stringify(document.paths)).digest('hex');
}

/** The digest of the document that the console's types were made of; `null` where they don't say. */
export async function digestOfTypes(): Promise<string | null> {
  return /SHA-256 of its paths: ([0-9a-f]{64})/.exec(await readFile(API_TYPES, 'utf8'))?.[1] ?? null;
}

/** Writes the console's types. Throws where the maker is not installed (`npm ci --prefix console/api-types`), or what it says. */
export async function writeApiTypes(document: z.infer<typeof apiDocument>): Promise<void> {
  const folder = await mkdtemp(join(tmpdir(), 'mooring-api-types-'));
  try {
    const [source, made] = [join(folder, 'openapi.json'), join(folder, 'schema.ts')];
    await writeFile(source, JSON.stringify(document));
    await promisify(execFile)(MAKER, [source, '--output', made, '--default-non-nullable', 'false']);
    const head = `/** The API's document as types: made by "npm run console:types". SHA-256 of its paths: ${digestOf(document)} */\n`;
    await writeFile(API_TYPES, head + (await readFile(made, 'utf8')));
  } finally {
    await rm(folder, { recursive: true });
  }
}
