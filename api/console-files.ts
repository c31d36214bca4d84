/**
 * The pages that the build made (`console/`), as they are answered: read once, with what a browser needs to ask for nothing
 * twice. A file is found by its name among those that were built, so that no path leads elsewhere.
 */
import { createHash } from 'node:crypto';
import { existsSync } from 'node:fs';
import { readdir, readFile } from 'node:fs/promises';
import { extname, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { promisify } from 'node:util';
import { gzip } from 'node:zlib';

/** Beside the program as it is built; from its TypeScript, where `npm run build` puts it. */
const BUILT = import.meta.url.endsWith('.ts') ? '../dist/mooring/console' : '../console';

/** What a browser is told that a file is; what is not here is not served. */
const TYPES: Readonly<Record<string, string>> = {
  '.html': 'text/html; charset=utf-8',
  '.js': 'text/javascript; charset=utf-8',
  '.css': 'text/css; charset=utf-8',
  '.svg': 'image/svg+xml',
  '.png': 'image/png',
  '.woff2': 'font/woff2',
};
/** Smaller ones are not worth it; pictures and fonts are compressed already. */
const LEAST_TO_COMPRESS = 1_024;
const COMPRESSED = new Set(['.html', '.js', '.css', '.svg']);

export interface ServedFile {
  readonly body: Buffer;
  /** `null`: it is sent as it is. */
  readonly gzipped: Buffer | null;
  readonly type: string;
  readonly etag: string;
}

/** The files of the pages that were built. */
export class ConsoleFiles {
  readonly #folder: string;
  readonly #files = new Map<string, Promise<ServedFile | null>>();

  constructor(folder = fileURLToPath(new URL(BUILT, import.meta.url))) {
    this.#folder = folder;
  }

  /** Whether there is a console to serve: it is made by the build. */
  get isBuilt(): boolean {
    return existsSync(join(this.#folder, 'index.html'));
  }

  /** A page, by its name without the ending; `null`: it was not built. */
  page(name: 'index' | 'docs'): Promise<ServedFile | null> {
    return this.#find('', `${name}.html`);
  }

  /** What a page asks for, by its file's name; `null`: no page does. */
  asset(name: string): Promise<ServedFile | null> {
    return this.#find('assets', name);
  }

  async #find(folder: string, name: string): Promise<ServedFile | null> {
    const known = this.#files.get(name);
    if (known !== undefined) return known;
    const path = join(this.#folder, folder);
    const there: readonly string[] = await readdir(path).catch(() => []);
    if (!there.includes(name)) return null;
    const read = readServed(join(path, name));
    this.#files.set(name, read);
    return read;
  }
}

async function readServed(path: string): Promise<ServedFile | null> {
  const ending = extname(path);
  const type = TYPES[ending];
  if (type === undefined) return null;
  const body = await readFile(path);
  const isCompressed = COMPRESSED.has(ending) && body.length >= LEAST_TO_COMPRESS;
  return {
    body,
    gzipped: isCompressed ? await promisify(gzip)(body, { level: 9 }) : null,
    type,
    etag: `"${createHash('sha256').update(body).digest('base64url').slice(0, 27)}"`,
  };
}
